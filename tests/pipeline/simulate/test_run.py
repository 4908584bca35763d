"""The simulated log against its promises: shapes, true probabilities, planted dirt, and that the log reveals what it should."""

import csv
import errno
import json
import math
import os
import resource
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from simulated_log import Line, fault, read_lines
from sklearn.metrics import roc_auc_score

from jobs.entry import compose
from pipeline.errors import InputError
from pipeline.simulate import published_figures as shapes
from pipeline.simulate import run
from pipeline.simulate.lines import weight_text
from pipeline.simulate.run import SimulateSettings, simulate

TABLES = ("sample_skeleton", "common_features")
SPLITS = ("train", "test")
LISTS, CROSSES, OWN = (
    ("109_14", "110_14", "127_14", "150_14"),
    ("508", "509", "702", "853"),
    ("206", "207", "216", "210"),
)


def settings(out: Path, *overrides: str) -> SimulateSettings:
    """conf/simulate.yaml with overrides, as the command line would have it."""
    return compose("simulate", SimulateSettings, [f"out={out}", *overrides])


@dataclass
class Log:
    """A simulated log of 100,000 impressions, read back."""

    out: Path
    record: dict
    lines: dict[tuple[str, str], list[Line]]
    planted: dict[tuple[str, str], dict[int, str]]  # (table, split) → offset → reason
    truth: dict[str, dict[str, np.ndarray]]

    def good(self, table: str, split: str) -> list[Line]:
        kept = ("conversion_without_click", "feature_count_mismatch")
        planted = self.planted[table, split]
        return [line for line in self.lines[table, split] if planted.get(line.offset, kept[0]) in kept]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    out = tmp_path_factory.mktemp("simulated") / "raw"
    simulate(settings(out, "impressions=100000", "rates=demo", "actions=true", "dirt=0.004"))
    planted: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for split in SPLITS:
        for row in pq.read_table(out / f"dirt_{split}.parquet").to_pylist():
            planted[row["file"].removesuffix(f"_{split}.csv"), split][row["offset"]] = row["reason"]
    return Log(
        out=out,
        record=json.loads((out / "simulation.json").read_text()),
        lines={(table, split): read_lines(out / f"{table}_{split}.csv") for table in TABLES for split in SPLITS},
        planted=planted,
        truth={
            split: {name: table[name].to_numpy() for name in table.column_names}
            for split, table in ((split, pq.read_table(out / f"truth_{split}.parquet")) for split in SPLITS)
        },
    )


def test_the_planted_lines_are_exactly_the_dirty_ones(log: Log) -> None:
    for split in SPLITS:
        contexts: set[str] = set()
        for table, num_columns in (("common_features", 3), ("sample_skeleton", 6)):
            found, ids = {}, set()
            for line in log.lines[table, split]:
                reason = fault(line, num_columns)
                if reason in (None, "conversion_without_click", "feature_count_mismatch"):
                    identity, key = line.columns[0], line.columns[num_columns - 3]
                    if table == "sample_skeleton" and key not in contexts:
                        reason = "missing_context"
                    elif identity in ids:
                        reason = "duplicate_impression" if table == "sample_skeleton" else "duplicate_context"
                    ids.add(identity)
                    contexts |= {key} if table == "common_features" else set()
                if reason:
                    found[line.offset] = reason
            assert found == log.planted[table, split]
            counts = log.record["splits"][split]["dirty"][f"{table}_{split}.csv"]
            assert Counter(found.values()) == counts
            assert min(counts.values()) >= 2


def test_every_good_impression_has_its_true_probabilities_in_order(log: Log) -> None:
    for split in SPLITS:
        good = log.good("sample_skeleton", split)
        assert [int(line.columns[0]) for line in good] == log.truth[split]["impression_id"].tolist()
        assert [line.columns[3] for line in good] == log.truth[split]["context_id"].tolist()
    assert log.record["splits"]["train"]["impressions"] == len(log.good("sample_skeleton", "train")) == 50_000


def test_shapes_are_those_published(log: Log) -> None:
    good = [line for split in SPLITS for line in log.good("sample_skeleton", split)]
    counts = np.array([sum(1 for _ in line.features()) for line in good])
    assert counts.mean() == pytest.approx(13.4, rel=0.06)
    assert counts.min() >= 1
    assert counts.max() <= 50
    contexts = [line for split in SPLITS for line in log.good("common_features", split)]
    features = np.array([sum(1 for _ in line.features()) for line in contexts])
    assert features.mean() == pytest.approx(518, rel=0.06)
    assert features.min() >= 1
    assert 2_000 < features.max() <= 2_706
    sizes = np.array(list(Counter(line.columns[3] for line in good).values()))
    assert sizes.mean() == pytest.approx(57.9, rel=0.08)
    assert len(sizes) == len(contexts)
    for at_least, share in ((2, 0.988), (100, 0.130), (200, 0.0268)):
        deviation = math.sqrt(share * (1 - share) / len(sizes))
        assert (sizes >= at_least).mean() == pytest.approx(share, abs=4 * deviation)


def test_lines_of_a_context_stand_together(log: Log) -> None:
    for split in SPLITS:
        keys_in_order = [line.columns[3] for line in log.good("sample_skeleton", split)]
        changes = sum(a != b for a, b in pairwise(keys_in_order))
        assert changes + 1 == len(set(keys_in_order))


def test_cross_features_are_the_intersection_of_the_item_with_the_lists(log: Log) -> None:
    blocks = shapes.id_blocks(log.record["cardinality"])

    def values(features: list[tuple[str, int, float]], field: str, name: str) -> dict[int, float]:
        return {int(blocks[name].indices(np.array(number))): weight for f, number, weight in features if f == field}

    lists = {}
    for line in log.good("common_features", "train"):
        features = list(line.features())
        named = zip(LISTS, shapes.LIST_FIELDS, strict=True)
        lists[line.columns[0]] = [values(features, field, name) for field, name in named]
    seen = Counter()
    for line in log.good("sample_skeleton", "train")[::5]:
        features = list(line.features())
        present = {field for field, _, _ in features}
        for kind in range(4):
            own = values(features, OWN[kind], shapes.ITEM_FIELDS[kind])
            cross = values(features, CROSSES[kind], shapes.CROSS_FIELDS[kind])
            if OWN[kind] in present:
                held = lists[line.columns[3]][kind]
                assert cross == {value: held[value] for value in own if value in held}
                seen[CROSSES[kind]] += len(cross)
    assert all(seen[field] > 500 for field in CROSSES)


def test_weights_are_printed_as_the_log_prints_them(log: Log) -> None:
    assert [weight_text(count) for count in (1, 2, 3, 10)] == ["0.69315", "1.09861", "1.38629", "2.3979"]
    allowed = {weight_text(count) for count in range(1, 4096)}
    for line in log.good("common_features", "test")[:200] + log.good("sample_skeleton", "test")[:2000]:
        for feature in line.columns[-1].split("\x01"):
            field, value = feature.partition("\x02")[0], feature.partition("\x03")[2]
            assert value in allowed if field in (*LISTS, *CROSSES) else value == "1.0"


def test_train_and_test_share_users_and_no_key(log: Log) -> None:
    users, known, contexts = {}, 0, 0
    for split in SPLITS:
        lines = log.good("common_features", split)
        users[split] = {number for line in lines for field, number, _ in line.features() if field == "101"}
        known += sum("\x01101\x02" in "\x01" + line.columns[-1] for line in lines)
        contexts += len(lines)
    assert 0.03 < 1 - known / contexts < 0.09  # some lack the user id
    assert 0.3 < len(users["train"] & users["test"]) / len(users["test"]) < 0.9
    assert not {*log.truth["train"]["context_id"]} & {*log.truth["test"]["context_id"]}


def test_ids_never_repeat_across_fields_and_both_lookups_are_needed(log: Log) -> None:
    blocks = sorted(shapes.id_blocks(log.record["cardinality"]).values(), key=lambda block: block.first)
    assert all(a.first + a.size <= b.first for a, b in pairwise(blocks))
    dense = [(block.first + block.size) / block.size <= 8 for block in blocks]
    assert {True, False} == set(dense)


def test_labels_follow_the_true_probabilities(log: Log) -> None:
    """Counts lie within 4.5 standard deviations of the sum of probabilities, overall and by tenths of p_ctr."""
    for split in SPLITS:
        truth, good = log.truth[split], log.good("sample_skeleton", split)
        label = np.array([[int(x) for x in line.columns[1:3]] for line in good])
        click, conversion = label[:, 0] == 1, label.min(axis=1) == 1
        with (log.out / f"actions_{split}.csv").open() as stream:
            actions = list(csv.reader(stream))
        acted = np.isin(truth["impression_id"], [int(row[0]) for row in actions])
        assert {row[1] for row in actions} == {"cart", "wish"}
        assert min(int(row[2]) for row in actions) >= 1
        assert not (acted & ~click).any()
        everything = np.ones(len(click), bool)
        tenths = np.argsort(np.argsort(truth["p_ctr"])) * 10 // len(click)
        groups = [(click, truth["p_ctr"], tenths == tenth) for tenth in range(10)]
        groups += [
            (click, truth["p_ctr"], everything),
            (conversion, truth["p_cvr"], click),
            (acted, truth["p_daction"], click),
        ]
        for happened, probability, where in groups:
            p = probability[where].astype(np.float64)
            assert abs(happened[where].sum() - p.sum()) < 4.5 * math.sqrt((p * (1 - p)).sum())
        tally = log.record["splits"][split]
        found = {"clicks": click.sum(), "dactions": acted.sum(), "conversions": conversion.sum()}
        assert found == {name: tally[name] for name in found}
        after, without = conversion[acted].mean(), conversion[click & ~acted].mean()
        assert after > 2 * without
        true_auc = tally["true_auc"]
        assert true_auc["ctr_auc"] == pytest.approx(roc_auc_score(click, truth["p_ctr"]), abs=1e-4)
        assert true_auc["cvr_auc"] == pytest.approx(roc_auc_score(conversion[click], truth["p_cvr"][click]), abs=1e-4)
        ctcvr = truth["p_ctr"].astype(float) * truth["p_cvr"]
        assert true_auc["ctcvr_auc"] == pytest.approx(roc_auc_score(conversion, ctcvr), abs=1e-4)


def test_clicked_impressions_are_a_biased_sample_for_conversion(log: Log) -> None:
    p_ctr, p_cvr = (log.truth["train"][name].astype(float) for name in ("p_ctr", "p_cvr"))
    assert np.average(p_cvr, weights=p_ctr) > 1.2 * p_cvr.mean()


def test_same_seed_same_bytes_and_another_seed_other_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        simulate(settings(tmp_path / name, "impressions=3000", f"seed={seed}", "actions=true"))
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 11
    for name in names:
        a, b, c = ((tmp_path / run / name).read_bytes() for run in "abc")
        assert a == b
        assert a != c


def test_actions_and_dirt_leave_the_good_lines_as_they_are(tmp_path: Path) -> None:
    simulate(settings(tmp_path / "plain", "impressions=2000", "dirt=0"))
    simulate(settings(tmp_path / "other", "impressions=2000", "dirt=0.02", "actions=true"))
    assert not (tmp_path / "plain" / "actions_train.csv").exists()
    assert pq.read_table(tmp_path / "plain" / "dirt_train.parquet").num_rows == 0
    dirty = {
        row["offset"]
        for row in pq.read_table(tmp_path / "other" / "dirt_test.parquet").to_pylist()
        if "skeleton" in row["file"]
    }
    plain, other = (read_lines(tmp_path / run / "sample_skeleton_test.csv") for run in ("plain", "other"))
    clean = [line.columns for line in other if line.offset not in dirty]
    assert len(plain) == 1000
    assert len(clean) > 900
    good = {line.columns[0]: line.columns for line in plain}
    assert all(good[columns[0]] == columns for columns in clean)


def test_a_finished_log_is_left_alone_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "raw"
    simulate(settings(out, "impressions=1000"))
    written = (out / "simulation.json").stat().st_mtime_ns
    capsys.readouterr()
    simulate(settings(out, "impressions=1000"))
    assert "already there" in capsys.readouterr().out
    assert (out / "simulation.json").stat().st_mtime_ns == written
    with pytest.raises(InputError, match=r"other settings \(impressions, seed differ\)"):
        simulate(settings(out, "impressions=1200", "seed=5"))


def test_files_of_another_origin_are_never_overwritten(tmp_path: Path) -> None:
    real = tmp_path / "sample_skeleton_train.csv"
    real.write_text("the download")
    with pytest.raises(InputError, match="another origin"):
        simulate(settings(tmp_path, "impressions=1000"))
    assert real.read_text() == "the download"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file, circle = tmp_path / "file", tmp_path / "circle"
    file.write_text("")
    circle.symlink_to(circle)
    for out, says in (
        (file, "is a file"),
        (file / "raw", r"cannot be written \(Not a directory\); remove the file that is in the place"),
        (circle, r"cannot be written \((File exists|Too many levels of symbolic links)\); remove the"),
        (circle / "raw", r"cannot be written \(Too many levels of symbolic links\); remove the circle of links"),
        (tmp_path / ("long" * 100), r"cannot be written \(File name too long\); choose another out"),
    ):
        with pytest.raises(InputError, match=says):
            simulate(settings(out, "impressions=1000"))


def test_a_log_larger_than_its_disk_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"impressions=10{15} make a log of 300,000,000 GB or more, and the disk of out="
    ):
        simulate(settings(tmp_path / "raw", f"impressions={10**15}"))
    assert not (tmp_path / "raw").exists()


def test_a_file_that_the_system_refuses_to_write_further_is_one_sentence_and_nothing_stays(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the system's answer: File too large
    try:
        with pytest.raises(InputError, match=r"out=.*/raw cannot be written \(File too large\); raise the limit"):
            simulate(settings(tmp_path / "raw", "impressions=1000"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "raw").exists()


def test_a_failure_while_files_move_to_their_names_takes_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()

    def full(path: Path, *_: object, **__: object) -> None:
        assert (tmp_path / "raw/truth_test.parquet").exists(), "all others have moved"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "write_whole", full)
    with pytest.raises(InputError, match=r"out=.* cannot be written \(No space left on device\); make room there"):
        simulate(settings(tmp_path / "raw", "impressions=1000"))
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_killed_run_is_simply_run_again(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    simulate(settings(whole, "impressions=1000"))
    shutil.copytree(whole, killed)
    (killed / "simulation.json").unlink()  # killed while moving files to their names
    (killed / "truth_test.parquet").unlink()
    (killed / "_simulating").mkdir()
    (killed / "_simulating" / "truth_test.parquet").write_bytes(b"half")
    simulate(settings(killed, "impressions=1000"))
    assert {p.name: p.read_bytes() for p in killed.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


def test_every_file_is_on_the_disk_before_simulation_json_says_that_the_log_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    fsync, replace = os.fsync, os.replace

    def record(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def check(source: Path, target: Path) -> None:
        if target.name == "simulation.json":
            assert {path.stat().st_ino for path in target.parent.iterdir() if path.is_file()} <= synced
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "replace", check)
    simulate(settings(tmp_path / "raw", "impressions=1000"))
    assert (tmp_path / "raw" / "simulation.json").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("impressions=100", "each needs at least 100"),
        ("train_share=1.0", "between 0 and 1"),
        ("dirt=0.5", "at most 0.1"),
        ("impressions=0", "leaves a split of 0; each needs at least 100"),
        ("impressions=-5", "impressions=-5 .* each needs at least 100"),
        ("impressions=1e12", "impressions"),
        ("seed=-1", "negative"),
        ("rates.wish_lift=nan", "rates.wish_lift=nan is not a finite number"),
        ("rates.cart_lift=-1", "rates.cart_lift=-1.0 is not a multiple"),
        ("rates.daction=nan", "rates.daction=nan is not a finite number"),
        ("train_share=nan", "train_share=nan"),
        ("rates.click=0", "rates.click=0.0 is not a rate"),
        ("rates.conversion=0.5", "lower rates.conversion"),
        ("rates.wish=x", "rates.wish"),
    ],
)
def test_settings_are_checked_at_the_door(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        settings(tmp_path, override)


def test_demo_rates_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(settings(tmp_path / "raw", "impressions=1000", "rates=demo"))
    assert "not Ali-CCP's published" in capsys.readouterr().out


def test_a_log_written_before_a_setting_existed_is_still_this_log() -> None:
    # simulation.json is compared with the settings of a second start: one that came later is there only where it is given.
    settings = compose("simulate", SimulateSettings, ["out=RAW"])
    assert {key for entry in settings.determining()["features"]["fields"].values() for key in entry} == {
        "raw_id", "scope", "arity", "weighted", "min_count", "max_ids", "kind", "hash_buckets",
    }  # fmt: skip


@pytest.mark.parametrize("content", ['{"settings": 3}', "[]", "{"])
def test_a_damaged_record_of_the_simulation_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "simulation.json").write_text(content)
    with pytest.raises(InputError, match=r"simulation\.json is damaged .*; empty .* or name another out="):
        simulate(compose("simulate", SimulateSettings, [f"out={tmp_path}", "impressions=1000"]))
