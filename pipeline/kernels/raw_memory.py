"""Load and store bytes and unaligned words of eight bytes, in kernels that take a text as an address.

numba counts references at every call of a function that takes an array, which is too slow in an innermost loop.
Nothing is checked here: the caller keeps the memory alive, and the kernel stays within it.
"""

from typing import Any

from llvmlite import ir

from pipeline.kernels.jit import nb

#: Eight bytes in a word.
WORD_BYTES = 8


@nb.extending.intrinsic
def word_at(typing: Any, address: Any, position: Any) -> Any:
    """Load the eight bytes from `address + position` on as uint64, the first one lowest."""
    return _load_intrinsic(64, nb.types.uint64)


@nb.extending.intrinsic
def byte_at(typing: Any, address: Any, position: Any) -> Any:
    """Load the byte at `address + position` as int64."""
    return _load_intrinsic(8, nb.types.int64)


def _load_intrinsic(bits: int, kind: Any) -> Any:
    """Return what an intrinsic returns: its signature, and the code of a load that need not be aligned."""

    def generate(conaddress: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.inttoptr(builder.add(*arguments), ir.IntType(bits).as_pointer())
        loaded = builder.load(address, align=1)
        return loaded if bits == 64 else builder.zext(loaded, ir.IntType(64))

    return kind(nb.types.int64, nb.types.int64), generate


@nb.extending.intrinsic
def put_word(typing: Any, address: Any, position: Any, word: Any) -> Any:
    """Store eight bytes from `address + position` on, the lowest first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(builder.add(*arguments[:2]), ir.IntType(64).as_pointer())
        builder.store(arguments[2], place, align=1)
        return context.get_dummy_value()

    return nb.types.void(nb.types.int64, nb.types.int64, nb.types.int64), generate
