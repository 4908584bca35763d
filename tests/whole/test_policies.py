"""Every reason of DESIGN §3.4 with every policy that it may have: what is written, rejected, counted, or stops the job."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dataset_checks import assert_dataset_equals_reference
from raw_log import RawLog, key_of, small_log

from pipeline.chunks.reasons import NEWER_REASONS, REASONS, rules_of
from pipeline.config.preprocess import ChecksSettings, PreprocessSettings
from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from pipeline.preprocess import preprocess

Settings = Callable[..., PreprocessSettings]
SKELETON, CONTEXT = "sample_skeleton_test", "common_features_test"
#: The reasons of source=aliccp; the others are of events (tests/pipeline/events/test_meaning.py).
OF_ALICCP = tuple(reason for reason in REASONS[1:] if reason not in NEWER_REASONS)
MAY_BE_KEPT = ("feature_count_mismatch", "conversion_without_click")

pytestmark = pytest.mark.usefixtures("spark")


@dataclass(frozen=True)
class Planted:
    """A line with one defect, at the end of its table."""

    reason: str
    table: str
    line: bytes


def planted() -> list[Planted]:
    """Each reason in each table that can have it, in the order of the log."""
    impression, context = (small_log().lines[table][0] for table in (SKELETON, CONTEXT))
    fresh = b"99" + impression[1:]
    other = key_of(3).encode() + context[16:]
    found = [
        ("malformed_line", CONTEXT, other + b","),
        ("bad_context_key", CONTEXT, other.upper().replace(b"A", b"g")),
        ("bad_feature", CONTEXT, other.replace(b"\x02", b"")),
        ("feature_count_mismatch", CONTEXT, other.replace(b",1,", b",2,")),
        ("duplicate_context", CONTEXT, context),
        ("malformed_line", SKELETON, b""),
        ("bad_label", SKELETON, fresh.replace(b",1,1,", b",1,2,")),
        ("bad_context_key", SKELETON, fresh.replace(key_of(1).encode(), b"soon")),
        ("bad_feature", SKELETON, fresh.replace(b"0.5", b"nan")),
        ("feature_count_mismatch", SKELETON, b"1" + fresh.replace(b",2,", b",3,")),
        ("conversion_without_click", SKELETON, b"2" + fresh.replace(b",1,1,", b",0,1,")),
        ("missing_context", SKELETON, fresh.replace(key_of(1).encode(), key_of(9).encode())),
        ("duplicate_impression", SKELETON, impression),
    ]
    return [Planted(*entry) for entry in found]


def log_with(lines: list[Planted]) -> tuple[RawLog, dict[Planted, int]]:
    """A small log that has nothing else wrong with it, and the byte offset of each planted line."""
    log = small_log()
    for period in ("train", "test"):
        log.lines[f"sample_skeleton_{period}"] = [
            line.replace(b",0,1,", b",0,0,") for line in log.lines[f"sample_skeleton_{period}"]
        ]
    offsets = {}
    for defect in lines:
        table = log.lines[defect.table]
        offsets[defect] = sum(len(line) + 1 for line in table)
        table.append(defect.line)
    return log, offsets


def set_aside(out: Path, manifest: Manifest) -> list[tuple[str, int, str, bytes]]:
    """The rows of the quarantine."""
    files = [out / file["path"] for file in manifest.audit["quarantine"]]
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return sorted((row["source"], row["offset"], row["reason"], row["line"]) for row in rows)


def test_every_reason_has_its_policies_and_its_rule_in_words() -> None:
    assert set(rules_of("aliccp")) == set(OF_ALICCP)
    assert {entry.reason for entry in planted()} == set(OF_ALICCP)
    for reason in OF_ALICCP:
        for policy in ("quarantine", "fail", "keep"):
            if policy != "keep" or reason in MAY_BE_KEPT:
                assert getattr(ChecksSettings(**{reason: policy}), reason) == policy
            else:
                with pytest.raises(InputError, match=f"checks.{reason}=keep is not one of quarantine, fail"):
                    ChecksSettings(**{reason: policy})


@pytest.mark.parametrize("reason", OF_ALICCP)
def test_fail_stops_at_the_first_such_line_in_one_sentence_and_publishes_nothing(
    tmp_path: Path, preprocess_settings: Settings, reason: str
) -> None:
    lines = planted()
    log, offsets = log_with(lines)
    raw = log.write(tmp_path / "raw")
    first = next(defect for defect in lines if defect.reason == reason)
    with pytest.raises(InputError) as stopped:
        preprocess(preprocess_settings(raw, tmp_path / "out", f"checks.{reason}=fail"))
    mild = "keep" if reason in MAY_BE_KEPT else "quarantine"
    assert str(stopped.value) == (
        f"{raw / first.table}.csv, byte {offsets[first]}: {reason} ({rules_of('aliccp')[reason]}), and checks.{reason}=fail stops there; "
        f"fix the line, or set checks.{reason}={mild}."
    )
    published = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "_staging" not in path.parts]
    assert published == []


@pytest.mark.parametrize("kept", [(), MAY_BE_KEPT], ids=["everything is rejected", "what may be kept is kept"])
def test_quarantine_holds_each_line_whole_and_keep_counts_it_and_the_audit_balances(
    tmp_path: Path, preprocess_settings: Settings, kept: tuple[str, ...]
) -> None:
    lines = planted()
    log, offsets = log_with(lines)
    raw = log.write(tmp_path / "raw")
    policies = [f"checks.{reason}={'keep' if reason in kept else 'quarantine'}" for reason in OF_ALICCP]
    settings = preprocess_settings(raw, tmp_path / "out", *policies, "split.validation=0")
    manifest = preprocess(settings)
    aside = [defect for defect in lines if defect.reason not in kept]
    assert set_aside(tmp_path / "out", manifest) == sorted(
        (f"{defect.table}.csv", offsets[defect], defect.reason, defect.line) for defect in aside
    )
    assert manifest.audit["quarantined"] == {
        reason: sum(defect.reason == reason for defect in aside) for reason in OF_ALICCP
    }
    assert manifest.audit["kept"]["test"] == {
        "feature_count_mismatch": 2 * bool(kept),
        "conversion_without_click": 1 * bool(kept),
    }
    test = manifest.audit["lines"]["test"]
    assert (test["impressions"]["read"], test["contexts"]["read"]) == (4 + 8, 2 + 5)
    for lines_of in (test["impressions"], test["contexts"]):
        alone = lines_of.get("without_impressions", 0)
        assert lines_of["read"] == lines_of["written"] + alone + sum(lines_of["quarantined"].values())
    # Of the lines that are kept, one has a conversion too many, and is written as not converted.
    assert manifest.totals["test"] == {"rows": 2, "impressions": 4 + 2 * bool(kept), "clicks": 2 + bool(kept), "conversions": 1 + bool(kept)}  # fmt: skip
    assert_dataset_equals_reference(raw, tmp_path / "out", settings)


def test_a_context_that_is_set_aside_takes_its_impressions_with_it(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    log, _ = log_with([])
    log.lines[CONTEXT][0] = log.lines[CONTEXT][0].replace(b",1,", b",9,")
    settings = preprocess_settings(
        log.write(tmp_path / "raw"), tmp_path / "out", "checks.feature_count_mismatch=quarantine"
    )
    test = preprocess(settings).audit["lines"]["test"]
    assert test["contexts"]["quarantined"] == {"feature_count_mismatch": 1}
    assert test["impressions"]["quarantined"] == {"missing_context": 2}


def test_a_log_whose_lines_are_all_rejected_is_refused_with_the_most_frequent_reasons(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    log = small_log()
    for table in (name for name in log.lines if name.startswith("common")):
        log.lines[table] = [line.replace(line[:4], b"G000", 1) for line in log.lines[table]]
    raw = log.write(tmp_path / "raw")
    with pytest.raises(InputError) as refused:
        preprocess(preprocess_settings(raw, tmp_path / "out"))
    assert str(refused.value).startswith(f"source.path={raw} has no impression that can be written: 8 impressions")
    for grain, reason, file in (
        ("8 impressions", "missing_context", "sample_skeleton_train.csv"),
        ("4 contexts", "bad_context_key", "common_features_train.csv"),
    ):
        number = grain.split(maxsplit=1)[0]
        assert f"{grain} are rejected, {number} of them as {reason} ({rules_of('aliccp')[reason]}; " in str(
            refused.value
        )
        assert f"the first: {raw / file}, byte 0)" in str(refused.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("inside", ["", "/out", "/sample_skeleton_train/out", "/x/../out"])
def test_a_dataset_among_its_raw_files_is_refused(tmp_path: Path, preprocess_settings: Settings, inside: str) -> None:
    raw = small_log().write(tmp_path / "raw", num_parts=1)
    before = sorted(raw.rglob("*"))
    with pytest.raises(
        InputError, match=r"lies inside source.path=.*; choose a folder beside it, such as .*raw-dataset"
    ):
        preprocess(preprocess_settings(raw, Path(f"{raw}{inside}")))
    assert sorted(raw.rglob("*")) == before
