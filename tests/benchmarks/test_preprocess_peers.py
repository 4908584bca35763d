"""The benchmark's other tools do the same work: on a log without dirt their datasets hold the numbers of ours."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.preprocess_peers.contents import contents
from benchmarks.preprocess_stages import stages
from pipeline.config.preprocess import PreprocessSettings
from pipeline.preprocess import preprocess


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "raw"
    command = [sys.executable, "-m", "jobs.simulate", f"out={path}", "impressions=2000", "seed=6", "dirt=0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="module")
def ours(
    spark: object,
    raw: Path,
    preprocess_settings: Callable[..., PreprocessSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, int]:
    out = tmp_path_factory.mktemp("peers") / "ours"
    manifest = preprocess(preprocess_settings(raw, out, "split.validation=0", "rows.max_impressions=8"))
    return contents(out / file.path for file in manifest.files)


@pytest.mark.parametrize("peer", ["python", "polars", "duckdb"])
def test_a_peers_dataset_holds_the_numbers_of_ours(peer: str, raw: Path, ours: dict[str, int], tmp_path: Path) -> None:
    if peer != "python":
        pytest.importorskip(peer)
    importlib.import_module(f"benchmarks.preprocess_peers.{peer}_peer").main(raw, tmp_path)
    assert contents(tmp_path / f"{period}.parquet" for period in ("train", "test")) == ours
    assert ours["impressions"] == 2000
    assert ours["item_id: values"] == 2000


def test_the_job_runs_under_the_clocks_of_its_stages(
    raw: Path, preprocess_settings: Callable[..., PreprocessSettings], tmp_path: Path
) -> None:
    found = stages(preprocess_settings(raw, tmp_path / "out"))
    assert {"parse", "encode records", "write Parquet", "vocabularies"} <= found.keys()
    assert all(seconds >= 0 for seconds in found.values())
