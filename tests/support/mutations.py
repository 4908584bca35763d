"""Raw Ali-CCP lines damaged in every way that a disk, a network, another program or a person has ever damaged a log.

`mutated` takes a line, `mutated_log` a whole log: there lines are also repeated, lost and swapped. All of it follows from
the seed. The command is `python -m benchmarks.fuzz`.
"""

import random
from collections.abc import Callable, Sequence

from raw_log import RawLog, key_of, random_log

Mutation = Callable[[random.Random, bytes], bytes]

INTEGERS = (
    b"", b"0", b"-0", b"-1", b"+1", b"007", b" 5", b"5 ", b"1_000", b"1e5", b"0x10", b"1.0", b"\xd9\xa1", b"NaN",
    b"9223372036854775806", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808",
    b"18446744073709551616", b"0000000000000000000000000000000012", b"9" * 400,
)  # fmt: skip
WEIGHTS = (
    b"", b"0", b"-0.0", b"-1.5", b"+.5", b"5.", b".", b"-", b"+-1", b"1.2.3", b"0.69314718055994531", b"2.9444389791664403",
    b"1e-45", b"7e-46", b"1e-400", b"3.4028235e38", b"3.4028235677973365e38", b"3.4028235677973366e38", b"-3.5e38", b"1e39",
    b"1e400", b"1e99999999999999999999", b"0e99999999999999999999", b"1E3", b"1e+3", b"1e", b"1e+", b"e5", b"nan", b"NaN",
    b"inf", b"-inf", b"Infinity", b"0x1p-3", b"1.0f", b"1,5", b" 1", b"1 ", b"1_0", b"9007199254740993", b"9007199254740993e22",
    b"123456789012345678901234567890", b"0." + b"0" * 60 + b"123e60", b"16777217", b"33554435e-1", b"\xef\xbc\x91",
)  # fmt: skip
KEYS = (b"", b"f" * 15, b"f" * 17, b"F" * 16, b"0x" + b"f" * 14, b"g" * 16, b" " + b"f" * 15, b"\x00" * 16)
BYTES = (b"\x00", b"\xff", b"\xfe\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\x0b", b"\xc2\x85", b"\xe2\x80\xa8")  # fmt: skip
MARKS = (b"\x01", b"\x02", b"\x03", b",", b"\r", b"\n")


def _flipped_bits(draw: random.Random, line: bytes) -> bytes:
    text = bytearray(line or b"\x00")
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        text[draw.randrange(len(text))] ^= 1 << draw.randrange(8)
    return bytes(text)


def _cut(draw: random.Random, line: bytes) -> bytes:
    return line[: draw.randrange(len(line) + 1)]


def _without_a_piece(draw: random.Random, line: bytes) -> bytes:
    start = draw.randrange(len(line) + 1)
    return line[:start] + line[start + draw.choice((1, 2, 5, 30)) :]


def _with_a_piece_again(draw: random.Random, line: bytes) -> bytes:
    start = draw.randrange(len(line) + 1)
    stop = start + draw.randrange(40)
    return line[:stop] + line[start:stop] + line[stop:]


def _strange_bytes(draw: random.Random, line: bytes) -> bytes:
    at = draw.randrange(len(line) + 1)
    return line[:at] + draw.choice(BYTES) + line[at:]


def _other_mark(draw: random.Random, line: bytes) -> bytes:
    """Drop or double a separator, or put one in place of another byte."""
    places = [at for at, byte in enumerate(line) if bytes([byte]) in MARKS] or [0]
    at = draw.choice((draw.choice(places), draw.randrange(len(line) + 1)))
    return line[:at] + draw.choice((b"", draw.choice(MARKS), draw.choice(MARKS) * 2)) + line[at + draw.randrange(2) :]


def _other_column(draw: random.Random, line: bytes) -> bytes:
    columns = line.split(b",")
    at = draw.randrange(len(columns))
    what = draw.choice(("integer", "key", "gone", "twice", "empty", "swapped", "label"))
    if what in ("integer", "key", "empty", "label"):
        labels = (b"0", b"1", b"2", b"01", b"", b"true", b"-0")
        columns[at] = draw.choice({"integer": INTEGERS, "key": KEYS, "empty": (b"",), "label": labels}[what])
    elif what == "gone":
        del columns[at]
    elif what == "twice":
        columns.insert(at, columns[at])
    else:
        draw.shuffle(columns)
    return b",".join(columns)


def _other_feature(draw: random.Random, line: bytes) -> bytes:
    """Rewrite the id or the weight of a feature, empty the feature, or rename its field."""
    head, comma, text = line.rpartition(b",")
    features = text.split(b"\x01")
    at = draw.randrange(len(features))
    name, _, tail = features[at].partition(b"\x02")
    raw_id, _, weight = tail.partition(b"\x03")
    what = draw.choice(("weight", "weight", "weight", "id", "name", "empty"))
    if what == "weight":
        weight = draw.choice((*WEIGHTS, repr(draw.uniform(-3, 3)).encode(), b"%.16e" % draw.uniform(-9, 9)))
    elif what == "id":
        raw_id = draw.choice((*INTEGERS, b"%d" % draw.randrange(2**63)))
    elif what == "name":
        name = draw.choice((b"", b"2050", b"20", b"205", b"101", b"127_14", b"127", b"\xff", b"a" * 300))
    features[at] = b"" if what == "empty" else name + b"\x02" + raw_id + b"\x03" + weight
    return head + comma + b"\x01".join(features)


def _without_features(draw: random.Random, line: bytes) -> bytes:
    head = line.rpartition(b",")[0]
    return (head.rpartition(b",")[0] + b",0," if draw.random() < 0.7 else head + b",") if b"," in head else line


def _with_carriage_return(draw: random.Random, line: bytes) -> bytes:
    return line + draw.choice((b"\r", b"\r", b"\r\r", b" ", b" \r"))


def _blank(draw: random.Random, line: bytes) -> bytes:
    return draw.choice((b"", b"\r", b" ", b",,,,,", b",,", b"\x00" * 50))


def _random_bytes(draw: random.Random, line: bytes) -> bytes:
    return draw.randbytes(draw.randrange(1, 200))


MUTATIONS: Sequence[Mutation] = (
    _flipped_bits, _cut, _without_a_piece, _with_a_piece_again, _strange_bytes, _other_mark, _other_column, _other_column,
    _other_feature, _other_feature, _other_feature, _other_feature, _without_features, _with_carriage_return, _blank,
    _random_bytes,
)  # fmt: skip


def mutated(draw: random.Random, line: bytes) -> bytes:
    """Apply one to three mutations to `line`; it may become several lines, or still be good."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        line = draw.choice(MUTATIONS)(draw, line)
    return line


def long_line(draw: random.Random, line: bytes) -> bytes:
    """Make a line of about a megabyte: features over and over, digits without end, or one byte."""
    head, _, features = line.replace(b"\n", b"").rpartition(b",")
    repeated = b"\x01".join([features] * (1_000_000 // (len(features) + 1) + 1))
    what = draw.randrange(4)
    if what == 0:
        return head + b"," + repeated
    if what == 1:
        return head + b"," + repeated + b"\x01205\x02"
    if what == 2:
        return head + b",702\x021\x030." + b"123456789" * 110_000
    return draw.choice((b"x", b",", b"\x00", b"7")) * 1_000_000


def mutated_log(seed: int, num_lines: int, share: float = 0.5, num_long: int = 1) -> RawLog:
    """Make a log of about `num_lines` lines, a `share` of them mutated, with `num_long` long ones in each table.

    Before that contexts and impressions are repeated, contexts are lost, and ids of impressions come in other contexts.
    """
    draw = random.Random(seed)
    log = random_log(seed, num_contexts=max(4, num_lines // 20), dirty=False, interleaved=draw.random() < 0.5)
    for table, lines in log.lines.items():
        if table.startswith("common_features"):
            lines[:] = [line for line in lines if draw.random() < 0.95]
        else:
            lines[:] = [_of_another_context(draw, line) if draw.random() < 0.02 else line for line in lines]
        for _ in range(max(1, len(lines) // 25)):
            lines.insert(draw.randrange(len(lines)), draw.choice(lines))
        lines[:] = [mutated(draw, line) if draw.random() < share else line for line in lines]
        for _ in range(num_long):
            lines.insert(draw.randrange(len(lines)), long_line(draw, draw.choice(lines)))
    log.ends = {table: b"\r\n" for table in log.lines if draw.random() < 0.3}
    log.terminated = draw.random() < 0.5
    return log


def _of_another_context(draw: random.Random, line: bytes) -> bytes:
    columns = line.split(b",")
    columns[3] = key_of(draw.randrange(10**6)).encode() if draw.random() < 0.5 else columns[3]
    columns[0] = b"%d" % draw.randrange(int(columns[0]) + 1)
    return b",".join(columns)
