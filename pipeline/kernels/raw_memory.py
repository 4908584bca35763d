"""Bytes and unaligned words of eight bytes, from and to memory, for kernels that take a text as an address.

With arrays as arguments of functions in the innermost loop, numba counts references at every call. The caller keeps what lies
at the address alive, and the kernel stays inside: nothing is checked here.
"""

from typing import Any

from llvmlite import ir

from pipeline.kernels.jit import nb

#: Eight bytes in a word.
WORD_BYTES = 8


@nb.extending.intrinsic
def word_at(typing: Any, address: Any, position: Any) -> Any:
    """The eight bytes from `address + position` on, the first one lowest."""
    return _load(64, nb.types.uint64)


@nb.extending.intrinsic
def byte_at(typing: Any, address: Any, position: Any) -> Any:
    """The byte at `address + position`."""
    return _load(8, nb.types.int64)


def _load(bits: int, kind: Any) -> Any:
    """An intrinsic's result: a load from an address and an offset, which need not be aligned."""

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
