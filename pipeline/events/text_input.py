"""Read the text of CSV and JSON lines in tasks, by byte ranges of plain files; other files from beginning to end.

TextSplit ─blocks_of()─▶ bytes in UTF-8, as they come      CSV: a split begins where a row begins
          ─whole_lines()──▶ whole lines                       JSON lines: Hadoop's rule, by line feeds
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.chunks.sources import SourceFile, reading_source
from pipeline.config.tables import UTF8
from pipeline.errors import InputError

TEXT_BLOCK_BYTES = 2 << 20
_LINE_END = b"\n"


@dataclass(frozen=True)
class TextSplit:
    """The bytes [start, end) of a file; end None: to its end. `number` is the file's place in its table."""

    source: SourceFile
    number: int
    start: int = 0
    end: int | None = None


def can_be_split(source: SourceFile, encoding: str) -> bool:
    """Tell whether a task can begin in the middle of a file."""
    return not source.compressed and encoding == UTF8


def blocks_of(split: TextSplit, encoding: str, block_bytes: int = TEXT_BLOCK_BYTES) -> Iterator[bytes]:
    """Yield the bytes of a split in UTF-8, without a byte order mark.

    Bytes that `encoding` does not know stay what they are, so that they are no UTF-8 either: their row is rejected.
    Raises InputError where the file cannot be read or is in another encoding as a whole.
    """
    with reading_source(split.source) as stream:
        if split.start:
            stream.seek(split.start)
        raw = _raw_blocks(stream, split, block_bytes)
        if encoding == UTF8:
            first = next(raw, b"")
            yield first.removeprefix(codecs.BOM_UTF8) if not split.start else first
            yield from raw
        else:
            yield from _decoded_blocks(raw, split.source, encoding)


def _raw_blocks(stream: BinaryIO, split: TextSplit, block_bytes: int) -> Iterator[bytes]:
    left = None if split.end is None else split.end - split.start
    while left is None or left > 0:
        block = stream.read(block_bytes if left is None else min(block_bytes, left))
        if not block:
            return
        left = None if left is None else left - len(block)
        yield block


def _decoded_blocks(raw: Iterator[bytes], source: SourceFile, encoding: str) -> Iterator[bytes]:
    try:
        # A lone byte of UTF-16 says nothing about where the next character begins.
        errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        decoder = codecs.getincrementaldecoder(encoding)(errors)
        is_first = True
        for block in raw:
            text = decoder.decode(block)
            yield (text.removeprefix("\ufeff") if is_first else text).encode(errors="surrogateescape")
            is_first = is_first and not text
        yield decoder.decode(b"", final=True).encode(errors="surrogateescape")
    except UnicodeError as error:
        raise InputError(
            f"{source.path} is not in the encoding {encoding} ({error}); correct the encoding of its table."
        ) from error


def whole_lines(split: TextSplit, encoding: str) -> Iterator[bytes]:
    """Yield whole lines of about TEXT_BLOCK_BYTES together: those that begin in the split (Hadoop's rule)."""
    if split.start == 0 and split.end is None:
        yield from _cut_at_line_feeds(blocks_of(split, encoding))
        return
    # A line feed just before the start means that a line begins there. The last line may end behind the split.
    position, end = max(split.start - 1, 0), split.end if split.end is not None else split.source.bytes
    with reading_source(split.source) as stream:
        stream.seek(position)
        in_line = split.start > 0
        for lines in _cut_at_line_feeds(_raw_blocks(stream, TextSplit(split.source, split.number), TEXT_BLOCK_BYTES)):
            if in_line:
                behind = lines.find(_LINE_END) + 1
                position, lines = position + behind, lines[behind:]
                if not behind or position >= end:
                    return
                in_line = False
            last = lines.find(_LINE_END, end - 1 - position) + 1 if position + len(lines) >= end else 0
            mine = lines[:last] if last else lines
            yield mine.removeprefix(codecs.BOM_UTF8) if position == 0 else mine
            position += len(lines)
            if position >= end:
                return


def _cut_at_line_feeds(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut blocks at line feeds."""
    unfinished: list[bytes] = []
    for block in blocks:
        stop = block.rfind(_LINE_END) + 1
        if stop:
            yield b"".join([*unfinished, block[:stop]])
            unfinished = []
        if stop < len(block):
            unfinished.append(block[stop:])
    if unfinished:
        yield b"".join(unfinished)
