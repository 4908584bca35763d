import numpy as np
import pytest

from pipeline.kernels.jit import nb
from pipeline.kernels.raw_memory import byte_at, put_word, word_at


@nb.njit
def load_and_store(source, target, position):  # type: ignore[no-untyped-def]
    put_word(target, position, word_at(source, position))
    return byte_at(source, position)


@pytest.mark.parametrize("position", range(9))
def test_words_and_bytes_are_loaded_and_stored_at_any_address(position: int) -> None:
    source = np.arange(0xF0, 0x100, dtype=np.uint8)  # above 127: a byte is not sign-extended
    target = np.zeros(16, np.uint8)
    byte = load_and_store(source.ctypes.data, target.ctypes.data, position)
    assert byte == source[position]
    expected = np.zeros(16, np.uint8)
    expected[position : position + 8] = source[position : position + 8]
    np.testing.assert_array_equal(target, expected)
