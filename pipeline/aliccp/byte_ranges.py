"""Cut the files of a log into input splits, and read a split as chunks of whole lines (Hadoop's split rule).

Every byte is looked at once or twice, however long a line is. Of a line that is longer than `source.max_line_bytes`
only the head is kept in memory.
"""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash

from pipeline.chunks.sources import InputSplit, SourceFile, reading_source

CHUNK_BYTES = 2 << 20
KEPT_BYTES = 64 << 10  # of a line that is too long: what the quarantine holds of it
_LINE_FEED = b"\n"
_STEP_BYTES = 4096  # the first read beyond the end of a split: only its last line lies there
_SKIP_BYTES = 1 << 16


class RawLines(NamedTuple):
    """Whole lines, each with its line feed; or the head of one line that is too long, with a line feed."""

    offset: int  # of the first line in the file
    text: bytes
    long_xxh3: int | None = None  # of a line that is too long: the hash of all its bytes


def input_splits(sources: list[SourceFile], split_bytes: int) -> list[InputSplit]:
    """Cut files into byte ranges of at most `split_bytes`.

    A gzip file can only be read from its beginning, and is one split.
    """
    splits = []
    for source in sources:
        step = max(source.bytes, 1) if source.compressed else split_bytes
        splits += [InputSplit(source, start, step) for start in range(0, source.bytes, step)]
    return splits


def read_chunks(split: InputSplit, max_line_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[RawLines]:
    """Read a split: yield whole lines of about `chunk_bytes`. Every chunk ends in a line feed, added if need be.

    Hadoop's rule: skip a line that begins in the split before, and finish the last line that begins in this one.
    Raises InputError if the file cannot be read.
    """
    # A gzip split's length counts compressed bytes: it reads to the end of the stream.
    end = None if split.source.compressed else split.start + split.length
    with reading_source(split.source) as stream:
        # A line feed just before the start means that a line begins at it.
        offset = first_line_at(stream, split.start - 1, split.start + split.length) if split.start else 0
        if offset is None:
            return
        unfinished: list[bytes] = []  # pieces of the line that begins at `offset`
        position, step = offset, _STEP_BYTES
        while end is None or offset < end:
            want = chunk_bytes if end is None else min(chunk_bytes, max(end - position, 0) + step)
            if end is not None and position >= end:
                step = min(2 * step, chunk_bytes)
            block = stream.read(want)
            position += len(block)
            if block and position - offset > max_line_bytes and _LINE_FEED not in block:
                line, block = _read_long_line(stream, [*unfinished, block], offset)
                yield line.lines
                unfinished, offset = [], offset + line.num_bytes
                position = offset + len(block)
                if end is not None and offset >= end:
                    return
                if line.is_last:
                    return
            elif not block:
                if unfinished:
                    yield from cut_long_lines(offset, b"".join([*unfinished, _LINE_FEED]), max_line_bytes)
                return
            before = position - len(block)
            stop = -1
            if end is not None and position >= end:
                stop = block.find(_LINE_FEED, max(end - 1 - before, 0))
            is_last = stop >= 0
            if not is_last:
                stop = block.rfind(_LINE_FEED)
            if stop >= 0:
                text = b"".join([*unfinished, block[: stop + 1]])
                yield from cut_long_lines(offset, text, max_line_bytes)
                offset += len(text)
                unfinished = []
            if is_last:
                return
            if stop + 1 < len(block):
                unfinished.append(block[stop + 1 :])


class _LongLine(NamedTuple):
    """A line that is too long, and how many bytes it takes in the file."""

    lines: RawLines
    num_bytes: int
    is_last: bool  # the file ends with it, without a line feed


def _read_long_line(stream: BinaryIO, pieces: Sequence[bytes], offset: int) -> tuple[_LongLine, bytes]:
    """Read a line that begins with `pieces` to its end; return it, and what was read behind it."""
    hashed, head, num_bytes = xxhash.xxh3_64(), b"", 0
    waiting = list(pieces)
    while True:
        block = waiting.pop(0) if waiting else stream.read(CHUNK_BYTES)
        found = block.find(_LINE_FEED)
        piece = block if found < 0 else block[:found]
        hashed.update(piece)
        head += piece[: KEPT_BYTES - len(head)]
        num_bytes += len(piece)
        if found >= 0 or not block:
            lines = RawLines(offset, head + _LINE_FEED, hashed.intdigest())
            return _LongLine(lines, num_bytes + (found >= 0), not block), block[found + 1 :]


def cut_long_lines(offset: int, text: bytes, max_line_bytes: int) -> Iterator[RawLines]:
    """Yield `text`, whole lines from `offset` on, cut around every line of more than `max_line_bytes`."""
    if len(text) <= max_line_bytes:
        yield RawLines(offset, text)
        return
    end_L = np.flatnonzero(np.frombuffer(text, np.uint8) == _LINE_FEED[0])
    length_L = np.diff(end_L, prepend=-1) - 1
    begin = 0
    for line in np.flatnonzero(length_L > max_line_bytes).tolist():
        end, length = int(end_L[line]), int(length_L[line])
        if end - length > begin:
            yield RawLines(offset + begin, text[begin : end - length])
        long_line = memoryview(text)[end - length : end]
        head = bytes(long_line[:KEPT_BYTES])
        yield RawLines(offset + end - length, head + _LINE_FEED, xxhash.xxh3_64_intdigest(long_line))
        begin = end + 1
    if begin < len(text):
        yield RawLines(offset + begin, text[begin:])


def first_line_at(stream: BinaryIO, offset: int, limit: int) -> int | None:
    """Move `stream` behind the first line feed in [offset, limit - 1), where a line begins; return its offset.

    Return None if there is none: no line begins before `limit`. Nothing is read beyond it, or a line of many splits would be read
    once in each.
    """
    stream.seek(offset)
    while offset < limit - 1 and (block := stream.read(min(_SKIP_BYTES, limit - 1 - offset))):
        found = block.find(_LINE_FEED)
        if found >= 0:
            stream.seek(offset + found + 1)
            return offset + found + 1
        offset += len(block)
    return None
