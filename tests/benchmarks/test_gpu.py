"""benchmarks.gpu runs on a CPU at a small size, so that on a GPU only the device is new."""

import re
from pathlib import Path

import pytest
from tiny_dataset import write_tiny_dataset

from benchmarks import gpu

pytestmark = [pytest.mark.slow, pytest.mark.acceptance]


def test_every_part_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=200, daction=True)
    gpu.measure({"device": "cpu", "data": str(tmp_path / "data"), "sizes": "64", "seconds": "0.01", "hidden": "8"})
    printed = capsys.readouterr()
    assert "failed" not in printed.out, printed.err
    assert "no time left" not in printed.out
    speeds = re.findall(r"^\| (esmm|esm2)([^|]*) \| 64 \| ([\d.]+) \| ([\d,]+) \|", printed.out, re.MULTILINE)
    assert len(speeds) == 6
    assert all(float(milliseconds) > 0 for _, _, milliseconds, _ in speeds)
    for line in (
        r"fed from Parquet, B=64: [\d,]+ impressions/s, waiting for data \d+%",
        r"plain PyTorch, .*: [\d.]+ ms a step",
        r"TorchRec, TrainPipelineSparseDist, .*: [\d.]+ ms a step",
        r"esm2 B=64: \d+ operators",
        r"relative difference 0\.0e\+00 at the first step",
        r"the same command again: \d files of the last checkpoint, none different",
        r"stopped after an epoch and resumed: \d files of the last checkpoint, none different",
    ):
        assert re.search(line, printed.out), f"{line} in:\n{printed.out}"
