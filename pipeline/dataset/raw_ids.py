"""Raw ids: the whole number that an id of the log is, from its text."""

import re

import xxhash

#: No raw id is larger, and none is negative.
LARGEST_ID = (1 << 63) - 1
_WHOLE_NUMBER = re.compile(r"(0|[1-9][0-9]{0,18})\Z")
_SEED_OF_TEXTS = 42  # that of Spark's xxhash64


def text_id(text: str) -> int:
    """Return the raw id of a text of an event log: the number that it is, or else the lower 63 bits of its XXH64.

    events/read.py::raw_id computes the same in Spark.
    """
    if _WHOLE_NUMBER.match(text) and int(text) <= LARGEST_ID:
        return int(text)
    return xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass"), _SEED_OF_TEXTS) & LARGEST_ID
