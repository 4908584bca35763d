"""jobs.export: write the folder beside its name, ask it what the feed and the scorer were asked, and rename it.

EXPORT/
  model.pt2  model.aoti.pt2  model.onnx    the graph, in the formats that could be made
  schema.json                              fields, ids, outputs, source
  calibrator.json                          the curves of the outputs, where calibrator=true
  vocabulary/                              raw id → row
  scoring.py  server.py                    raw values → probabilities; a reference server
  example_request.json  example_answer.json
  check.json                               what was compared, and the largest differences
"""

import json
import os
import shutil
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from pipeline.atomic_files import sync_directory, write_whole
from pipeline.dataset.kinds import BUCKETIZED, STORED_KINDS
from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError, reading, show_as, with_addresses, writing
from pipeline.locations import is_address
from pipeline.object_files import ObjectFiles, check_address
from pipeline.scratch import scratch_folder
from pipeline.undo import undone_by
from training.checkpoint.remote_run import local_run
from training.evaluation.calibrators import CALIBRATOR_FILE, Calibrator, read_calibrator
from training.export import check
from training.export.lookup_files import save_lookup
from training.export.samples import RawValuesOfRows, SampleRequest, samples_of_dataset
from training.export.schema import form_of, schema_of_export
from training.export.settings import ExportSettings
from training.export.trace import save_graphs
from training.run.dataset_copy import check_dataset, dataset_of
from training.run.run_folder import load_settings
from training.run.settings import TrainSettings
from training.serving.open_run import open_scorer, read_ids
from training.serving.scorer import Scorer

_CHECK_FILE = "check.json"
_STANDALONE = ("scoring.py", "server.py")
_NUM_MADE_UP, _MADE_UP_CANDIDATES = 40, (1, 2, 7, 40)
_EXAMPLE_CANDIDATES = 3


@dataclass(frozen=True)
class _CalibratedScorer:
    """What an export with a calibrator has to answer."""

    scorer: Scorer
    calibrator: Calibrator

    def predict(self, context: dict[str, Any], candidates: list[dict[str, Any]]) -> check.ScoreColumns:
        return dict(self.calibrator.apply(self.scorer.predict(context, candidates)))


@dataclass(frozen=True)
class _Asked:
    """The requests of the check, and what the scorer answers."""

    samples: list[SampleRequest]
    expected: check.ScoreColumns


def export_run(settings: ExportSettings) -> Iterator[str]:
    """Export a run; yield lines about it. Raises InputError where that is not possible, and leaves no folder then.

    An export at an address is written here and goes up file by file; check.json is the last, and makes it one.
    """
    run = local_run(settings.run, "run", settings.checkpoint)
    if not is_address(settings.out):
        out = Path(settings.out)
        yield from map(with_addresses, _export_to(out, run, settings))
        return
    files = _empty_place(settings.out)
    out = scratch_folder() / uuid4().hex / files.location.rpartition("/")[2]
    out.parent.mkdir(parents=True)
    show_as(str(out), files.location)
    yield from map(with_addresses, _export_to(out, run, settings))
    _upload_export(out, files)
    yield f"{files.location} is complete."


def _empty_place(address: str) -> ObjectFiles:
    """Open the address of a new export. Raises InputError where there is one, or files that are no remains of one."""
    check_address("out", address)
    files = ObjectFiles(address.rstrip("/"))
    with reading(address):
        names = {found.name for found in files.list_files()}
    if _CHECK_FILE in names:
        raise InputError(f"out={address} is there already; choose another address, or remove it.")
    ours = ("vocabulary/", "model.", "schema.json", "example_", *_STANDALONE, CALIBRATOR_FILE)
    if strange := sorted(name for name in names if not name.startswith(ours)):
        raise InputError(f"out={address} has other files ({strange[0]}); choose another address, or remove them.")
    return files


def _upload_export(folder: Path, files: ObjectFiles) -> None:
    """Bring an export to its address: first what an export that was killed has left there goes, last comes check.json."""
    with writing(f"out={files.location}"):
        for found in files.list_files():
            files.remove(found.name)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != _CHECK_FILE:
                files.upload(path, path.relative_to(folder).as_posix())
        files.put(_CHECK_FILE, (folder / _CHECK_FILE).read_bytes())


def _export_to(out: Path, run: Path, settings: ExportSettings) -> Iterator[str]:
    trained = load_settings(run)
    scorer = open_scorer(run, settings.checkpoint)
    _check_exportable(scorer)
    if out.exists() or out.is_symlink():
        raise InputError(f"out={out} is there already; choose another folder, or remove it.")
    data = settings.data or trained.data
    if settings.check_impressions:
        check_dataset(scorer.checkpoint, load_manifest(data), data)
    location, _ = dataset_of(run, trained.data)
    values = RawValuesOfRows(location, scorer.manifest)
    served = scorer
    if settings.tables == "int8":
        served = copy(scorer)
        served.network = scorer.network.with_int8_tables()
    calibrator = _fitted_calibrator(run, scorer) if settings.calibrator else None
    staging = out.with_name(f".{out.name}.tmp")
    with undone_by(lambda: shutil.rmtree(staging, ignore_errors=True)), writing(f"out={out}"):
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(parents=True)
            made_up = _made_up(values)
            files, left_out = _write_folder(staging, location, served, settings, made_up, calibrator)
            for name, why in left_out.items():
                yield f"{name} is left out: {why}."
            report: dict[str, Any] = {}
            yield from _compared(
                staging, settings, trained, scorer, served, calibrator, values, made_up, list(files), report
            )
            write_whole(staging / _CHECK_FILE, json.dumps(report, indent=1) + "\n")
            for entry in [*staging.rglob("*"), staging]:
                _to_disk(entry)
            os.rename(staging, out)
            sync_directory(out.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    serve = "copy it to a directory, and serve it with: python server.py"
    if not is_address(settings.out):
        serve = f"serve it with: python {out / 'server.py'}"
    yield f"{out}: {', '.join(files)}; {serve}"


def _check_exportable(scorer: Scorer) -> None:
    for entry in scorer.manifest.fields:
        if STORED_KINDS[entry.kind].of_number and form_of(entry) == "bucket" and entry.kind != BUCKETIZED:
            raise InputError(
                f"{entry.name} is {entry.kind}, and an export maps numbers to rows by boundaries alone; score it with "
                "training.load."
            )


def _fitted_calibrator(run: Path, scorer: Scorer) -> Calibrator:
    """Read RUN/calibrator.json. Raises InputError where there is none, or it was fitted on another checkpoint."""
    path, checkpoint = run / CALIBRATOR_FILE, scorer.checkpoint.path.name
    remedy = f"fit it by jobs.evaluate run={run} calibrator=platt (or isotonic), or leave calibrator out."
    if not path.exists():
        raise InputError(f"calibrator=true: {path} is missing; {remedy}")
    found = read_calibrator(path, remedy)
    if (fitted := found.fitted_on.get("checkpoint")) != checkpoint:
        raise InputError(f"calibrator=true: {path} was fitted on {fitted}, and {checkpoint} is exported; {remedy}")
    return found


def _made_up(values: RawValuesOfRows) -> list[SampleRequest]:
    random = np.random.default_rng(1)
    sizes = [_MADE_UP_CANDIDATES[number % len(_MADE_UP_CANDIDATES)] for number in range(_NUM_MADE_UP)]
    return [SampleRequest({}, [{}]), SampleRequest({}, [{}, {}]), *(values.made_up(random, size) for size in sizes)]


def _write_folder(
    folder: Path,
    location: str,
    scorer: Scorer,
    settings: ExportSettings,
    made_up: list[SampleRequest],
    calibrator: Calibrator | None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Write all but check.json; return format → file, and format → why it is left out."""
    several = made_up[-4:]
    assert scorer.requests is not None
    example = scorer.requests.encode([one.context for one in several], [one.candidates for one in several])
    files, left_out = save_graphs(scorer.network, example, folder, settings.formats)
    if not files:
        raise InputError(f"formats={settings.formats}: {'; '.join(left_out.values())}; add pt2, which needs nothing.")
    vocabularies = {
        entry.name: save_lookup(folder, entry.name, ids.id_N)
        for entry, ids in zip(scorer.manifest.fields, read_ids(location, scorer.manifest), strict=True)
        if entry.vocabulary
    }
    if calibrator:
        calibrator.write(folder / CALIBRATOR_FILE)
    schema = schema_of_export(scorer, files, vocabularies, settings.tables, CALIBRATOR_FILE if calibrator else None)
    write_whole(folder / "schema.json", json.dumps(schema, indent=1) + "\n")
    for name in _STANDALONE:
        shutil.copyfile(Path(__file__).parent / "standalone" / name, folder / name)
    context, candidates = made_up[-1].context, made_up[-1].candidates[:_EXAMPLE_CANDIDATES]
    found = (_CalibratedScorer(scorer, calibrator) if calibrator else scorer).predict(context, candidates)
    answer = {name: column.tolist() for name, column in found.items()}
    for name, content in (("request", {"context": context, "candidates": candidates}), ("answer", answer)):
        write_whole(folder / f"example_{name}.json", json.dumps(content, indent=1) + "\n")
    return files, left_out


def _compared(
    folder: Path,
    settings: ExportSettings,
    trained: TrainSettings,
    scorer: Scorer,
    served: Scorer,
    calibrator: Calibrator | None,
    values: RawValuesOfRows,
    made_up: list[SampleRequest],
    formats: list[str],
    report: dict[str, Any],
) -> Iterator[str]:
    """Compare all ways; yield what was found, and fill `report` with it."""
    precision, data = trained.precision, settings.data or trained.data
    samples = list(made_up)
    differences: dict[str, float] = {}
    if settings.check_impressions:
        split = _split_of(scorer)
        ids, expected = check.scores_of_the_feed(trained, scorer, data, split, settings.check_impressions)
        rows = list(samples_of_dataset(data, scorer.manifest, split, values, len(ids)))
        if [number for sample in rows for number in sample.impression_ids] != ids.tolist():
            raise InputError(
                f"data={data}: the feed and the files of {split} have other impressions; preprocess it again."
            )
        differences["feed"] = check.require_equal(
            "jobs.evaluate's way and training.load", expected, check.answers_of(scorer, rows), precision
        )
        samples += rows
        report |= {"split": split, "impressions": len(ids)}
    answering = _CalibratedScorer(served, calibrator) if calibrator else served
    asked = _Asked(samples, check.answers_of(answering, samples))
    for name in formats:
        found = check.answers_of(check.exported_model(folder, name), asked.samples)
        differences[name] = check.require_equal(f"training.load and {name}", asked.expected, found, precision)
    report |= {
        "made_up_impressions": sum(len(sample.candidates) for sample in made_up),
        "largest_difference": differences,
    }
    compared = ", ".join(f"{name} {difference:.2g}" for name, difference in differences.items())
    count = report["made_up_impressions"] + report.get("impressions", 0)
    yield f"{count:,} impressions from raw values; largest differences from training.load: {compared}"
    if served is not scorer and settings.check_impressions:
        count, (before, after) = check.aucs_of([scorer, served], data, scorer.manifest, report["split"])
        report["int8"] = {"impressions": count, "fp32": before, "int8": after}
        losses = ", ".join(f"{name} {before[name]:.5f} → {after[name]:.5f}" for name in before)
        yield f"int8 tables, over {count:,} impressions of {report['split']}: {losses}"


def _split_of(scorer: Scorer) -> str:
    """Choose the split of the check: test, or another where there is none."""
    present = {file.split for file in scorer.manifest.files}
    return next(split for split in ("test", "validation", "train") if split in present)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
