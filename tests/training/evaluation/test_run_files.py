"""What is read back from a run: damaged figures are refused in one sentence."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from training.evaluation.run_files import read_metrics


@pytest.mark.parametrize("content", ["[]", "3", "{", "\xff"])
def test_a_metrics_file_without_figures_by_name_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.test.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"metrics\.test\.json .*; write them with: python -m jobs\.evaluate run="):
        read_metrics(tmp_path, "test")
