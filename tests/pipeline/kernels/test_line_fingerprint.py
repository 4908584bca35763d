"""The sum of the hashes of lines: its slow twin, cuts that change nothing, and changes that always show."""

import random

import numpy as np
import pytest

from pipeline.kernels.hashing import GOLDEN, MULTIPLIERS
from pipeline.kernels.line_fingerprint import line_fingerprint

MASK = 2**64 - 1


def starts(text: bytes) -> np.ndarray:
    return np.flatnonzero(np.frombuffer(b"\n" + text[:-1], np.uint8) == 10)


def fingerprint(text: bytes, offset: int = 0) -> int:
    return line_fingerprint(text, starts(text), offset)


def mixed(word: int) -> int:
    word = (word ^ word >> 30) * MULTIPLIERS[0] & MASK
    word = (word ^ word >> 27) * MULTIPLIERS[1] & MASK
    return word ^ word >> 31


def slow_hash(line: bytes, offset: int) -> int:
    """Hash a line in plain Python."""
    first = mixed(offset + GOLDEN & MASK)
    lanes = [first + lane * GOLDEN & MASK for lane in range(4)]
    words = [line[at : at + 8] for at in range(0, len(line), 8)]
    rest = words.pop() if len(line) % 8 else b""
    words = [int.from_bytes(word, "little") for word in words]
    striped = len(words) // 4 * 4
    words.append(int.from_bytes(rest, "little") | len(rest) << 56)
    for place, word in enumerate(words):
        lane = place % 4 if place < striped else 0
        lanes[lane] = (lanes[lane] ^ word) * MULTIPLIERS[0] & MASK
        lanes[lane] ^= lanes[lane] >> 32
    a, b, c, d = lanes
    return mixed(a ^ mixed(b ^ mixed(c ^ mixed(d))))


def random_text(draw: random.Random) -> bytes:
    lines = [draw.randbytes(draw.choice([0, 1, 7, 8, 9, 31, 32, 33, 70, 300])).replace(b"\n", b".") for _ in range(20)]
    return b"".join(line + b"\n" for line in lines)


@pytest.mark.parametrize("seed", range(10))
def test_the_kernel_agrees_with_its_slow_twin_and_no_cut_between_lines_changes_the_sum(seed: int) -> None:
    draw = random.Random(seed)
    text, offset = random_text(draw), draw.randrange(1 << 44)
    begin_L = starts(text).tolist()
    bounds = zip(begin_L, [*begin_L[1:], len(text)], strict=True)
    expected = sum(slow_hash(text[begin:end], offset + begin) for begin, end in bounds) & MASK
    assert fingerprint(text, offset) == expected
    for cut in draw.sample(begin_L, 3):
        parts = fingerprint(text[:cut], offset) if cut else 0, fingerprint(text[cut:], offset + cut)
        assert sum(parts) & MASK == expected


def test_every_flipped_bit_every_two_lines_that_change_places_and_every_shift_show() -> None:
    text = b"".join(b"%07d,1,0\n" % number for number in range(30)) + b"x" * 90 + b"\n"
    whole = fingerprint(text)
    seen = {whole}
    for place in range(len(text) - 1):
        for bit in range(8):
            changed = bytearray(text)
            changed[place] ^= 1 << bit
            seen.add(fingerprint(bytes(changed)))
    assert len(seen) == 1 + 8 * (len(text) - 1)
    swapped = text[12:24] + text[:12] + text[24:]
    assert whole not in (fingerprint(swapped), fingerprint(text, 1))
