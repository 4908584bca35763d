"""The files: row groups by impressions however the rows come, hashes as written, quarantine bytes that do not vary."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline.contexts.rows import ContextRows
from pipeline.storage.parquet_files import PartWriter, quarantine_batch, write_quarantine
from pipeline.storage.staged_file import StagedFile

SCHEMA = pa.schema([("row", pa.int64())])


def rows_of(first: int, impressions: Sequence[int]) -> ContextRows:
    count_NK = np.array([[number, 1, 0, 0] for number in impressions], np.int64).reshape(-1, 4)
    table = pa.table({"row": np.arange(first, first + len(impressions))}, schema=SCHEMA)
    return ContextRows(table, np.arange(first, first + len(impressions)), count_NK)


@pytest.mark.parametrize("seed", range(5))
def test_row_groups_are_cut_at_the_same_rows_however_the_rows_come(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    impressions = [draw.randrange(1, 9) for _ in range(300)]
    expected, reached = [[]], 0
    for number in impressions:
        if reached >= 40:
            expected.append([])
            reached = 0
        expected[-1].append(number)
        reached += number
    written = []
    for name, step in (("whole", 300), ("pieces", draw.randrange(1, 50))):
        writer = PartWriter(tmp_path / name, SCHEMA, 40, with_daction=False)
        for start in range(0, 300, step):
            rows = rows_of(start, impressions[start : start + step])
            writer.add(rows.table, rows.counts)
        file = writer.finish()
        assert file is not None
        content = (tmp_path / name).read_bytes()
        assert file == StagedFile(str(tmp_path / name), len(content), xxhash.xxh3_64_hexdigest(content))
        written.append((content, writer.row_groups))
        assert pq.read_table(tmp_path / name)["row"].to_pylist() == list(range(300))
    assert written[0] == written[1]
    assert [(group.rows, group.impressions) for group in written[0][1]] == [
        (len(group), sum(group)) for group in expected
    ]


def test_a_part_without_rows_leaves_no_file(tmp_path: Path) -> None:
    assert PartWriter(tmp_path / "part", SCHEMA, 40, with_daction=False).finish() is None
    assert not (tmp_path / "part").exists()


def test_quarantine_has_the_same_bytes_however_its_lines_come(tmp_path: Path) -> None:
    lines = [bytes([number % 256]) * 70_000 for number in range(300)]

    def written(step: int) -> bytes:
        path = tmp_path / f"{step}"
        batches = (
            quarantine_batch(["s"] * len(part), range(start, start + len(part)), ["bad_label"] * len(part), part)
            for start in range(0, 300, step)
            if (part := lines[start : start + step])
        )
        assert write_quarantine(path, batches).num_lines == 300
        return path.read_bytes()

    assert written(300) == written(7)
    assert pq.read_table(tmp_path / "7")["line"].to_pylist() == lines
