"""Planted dirty lines: a few of every kind that the pipeline must find, and the offset of each.

Rejected kinds are extra lines, each standing after a good line of the same chunk, so that no good line is lost by them;
kinds that are kept (a conversion without a click, a wrong number of features) change a good line in place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Damage = Callable[[list[bytes], int, bytes], bytes]

# Each takes the columns of a good line, the number of the variant, and the key of a context that does not exist.
# It returns the dirty line without its end.


def _malformed_skeleton(columns: list[bytes], variant: int, no_key: bytes) -> bytes:
    without_key = columns[:3] + columns[4:]
    return (b"", b",".join(without_key), b",".join([b"x" + columns[0], *columns[1:]]), b",".join([*columns, b""]))[
        variant % 4
    ]


def _bad_label(columns: list[bytes], variant: int, no_key: bytes) -> bytes:
    click, buy = ((b"2", b"0"), (b"", b"0"), (b"0", b"x"), (b"1", b"-1"))[variant % 4]
    return b",".join([columns[0], click, buy, *columns[3:]])


def _bad_feature(columns: list[bytes], variant: int, no_key: bytes) -> bytes:
    head, _, tail = columns[-1].rpartition(b"\x02")
    raw_id, _, value = tail.partition(b"\x03")
    features = (
        head + raw_id + b"\x03" + value,
        head + b"\x02" + raw_id + value,
        head + b"\x02x" + raw_id + b"\x03" + value,
        head + b"\x02" + raw_id + b"\x03nan",
        head + b"\x02" + raw_id + b"\x031.0e",
        head + b"\x02" + raw_id + b"\x03",
    )[variant % 6]
    return b",".join([*columns[:-1], features])


def _bad_feature_of_no_context(columns: list[bytes], variant: int, no_key: bytes) -> bytes:
    return _bad_feature([no_key, *columns[1:]], variant, no_key)


def _bad_key(place: int) -> Damage:
    def damage(columns: list[bytes], variant: int, no_key: bytes) -> bytes:
        key = (no_key[:15], b"A" + no_key[1:], b"g" + no_key[1:], no_key + b"0", b"")[variant % 5]
        return b",".join([*columns[:place], key, *columns[place + 1 :]])

    return damage


def _missing_context(columns: list[bytes], variant: int, no_key: bytes) -> bytes:
    return b",".join([*columns[:3], no_key, *columns[4:]])


def _copy_bytes(columns: list[bytes], variant: int, no_key: bytes) -> bytes:
    return b",".join(columns)


def _malformed_context(columns: list[bytes], variant: int, no_key: bytes) -> bytes:
    return (b"", b",".join([columns[0], columns[2]]), b",".join([*columns, b""]), columns[0])[variant % 4]


def _conversion_without_click(columns: list[bytes], variant: int, no_key: bytes) -> bytes:
    return b",".join([columns[0], b"0", b"1", *columns[3:]])


def _wrong_number(columns: list[bytes], variant: int, no_key: bytes) -> bytes:
    return b",".join([*columns[:-2], b"%d" % (int(columns[-2]) + 1 + variant % 3), columns[-1]])


#: Extra lines by reason, for each table; those in _FRESH_ID get a sample id that no good line has.
EXTRA: Mapping[str, Mapping[str, Damage]] = {
    "sample_skeleton": {
        "malformed_line": _malformed_skeleton,
        "bad_label": _bad_label,
        "bad_feature": _bad_feature,
        "bad_context_key": _bad_key(3),
        "missing_context": _missing_context,
        "duplicate_impression": _copy_bytes,
    },
    "common_features": {
        "malformed_line": _malformed_context,
        "bad_feature": _bad_feature_of_no_context,
        "bad_context_key": _bad_key(0),
        "duplicate_context": _copy_bytes,
    },
}
#: Lines changed in place.
CHANGED: Mapping[str, Mapping[str, Damage]] = {
    "sample_skeleton": {
        "conversion_without_click": _conversion_without_click,
        "feature_count_mismatch": _wrong_number,
    },
    "common_features": {"feature_count_mismatch": _wrong_number},
}
_FRESH_ID = ("malformed_line", "bad_label", "bad_feature", "bad_context_key", "missing_context")
LEAST_PER_REASON = 2


@dataclass(frozen=True)
class PlantedLine:
    """One dirty line: its offset from the chunk's first byte, and the reason it is dirty."""

    offset: int
    reason: str


def plan_counts(table: str, share: float, lines: int) -> dict[str, int]:
    """Choose how many lines to plant for each reason in a file of `lines` good lines: at least two of each, or none."""
    reasons = [*EXTRA[table], *CHANGED[table]]
    each = max(LEAST_PER_REASON, round(share * lines / len(reasons))) if share > 0 else 0
    return dict.fromkeys(reasons, each)


def plant(
    table: str,
    text: np.ndarray,
    ends_L: np.ndarray,
    counts: Mapping[str, int],
    rng: np.random.Generator,
    fresh_id: int,
    no_key: Callable[[int], bytes],
    unclicked_L: np.ndarray | None = None,
) -> tuple[list[memoryview], list[PlantedLine]]:
    """Plant `counts` dirty lines among the chunk's L good lines in `text` (uint8), using each line at most once.

    `fresh_id` + n is a free sample id and `no_key(n)` a key of no context, for every line n of the chunk. Returns the
    pieces to write one after the other, and the planted lines in file order. A chunk with too few lines gets fewer.
    """
    chosen = _choose_lines(counts, rng, len(ends_L), unclicked_L)
    pieces, planted, done, shift = [], [], 0, 0
    for variant, (line, reason) in enumerate(sorted(chosen.items())):
        begin, end = (int(ends_L[line - 1]) if line else 0), int(ends_L[line])
        in_place = reason in CHANGED[table]
        columns = text[begin : end - 1].tobytes().split(b",")
        if table == "sample_skeleton" and reason in _FRESH_ID:
            columns[0] = b"%d" % (fresh_id + line)
        damage = (CHANGED if in_place else EXTRA)[table][reason]
        dirty = damage(columns, variant, no_key(line)) + b"\n"
        upto = begin if in_place else end
        pieces += [text[done:upto].data, memoryview(dirty)]
        planted.append(PlantedLine(upto + shift, reason))
        shift += len(dirty) - (end - upto)
        done = end
    return [*pieces, text[done:].data], planted


def _choose_lines(
    counts: Mapping[str, int], rng: np.random.Generator, lines: int, unclicked_L: np.ndarray | None
) -> dict[int, str]:
    """Choose distinct lines: line → reason. A conversion without a click is planted in an unclicked line."""
    free = rng.permutation(lines).tolist()
    chosen: dict[int, str] = {}
    for reason, count in counts.items():
        fit = free
        if reason == "conversion_without_click" and unclicked_L is not None:
            fit = [line for line in free if unclicked_L[line]]
        chosen.update(dict.fromkeys(fit[:count], reason))
        free = [line for line in free if line not in chosen]
    return chosen
