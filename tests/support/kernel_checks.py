"""Hold the byte kernel against its slow twin, line by line: fields, ids, weights bit for bit, labels, counts, reasons."""

from collections import Counter

import numpy as np
from references.aliccp import lines_of, read_line

from pipeline.aliccp import parse
from pipeline.aliccp.byte_ranges import read_chunks
from pipeline.aliccp.field_probe import names_of
from pipeline.chunks import line_columns
from pipeline.chunks.reasons import REASONS
from pipeline.chunks.sources import InputSplit
from pipeline.features.fields import Catalogue


def assert_kernel_equals_reference(
    text: bytes, is_skeleton: bool, catalogue: Catalogue, needs_labels: bool = True
) -> Counter[str]:
    """Parse `text` as one chunk; count its lines by reason, "" for the good ones."""
    return assert_chunks_equal_reference(
        [(0, text if text.endswith(b"\n") else text + b"\n")], text, is_skeleton, catalogue, needs_labels
    )


def assert_splits_equal_reference(
    splits: list[InputSplit], chunk_bytes: int, text: bytes, is_skeleton: bool, catalogue: Catalogue
) -> Counter[str]:
    """Do the same for `text` in the file of `splits`, read in chunks."""
    chunks = [lines[:2] for split in splits for lines in read_chunks(split, 1 << 20, chunk_bytes)]
    return assert_chunks_equal_reference(chunks, text, is_skeleton, catalogue)


def assert_chunks_equal_reference(
    chunks: list[tuple[int, bytes]], text: bytes, is_skeleton: bool, catalogue: Catalogue, needs_labels: bool = True
) -> Counter[str]:
    """Parse `chunks`: (offset in `text`, whole lines)."""
    scope = "impression" if is_skeleton else "context"
    names = names_of(catalogue, scope)
    arity_of = {entry.raw_id: entry.arity for entry in catalogue.of_scope(scope)}
    raw_ids = [entry.raw_id for entry in catalogue.fields]
    lines = lines_of(text)
    reasons: Counter[str] = Counter()
    for chunk_offset, chunk in chunks:
        parsed = parse.parse(chunk, is_skeleton, names, needs_labels)
        begin = 0
        for row in parsed.line_table.tolist():
            offset, raw = next(lines)
            line = read_line(offset, raw, is_skeleton, arity_of, needs_labels)
            reasons[line.reason] += 1
            assert (chunk_offset + row[line_columns.START], chunk_offset + row[line_columns.END]) == (
                offset,
                offset + len(raw),
            )
            assert REASONS[row[line_columns.REASON]] == line.reason, raw
            assert (f"{row[line_columns.KEY] % 2**64:016x}" if row[line_columns.HAS_KEY] else None) == line.key, raw
            chosen = slice(begin, row[line_columns.VALUES_END])
            begin = row[line_columns.VALUES_END]
            found = [raw_ids[number] for number in parsed.field_V[chosen].tolist()]
            assert list(zip(found, parsed.id_V[chosen].tolist(), strict=True)) == [value[:2] for value in line.values]
            weights = np.array([weight for _, _, weight in line.values], np.float32)
            assert parsed.weight_V[chosen].tobytes() == weights.tobytes(), raw
            if not line.reason:
                counts = (bool(row[line_columns.MISMATCH]), row[line_columns.UNKNOWN], row[line_columns.REPEATED])
                assert counts == (line.mismatch, line.unknown, line.repeated), raw
                assert (row[line_columns.SAMPLE_ID], row[line_columns.LABEL_FLAGS]) == (
                    line.sample_id,
                    line.click + 2 * line.buy,
                ), raw
    assert next(lines, None) is None
    return reasons
