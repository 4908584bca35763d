"""Inputs that change under the job, or after it: the dataset of one state, or one sentence that names the file."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from event_log import written as written_events
from raw_log import random_log

import pipeline.preprocess
from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]
SMALL = ("rows.impressions_per_file=300", "source.split_bytes=20000")
NAME = "sample_skeleton_train.csv"

pytestmark = pytest.mark.usefixtures("spark")


def written(folder: Path, compressed: bool = False) -> Path:
    return random_log(4, num_contexts=30).write(folder / "raw", compressed=compressed)


def exchange_ids(path: Path) -> None:
    """Write other content of the same size: the ids of items in some lines."""
    whole = path.read_bytes()
    text = gzip.decompress(whole) if path.suffix == ".gz" else whole
    changed = text.replace(b"205\x021", b"205\x022")
    assert changed != text
    if path.suffix == ".gz":
        changed = gzip.compress(changed, mtime=0)
        changed = changed[: len(whole)].ljust(len(whole), b"\0")  # zeros behind a gzip stream are nothing
    path.write_bytes(changed)


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(path.read_bytes()[:500])


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def at(step: str, change: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `change` happen just before a step of the job."""
    function = getattr(pipeline.preprocess, step)

    def changed_before(*arguments: object) -> object:
        change()
        return function(*arguments)

    monkeypatch.setattr(pipeline.preprocess, step, changed_before)


@pytest.mark.parametrize(
    ("step", "change", "reader", "message"),
    [
        ("write_files", exchange_ids, "python", "changed while the job read it, so nothing was written; run again"),
        ("quarantine", exchange_ids, "python", "changed while the job read it"),
        pytest.param(
            "write_files", exchange_ids, "spark", "changed while the job read it", marks=pytest.mark.acceptance
        ),
        ("quarantine", exchange_ids, "spark", "changed while the job read it"),
        ("count", grow, "python", r"had \d+ bytes when the job began and has \d+ now"),
        pytest.param(
            "count", cut, "python", r"had \d+ bytes when the job began and has \d+ now", marks=pytest.mark.acceptance
        ),
        pytest.param(
            "quarantine",
            grow,
            "python",
            r"had \d+ bytes when the job began and has \d+ now",
            marks=pytest.mark.acceptance,
        ),
        ("write_files", Path.unlink, "python", "is gone since the job began; put it back"),
    ],
)
def test_a_file_that_changes_under_the_job_is_named_and_nothing_is_written(
    tmp_path: Path,
    preprocess_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    change: Callable[[Path], None],
    reader: str,
    message: str,
) -> None:
    raw = written(tmp_path)
    at(step, lambda: change(raw / NAME), monkeypatch)
    settings = preprocess_settings(raw, tmp_path / "out", *SMALL, f"source.reader={reader}")
    with pytest.raises(InputError, match=f"{NAME} {message}"):
        preprocess(settings)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_rerun_tells_a_touched_file_from_one_that_has_changed_at_the_same_size(
    tmp_path: Path, preprocess_settings: Settings, compressed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = written(tmp_path, compressed)
    path = raw / f"{NAME}{'.gz' if compressed else ''}"
    if compressed:  # room for the other content, which packs otherwise
        path.write_bytes(path.read_bytes() + bytes(20_000))
    settings = preprocess_settings(raw, tmp_path / "out", *SMALL)
    manifest = preprocess(settings)
    assert all(len(source.fingerprint) == 16 for source in manifest.sources)
    capsys.readouterr()
    assert preprocess(settings) == manifest
    assert "comparing" not in capsys.readouterr().out
    os.utime(path, ns=(1, 1))
    assert preprocess(settings) == manifest
    assert f"{path} was written or moved since" in capsys.readouterr().out
    record = tmp_path / "out" / "run.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:40])
    with pytest.raises(InputError, match=r"run\.json"):
        preprocess(settings)
    record.write_bytes(whole)
    exchange_ids(path)
    with pytest.raises(InputError, match=f"made with another {NAME}.* of the same size; choose another out"):
        preprocess(settings)
    settings.overwrite = True
    changed = preprocess(settings)
    assert changed.sources != manifest.sources
    assert [source.bytes for source in changed.sources] == [source.bytes for source in manifest.sources]


def test_the_fingerprint_of_a_file_depends_neither_on_splits_nor_on_the_reader_nor_on_gzip(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    found = []
    for number, (compressed, more) in enumerate(
        [(False, "source.split_bytes=777"), (False, "source.reader=spark"), (True, "source.split_bytes=100000")]
    ):
        raw = written(tmp_path / str(number), compressed)
        manifest = preprocess(preprocess_settings(raw, tmp_path / f"out{number}", more))
        found.append([source.fingerprint for source in manifest.sources])
    assert found[0] == found[1] == found[2]


def test_a_table_of_events_that_changes_under_the_job_or_after_it_is_named(
    tmp_path: Path, preprocess_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = written_events(tmp_path / "raw", "csv")
    settings = preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides)
    path = tmp_path / "raw" / "actions"
    whole = path.read_bytes()
    with monkeypatch.context() as patches:
        at("count", lambda: path.write_bytes(whole.replace(b"ada", b"eve")) and None, patches)
        with pytest.raises(InputError, match="raw/actions changed while the job read it"):
            preprocess(settings)
    assert not (tmp_path / "out" / "manifest.json").exists()
    path.write_bytes(whole)
    manifest = preprocess(settings)
    assert preprocess(settings) == manifest
    path.write_bytes(whole.replace(b"ada", b"eve"))
    with pytest.raises(InputError, match="made with another actions of the same size"):
        preprocess(settings)


def test_a_dataset_of_an_earlier_release_without_fingerprints_is_finished_as_before(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw = written(tmp_path)
    settings = preprocess_settings(raw, tmp_path / "out", *SMALL)
    preprocess(settings)
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    del content["content_xxh3"]
    for source in content["sources"]:
        del source["fingerprint"]
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    assert preprocess(settings).to_json() == path.read_text()
