"""Cut the files of a log into input splits, and read a split as chunks of whole lines (Hadoop's split rule)."""

from collections.abc import Iterator
from typing import BinaryIO

from pipeline.chunks.sources import InputSplit, SourceFile

CHUNK_BYTES = 2 << 20


def input_splits(sources: list[SourceFile], split_bytes: int) -> list[InputSplit]:
    """Cut files into byte ranges of at most `split_bytes`.

    A gzip file can only be read from its beginning, and is one split.
    """
    splits = []
    for source in sources:
        step = max(source.bytes, 1) if source.compressed else split_bytes
        splits += [InputSplit(source, start, step) for start in range(0, source.bytes, step)]
    return splits


def read_chunks(split: InputSplit, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, bytes]]:
    """Read a split: yield (offset, whole lines of about `chunk_bytes`). Every chunk ends in a line feed, added if need be.

    Hadoop's rule: skip a line that begins in the split before, and finish the last line that begins in this one.
    """
    # A gzip split's length counts compressed bytes: it reads to the end of the stream.
    end = None if split.source.compressed else split.start + split.length
    with split.source.open() as stream:
        offset = _skip_partial_line(stream, split.start, chunk_bytes)
        pending = b""
        while end is None or offset < end:
            # Read little beyond the end of the split: only its last line lies there.
            want = chunk_bytes if end is None else min(chunk_bytes, max(end - offset - len(pending), 0) + 4096)
            block = stream.read(want)
            if not block:
                if pending:
                    yield offset, pending + b"\n"
                return
            searched = len(pending)
            pending += block
            stop = -1
            if end is not None and offset + len(pending) >= end:
                stop = pending.find(b"\n", max(end - 1 - offset, 0))
            is_last = stop >= 0
            if not is_last:
                stop = pending.rfind(b"\n", searched)
            if stop >= 0:
                yield offset, pending[: stop + 1]
                offset += stop + 1
                pending = pending[stop + 1 :]
            if is_last:
                return


def _skip_partial_line(stream: BinaryIO, start: int, chunk_bytes: int) -> int:
    """Move `stream` to the first line that begins at `start` or later; return its offset."""
    if start == 0:
        return 0
    offset = start - 1  # a line feed just before the start means that a line begins at it
    stream.seek(offset)
    while block := stream.read(min(chunk_bytes, 65536)):
        found = block.find(b"\n")
        if found >= 0:
            stream.seek(offset + found + 1)
            return offset + found + 1
        offset += len(block)
    return offset
