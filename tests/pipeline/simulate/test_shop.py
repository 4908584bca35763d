"""The simulated shop against its promises, read back from its files: calendar, ids, dirt, probabilities, restarts."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.raw_ids import text_id
from pipeline.errors import InputError
from pipeline.simulate.run import SimulateSettings, simulate
from pipeline.simulate.shop import calendar

DAY = pd.Timedelta(days=1)


def settings(out: Path, *overrides: str) -> SimulateSettings:
    return compose("simulate", SimulateSettings, [f"out={out}", "layout=events", *overrides])


class Shop:
    def __init__(self, out: Path) -> None:
        self.out = out
        self.record = json.loads((out / "simulation.json").read_text())
        names = ("impressions", "actions", "users", "items", "truth.parquet", "dirt.parquet")
        self.impressions, self.actions, self.users, self.items, self.truth, self.dirt = (
            pq.read_table(out / name).to_pandas() for name in names
        )
        self.good = self.impressions[
            ~self.impressions.impression_id.isin(self.dirt.id[self.dirt.reason != "duplicate_impression"])
        ].sort_values("timestamp")
        self.good = self.good.drop_duplicates("impression_id").merge(
            self.truth, left_on="impression_id", right_on="impression", suffixes=("_text", "")
        )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    out = tmp_path_factory.mktemp("shop") / "raw"
    simulate(settings(out, "impressions=30000", "dirt=0.01", "seed=4"))
    return Shop(out)


def test_the_configuration_has_the_boundaries_windows_and_end_of_the_calendar() -> None:
    chosen = compose(
        "preprocess", PreprocessSettings,
        ["source=simulated_shop", "features=simulated_shop", "labels=cart_wish", "source.path=RAW", "out=OUT"],
    )  # fmt: skip
    events = chosen.source.events
    assert events is not None
    days = [calendar.SPLIT_DAYS[split] for split in ("train", "validation", "test")]
    bounds = [days[0][0], *(stop for _, stop in days)]
    assert list(events.boundaries_ms()) == [calendar.START_MS + day * calendar.DAY_MS for day in bounds]
    assert {kind: 1000 * window for kind, window in events.windows_s.items()} == calendar.WINDOWS_MS
    assert events.actions_end_ms() == calendar.ACTIONS_END_MS
    reach = events.reach_ms(events.label_actions(chosen.labels.daction))
    assert calendar.START_MS + calendar.DAYS * calendar.DAY_MS + reach < calendar.ACTIONS_END_MS  # all mature


def test_every_day_has_a_tenth_of_the_impressions_and_no_page_shows_an_item_twice(shop: Shop) -> None:
    assert len(shop.good) == len(shop.truth) == 30_000
    days = shop.good.timestamp.dt.floor("D").value_counts().sort_index()
    assert list(days.index) == [pd.Timestamp("2024-05-01", tz="UTC") + day * DAY for day in range(10)]
    assert days.between(2_950, 3_050).all()  # a few page views are moved past midnight
    assert not shop.good.duplicated(["page_view_id", "item_id"]).any()
    assert (shop.good.groupby("page_view_id").user_id.nunique() == 1).all()
    gaps = shop.good.sort_values("timestamp").groupby(["user_id", "item_id"]).timestamp.diff().dropna()
    assert len(gaps) > 300
    assert gaps.min() >= pd.Timedelta(seconds=60)
    for table, rows in (("impressions", shop.impressions), ("actions", shop.actions)):
        parts = sorted((shop.out / table).iterdir())
        assert [part.stem for part in parts] == [f"part-2024-05-{day + 1:02d}" for day in range(len(parts))]
        assert not rows.timestamp.dropna().is_monotonic_increasing


def test_the_other_tables_have_a_row_a_key_with_gaps_and_lack_some(shop: Shop) -> None:
    assert shop.users.user_id.is_unique
    assert shop.items.item_id.is_unique
    for table, key in ((shop.users, "user_id"), (shop.items, "item_id")):
        lacking = ~shop.good[key].drop_duplicates().isin(table[key])
        assert 0 < lacking.mean() < 0.1
        assert 0 < table.drop(columns=key).isna().to_numpy().mean() < 0.5
    assert shop.items.brand.dropna().str.contains('[,"&]|東').any()
    assert (shop.good.viewed_categories.map(len) == shop.good.viewed_categories__weight.map(len)).all()
    assert not shop.good.viewed_categories.map(lambda values: len(set(values)) < len(values)).any()


def test_the_truth_has_the_datasets_ids_and_labels_that_follow_its_probabilities(shop: Shop) -> None:
    truth = shop.truth
    assert truth.impression_id.is_unique
    assert truth.impression_id.tolist() == [text_id(text) for text in truth.impression]
    p = truth[["p_ctr", "p_daction", "p_cvr"]].astype(float)
    clicked = truth.click == 1
    for label, probability, among in (
        (truth.click, p.p_ctr, clicked | True),
        (truth.daction, p.p_daction, clicked),
        (truth.conversion, p.p_cvr, clicked),
    ):
        deviation = math.sqrt((probability * (1 - probability))[among].sum())
        assert abs(label[among].sum() - probability[among].sum()) < 4.5 * deviation
    assert not truth[~clicked][["daction", "conversion"]].to_numpy().any()
    assert truth.click.mean() == pytest.approx(0.12, rel=0.1)
    for split, (first, stop) in calendar.SPLIT_DAYS.items():
        start = pd.Timestamp("2024-05-01", tz="UTC")
        here = shop.good[shop.good.timestamp.between(start + first * DAY, start + stop * DAY, inclusive="left")]
        tally = shop.record["splits"][split]
        assert abs(len(here) - tally["impressions"]) <= 50 * (split == "later")
        if split != "later":
            assert (here.click.sum(), here.conversion.sum()) == (tally["clicks"], tally["conversions"])
            assert tally["page_views"] == here.page_view_id.nunique()
            auc = roc_auc_score(here.click, here.p_ctr)
            assert tally["true_auc"]["ctr_auc"] == pytest.approx(auc, abs=1e-4)
            assert 0.65 < auc < 0.85


def test_dirty_rows_are_those_listed_and_belong_to_nobody(shop: Shop) -> None:
    assert Counter(shop.dirt.reason) == shop.record["quarantined"]
    assert set(shop.record["quarantined"].values()) == {68}  # a quarter of 1 % of the impressions in the splits
    rows = shop.impressions[shop.impressions.impression_id.isin(shop.dirt.id)]
    assert rows.user_id.dropna().str.startswith("ghost-").sum() == 3 * 68 - 23
    assert (shop.impressions.groupby("page_view_id").user_id.nunique() <= 1).all()
    assert [rows[name].isna().sum() for name in ("user_id", "item_id", "timestamp", "page_view_id")] == [23, 23, 22, 68]
    copies = shop.impressions[shop.impressions.impression_id.duplicated(keep=False)]
    assert sorted(copies.impression_id.unique()) == sorted(shop.dirt.id[shop.dirt.reason == "duplicate_impression"])
    assert len(copies) == 2 * 68
    actions = shop.actions
    malformed = actions[["timestamp", "user_id", "item_id", "action"]].isna().any(axis=1)
    late = actions.timestamp > pd.Timestamp(calendar.ACTIONS_END_MS, unit="ms", tz="UTC")
    assert (malformed.sum(), late.sum()) == (shop.record["actions"]["malformed"], shop.record["actions"]["after_end"])


def test_the_same_seed_makes_the_same_bytes_and_dirt_changes_no_good_row(tmp_path: Path) -> None:
    for name, *overrides in (("a", "seed=7"), ("b", "seed=7"), ("c", "seed=8"), ("d", "seed=7", "dirt=0")):
        simulate(settings(tmp_path / name, "impressions=2000", *overrides))
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(names) == 26
    for name in names:
        a, b, c = ((tmp_path / run / name).read_bytes() for run in "abc")
        assert a == b
        assert a != c or name.name == "dirt.parquet"
    clean, dirty = (Shop(tmp_path / name) for name in "da")
    assert len(clean.dirt) == 0
    assert clean.impressions.impression_id.is_unique
    columns = ["impression_id_text", "timestamp", "user_id", "item_id", "click", "conversion", "p_ctr"]
    a, b = (shop.good[columns].sort_values("impression_id_text", ignore_index=True) for shop in (clean, dirty))
    pd.testing.assert_frame_equal(a, b)
    assert np.array_equal(clean.truth.to_numpy(), dirty.truth.to_numpy())


def test_a_finished_shop_is_left_alone_another_is_refused_and_a_killed_one_is_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shop"
    simulate(settings(out, "impressions=2000"))
    printed = capsys.readouterr().out
    assert "a shop of 2,000 impressions" in printed
    assert f"source=simulated_shop features=simulated_shop labels=cart_wish source.path={out}" in printed
    simulate(settings(out, "impressions=2000"))
    assert "already there" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"other settings \(impressions differ\)"):
        simulate(settings(out, "impressions=3000"))
    with pytest.raises(InputError, match=r"other settings \(.*layout.*differ\)"):
        simulate(compose("simulate", SimulateSettings, [f"out={out}", "impressions=2000"]))
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "simulation.json").unlink()  # killed while files moved to their names
    shutil.rmtree(out / "actions")
    (out / "_simulating").mkdir()
    simulate(settings(out, "impressions=2000"))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole


def test_a_failure_while_files_move_to_their_names_takes_them_and_their_folders_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        assert (tmp_path / "shop/users/part-0.parquet").exists(), "all others have moved"
        raise OSError("no room")

    monkeypatch.setattr("pipeline.simulate.run.write_whole", full)
    with pytest.raises(InputError, match="cannot be written"):
        simulate(settings(tmp_path / "shop", "impressions=2000"))
    assert not (tmp_path / "shop").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("impressions=1999", "impressions=1999 is not between 2,000 and 5,000,000"),
        ("impressions=5000001", "not between"),
        ("train_share=0.4", "train_share=0.4 has no meaning for layout=events"),
        ("actions=true", "actions=True has no meaning for layout=events"),
        ("layout=sales", "Could not find 'layout/sales'.*aliccp.*events"),
    ],
)
def test_settings_of_a_shop_are_checked_at_the_door(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        settings(tmp_path, override)


def test_a_layout_that_is_none_is_refused_from_python_too() -> None:
    with pytest.raises(InputError, match="layout=sales is not one of aliccp, events"):
        SimulateSettings(layout="sales")
