"""Packed records come back as they were, and a blob has the layout that its module draws."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contexts.packing import pack_words, unpack_words

WORDS = st.lists(
    st.sampled_from([0, 1, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31)]) | st.integers(-(2**31), 2**31 - 1)
)


@settings(deadline=None)  # the first example waits for the compiler
@given(st.lists(WORDS, min_size=1))
def test_records_of_any_words_come_back(records: list[list[int]]) -> None:
    word_W = np.array([word for record in records for word in record], np.int32)
    begin_R = np.cumsum([0, *map(len, records)])
    blobs, packed_R = pack_words(word_W, begin_R)
    found_W, found_R = unpack_words(blobs, packed_R)
    assert found_W.tolist() == word_W.tolist()
    assert found_R.tolist() == begin_R.tolist()


def test_a_word_takes_as_many_bytes_as_it_needs_and_none_where_it_repeats_the_one_before() -> None:
    blobs, packed_R = pack_words(np.array([5, 5, 0x1234, 0x123456, 0x123456], np.int32), np.array([0, 5]))
    data = [5, 0x34, 0x12, 0x56, 0x34, 0x12, 0]
    codes = [1 | 0 << 2 | 2 << 4 | 3 << 6, 0]
    assert blobs.tolist() == [*data, *codes, 5, *[0] * 7]
    assert packed_R.tolist() == [0, len(blobs)]
