"""Where results of a run go: no evaluation overwrites that of another checkpoint, split or dataset."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from tiny_dataset import write_manifest, write_tiny_dataset
from tiny_run import tiny_settings

from pipeline.dataset.manifest import load_manifest
from pipeline.release import release
from training.distributed.world import join
from training.run.evaluate import evaluate_split
from training.run.provenance import METADATA_KEY, Provenance
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


def train(settings: TrainSettings) -> None:
    with join(settings.world) as world:
        Trainer(settings, world).fit()


def evaluate(settings: TrainSettings, which: str = "newest", data: Path | None = None, split: str = "test") -> None:
    with join(settings.world) as world:
        evaluate_split(Path(settings.out), settings, split, None, world, which, str(data) if data else None)


def files_of(run: Path) -> dict[str, bytes]:
    """The results of a run, by path; log, configuration and checkpoints are not among them."""
    kinds = ("*.json", "*.html", "*.parquet")
    found = [path for kind in kinds for path in run.rglob(kind) if "checkpoints" not in path.parts]
    return {str(path.relative_to(run)): path.read_bytes() for path in found if "dataset" not in path.parts}


def provenance_in(metrics: Path, predictions: Path) -> Provenance:
    """The provenance, which has to be the same in the figures, in the predictions and on the page."""
    found = json.loads(metrics.read_text())["provenance"]
    for file in predictions.glob("*.parquet"):
        assert json.loads(pq.read_schema(file).metadata[METADATA_KEY]) == found
    page = metrics.with_name("report.html").read_text()
    for name in ("checkpoint", "manifest_xxh3", "settings_xxh3", "version"):
        assert str(found[name]) in page, name
    return found


def test_each_checkpoint_split_and_dataset_has_a_place_of_its_own(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    write_tiny_dataset(data, num_contexts=60)
    settings = tiny_settings(data, run)
    settings.checkpoint.every_steps, settings.checkpoint.keep = 3, 9
    train(settings)
    evaluate(settings)
    first = files_of(run)
    assert first.keys() == {"metrics.test.json", "metrics.json", "report.html", "predictions/test/part-00000.parquet"}
    newest = provenance_in(run / "metrics.json", run / "predictions/test")
    assert (newest["split"], newest["chosen_as"], newest["version"]) == ("test", "newest", release())
    assert newest["manifest_xxh3"] == newest["trained_on_manifest_xxh3"] == load_manifest(data).xxh3
    assert release() != "unknown"

    other = tmp_path / "other"
    manifest = write_tiny_dataset(other, num_contexts=60)
    write_manifest(other, replace(manifest, settings={**manifest.settings, "note": "another day"}))
    evaluate(settings, "step-3")
    evaluate(settings, "best")
    evaluate(settings, data=other)
    now = files_of(run)
    assert {name: now[name] for name in first} == first
    best = next(path.name for path in (run / "evaluations").iterdir() if path.name not in ("test.step-00000003",))
    names = {path.name for path in (run / "evaluations").iterdir()}
    elsewhere = f"test.{newest['checkpoint']}.data-{load_manifest(other).xxh3[:8]}"
    assert {"test.step-00000003", elsewhere} < names
    assert len(names) == 3, best
    for name in names:
        found = provenance_in(run / f"evaluations/{name}/metrics.json", run / f"evaluations/{name}/predictions")
        assert found["checkpoint"] in name
        assert (found["manifest_xxh3"] == found["trained_on_manifest_xxh3"]) == (name != elsewhere)
    early = json.loads((run / "evaluations/test.step-00000003/metrics.json").read_text())
    assert early["provenance"]["step"] == 3
    assert early["ctr_log_loss"] != json.loads((run / "metrics.json").read_text())["ctr_log_loss"]

    evaluate(settings, split="validation")  # metrics.json and report.html are those of the latest split, as ever
    assert files_of(run)["metrics.test.json"] == first["metrics.test.json"]
    assert json.loads((run / "metrics.json").read_text())["split"] == "validation"


def test_the_default_result_of_an_earlier_checkpoint_is_kept_when_the_run_has_gone_on(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    write_tiny_dataset(data, num_contexts=60)
    settings = tiny_settings(data, run)
    train(settings)
    evaluate(settings)
    before = files_of(run)
    evaluate(settings)  # again: the same result in the same place
    assert files_of(run) == before
    train(replace(settings, epochs=2))
    evaluate(settings)
    earlier = json.loads(before["metrics.test.json"])["provenance"]["checkpoint"]
    kept = run / "evaluations" / f"test.{earlier}"
    assert (kept / "metrics.json").read_bytes() == before["metrics.test.json"]
    assert (kept / "predictions/part-00000.parquet").read_bytes() == before["predictions/test/part-00000.parquet"]
    assert json.loads((run / "metrics.json").read_text())["provenance"]["checkpoint"] > earlier
