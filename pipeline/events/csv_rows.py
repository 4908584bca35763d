"""Parse CSV in tasks: text → the needed columns as texts, with every row that is none kept whole.

A row is rejected (CORRUPT has its bytes) if it has too many or too few fields, a quote that is not closed, text behind a
closing quote, or bytes that are no UTF-8. Blank lines are no rows.
"""

# Shapes: R rows, W wanted columns, F columns of the file.

import codecs
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.chunks.sources import reading_source
from pipeline.config.tables import UTF8, TableSettings
from pipeline.events import csv_kernel
from pipeline.events.csv_kernel import BAD_QUOTE, GOOD_ROW, ROW_END, ROW_REASON, ROW_START
from pipeline.events.text_input import TextSplit, blocks_of

MOST_ROW_BYTES = 16 << 20  # a quote that is not closed by then is a mistake
_LINE_ENDS = (10, 13)


@dataclass(frozen=True)
class CsvParser:
    """The task: the text of a split → batches of the wanted columns, and the bytes of rejected rows."""

    delimiter: str
    quote: str | None
    escape: str
    encoding: str
    has_header: bool  # the first row of a file is no data
    wanted: tuple[str, ...]

    @classmethod
    def of(cls, table: TableSettings, wanted: Sequence[str]) -> "CsvParser":
        """Make the parser of a table."""
        escape = table.escape or table.quote or ""
        return cls(table.delimiter, table.quote, escape, table.encoding, not table.header, tuple(wanted))

    def parse(self, split: TextSplit, columns: Sequence[str]) -> Iterator[tuple[list[pa.Array], pa.Array]]:
        """Yield (the wanted columns, the rejected bytes) of a split of a file with these columns."""
        slot_F = np.array([self.wanted.index(name) if name in self.wanted else -1 for name in columns], np.int64)
        skip = int(self.has_header and split.start == 0)
        for text, rows in self._tables(split, slot_F):
            tables = [table[skip:] for table in rows] if skip and len(rows[0]) else rows
            skip = skip if not len(rows[0]) else 0
            _reject_other_bytes(text, tables[0])
            yield self._columns(text, *tables), _rejected_rows(text, tables[0])

    def row_starts(self, split: TextSplit, num_columns: int, step: int) -> list[int]:
        """Find where rows begin: the first one of each `step` bytes of a file, which can be split there."""
        starts = [0]
        with reading_source(split.source) as stream:
            offset = len(codecs.BOM_UTF8) if stream.read(3) == codecs.BOM_UTF8 else 0
        for text, (row_R, _, _) in self._tables(split, np.full(num_columns, -1, np.int64)):
            for start in (row_R[:, ROW_START] + offset).tolist():
                if start >= (starts[-1] // step + 1) * step:
                    starts.append(start)
            offset += len(text)
        return starts

    def _tables(
        self, split: TextSplit, slot_F: np.ndarray
    ) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """Yield (bytes of whole rows, the tables of their rows and fields)."""
        delimiter = np.frombuffer(self.delimiter.encode(), np.uint8)
        quote, escape = (-1, -1) if self.quote is None else (ord(self.quote), ord(self.escape))
        num_wanted = len(self.wanted) if slot_F.max(initial=-1) >= 0 else 0
        unfinished = b""
        for block, is_last in _with_last(blocks_of(split, self.encoding)):
            text = np.frombuffer(unfinished + block, np.uint8)
            most = int(np.isin(text, _LINE_ENDS).sum()) + 1
            tables = csv_kernel.empty_tables(most, num_wanted)
            is_full = len(text) > MOST_ROW_BYTES
            num_rows, behind = csv_kernel.find_rows(
                text.ctypes.data, len(text), is_last, is_full, delimiter, quote, escape, slot_F, *tables
            )
            unfinished = text[behind:].tobytes()
            row_R, span_RW, form_RW = (table[:num_rows] for table in tables)
            yield text[:behind], (row_R, span_RW, form_RW)

    def _columns(self, text: np.ndarray, row_R: np.ndarray, span_RW: np.ndarray, form_RW: np.ndarray) -> list[pa.Array]:
        found = []
        escape = ord(self.escape) if self.quote else -1
        out, is_valid_R = np.empty(len(text), np.uint8), np.empty(len(row_R), np.bool_)
        for slot in range(span_RW.shape[1]):
            offset_R = np.empty(len(row_R) + 1, np.int32)
            length = csv_kernel.copy_fields(
                text.ctypes.data, slot, row_R, span_RW, form_RW, escape, out, offset_R, is_valid_R
            )
            values = pa.py_buffer(out[:length].tobytes())
            validity = pa.py_buffer(np.packbits(is_valid_R, bitorder="little"))
            found.append(pa.StringArray.from_buffers(len(row_R), pa.py_buffer(offset_R), values, validity))
        return found


def _with_last(blocks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each block, and whether it is the last one."""
    before = next(blocks, None)
    for block in blocks:
        yield before or b"", False
        before = block
    if before is not None:
        yield before, True


def _reject_other_bytes(text: np.ndarray, row_R: np.ndarray) -> None:
    """Reject the rows that are no UTF-8."""
    try:
        str(text.data, UTF8)
    except UnicodeDecodeError:
        for row in range(len(row_R)):
            try:
                str(text[row_R[row, ROW_START] : row_R[row, ROW_END]].data, UTF8)
            except UnicodeDecodeError:
                row_R[row, ROW_REASON] = BAD_QUOTE


def _rejected_rows(text: np.ndarray, row_R: np.ndarray) -> pa.Array:
    """Return the bytes of the rejected rows; null for the others."""
    lines: list[bytes | None] = [None] * len(row_R)
    for row in np.flatnonzero(row_R[:, ROW_REASON] != GOOD_ROW).tolist():
        lines[row] = text[row_R[row, ROW_START] : row_R[row, ROW_END]].tobytes()
    return pa.array(lines, pa.binary())


def header_of(split: TextSplit, table: TableSettings) -> list[str]:
    """Read the names of the columns: the first line that is not blank. Raises csv.Error and UnicodeError."""
    lines = _head_lines(split, table.encoding)
    if len(table.delimiter) > 1:
        line = next((line.rstrip("\r\n") for line in lines if line.strip()), "")
        return [name.strip(table.quote) if table.quote else name for name in line.split(table.delimiter)]
    quoting: Literal[0, 3] = csv.QUOTE_NONE if table.quote is None else csv.QUOTE_MINIMAL
    rows = csv.reader(lines, delimiter=table.delimiter, quotechar=table.quote, escapechar=table.escape, quoting=quoting)
    return next((row for row in rows if len(row) > 1 or "".join(row).strip()), [])


def _head_lines(split: TextSplit, encoding: str) -> Iterator[str]:
    """Yield the first lines of a file, as far as a row may reach."""
    head, num_bytes = b"", 0
    for block in blocks_of(split, encoding, 1 << 16):
        *lines, head = (head + block).splitlines(keepends=True) or [b""]
        if head.endswith(b"\n"):
            lines, head = [*lines, head], b""
        for line in lines:
            if b"\0" in line or line.startswith(b"PAR1"):
                raise csv.Error("it is Parquet" if line.startswith(b"PAR1") else "it is no text")
            yield line.decode()
        num_bytes += len(block)
        if num_bytes > MOST_ROW_BYTES:
            raise csv.Error("its first row does not end")
    if head:
        yield head.decode()
