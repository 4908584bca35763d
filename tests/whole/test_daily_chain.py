"""Event logs day by day: a chain of jobs writes each impression once, with the labels of one job over all days."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from event_log import H, action, impression

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError
from pipeline.passes.job import Job
from pipeline.preprocess import preprocess
from pipeline.simulate.run import SimulateSettings, simulate

Settings = Callable[..., PreprocessSettings]
LABELS = ("click", "daction", "conversion")
DAY = 24 * H
SHOP = (
    "source=events", "features=shop", "labels=cart_wish", "vocabulary.min_count=1", "source.events.day_by_day=true",
    "vocabulary.max_age_days=0.5", "source.events.windows_s={click: 3600, cart: 7200, wish: 7200, purchase: 7200}",
)  # fmt: skip
#: (id, hour, user, item, page view): windows of 3 h, so that those from 21:00 on are immature at midnight.
SHOWN = [
    impression(1, 1, "ada", 31, "v1"),
    impression(2, 20.9, "ada", 42, "v2"),
    impression(3, 21, "ada", 53, "v3"),  # its windows close at midnight
    impression(4, 23.5, "bob", 31, "v4"),
    impression(5, 23.9, "bob", 42, "v5", categories__weight=[0.5]),  # a bad feature
    impression(2, 23.95, "ada", 42, "v2"),  # delivered again, when the first copy is written
    impression(6, 23.8, "cid", 64, "v6"),
    impression(6, 24.1, "cid", 64, "v6"),  # delivered again after midnight
    impression(7, 30, "bob", 53, "v7"),
    impression(8, 47, "eve", 31, "v8"),  # immature at the second midnight, too
]
ACTED = [
    action(1.5, "ada", 31, "click"),
    action(23.95, "bob", 31, "click"),  # clicked before midnight, bought after it
    action(24.5, "bob", 31, "purchase"),
    action(24.2, "cid", 64, "click"),  # goes to the copy, and so to 6
    action(25, "cid", 64, "cart"),
    action(30.5, "bob", 53, "click"),
]


def write(root: Path, name: str, first_hour: float, stop_hour: float) -> Path:
    """Write the tables of some hours."""
    for table, rows in (("impressions", SHOWN), ("actions", ACTED)):
        (root / name / table).mkdir(parents=True)
        mine = [row for row in rows if first_hour * H <= row["timestamp"] < stop_hour * H]
        schema = pa.Table.from_pylist(rows).schema
        pq.write_table(pa.Table.from_pylist(mine, schema=schema), root / name / table / "0.parquet")
    return root / name


def until(day: int) -> list[str]:
    """The settings of a job whose tables end with `day`: all of it is train."""
    end = day * DAY
    return [f"source.events.boundaries=[0,{end},{end},{end + DAY}]", f"source.events.actions_end={end}"]


def labels_in(dataset: Path) -> Counter[tuple[int, ...]]:
    """Count (impression, click, daction, conversion)."""
    found: Counter[tuple[int, ...]] = Counter()
    for file in load_manifest(dataset).files:
        table = pq.read_table(dataset / file.path, columns=["impression_id", *LABELS])
        columns = [table[name].combine_chunks().flatten().to_pylist() for name in ("impression_id", *LABELS)]
        found.update(zip(*columns, strict=True))
    return found


def rejected_in(dataset: Path) -> Counter[tuple[str, bytes]]:
    if not (dataset / "quarantine").exists():
        return Counter()
    return Counter((row["reason"], row["line"]) for row in pq.read_table(dataset / "quarantine").to_pylist())


def span_of(dataset: Path) -> dict[str, int]:
    return json.loads((dataset / "manifest.json").read_text())["audit"]["events"]["day_by_day"]


@pytest.fixture(scope="module")
def chain(spark: object, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Settings) -> Path:
    """Two days. The tables of the second begin with the first's last three hours."""
    root = tmp_path_factory.mktemp("chain")
    preprocess(preprocess_settings(write(root, "monday", 0, 24), root / "one", *SHOP, *until(1)))
    base = f"vocabulary.base={root / 'one'}"
    preprocess(preprocess_settings(write(root, "tuesday", 20, 48), root / "two", *SHOP, *until(2), base))
    return root


def test_what_is_immature_at_midnight_is_written_the_next_day_with_the_labels_of_both(chain: Path) -> None:
    assert labels_in(chain / "one") == Counter([(1, 1, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0)])
    assert labels_in(chain / "two") == Counter([(4, 1, 0, 1), (6, 1, 1, 0), (7, 1, 0, 0)])


def test_a_reject_is_quarantined_once_when_its_windows_have_closed(chain: Path) -> None:
    assert not rejected_in(chain / "one")
    assert Counter(reason for reason, _ in rejected_in(chain / "two")) == {"bad_feature": 1, "duplicate_impression": 2}


def test_the_manifest_says_what_was_written_before_and_what_is_left(chain: Path) -> None:
    hour = 3_600_000
    assert span_of(chain / "one") == {
        "after_ms": -1, "until_ms": 21 * hour, "earlier": 0, "from_base": 0, "left": 4,
        "left_until_ms": round(23.95 * hour),
    }  # fmt: skip
    assert span_of(chain / "two") == {
        "after_ms": 21 * hour, "until_ms": 45 * hour, "earlier": 2, "from_base": 4, "left": 1,
        "left_until_ms": 47 * hour,
    }  # fmt: skip
    immature = json.loads((chain / "two/audit.json").read_text())["events"]["impressions"]["immature"]
    assert immature == {"train": 1, "validation": 0, "test": 0}


def test_ids_that_the_new_day_has_not_are_retired_and_the_others_have_its_end(chain: Path) -> None:
    found = {}
    for name in ("one", "two"):
        entry = next(entry for entry in load_manifest(chain / name).fields if entry.name == "user_id")
        table = pq.read_table(chain / name / entry.vocabulary)
        found[name] = list(zip(*(table[column].to_pylist() for column in ("text", "index", "last_seen")), strict=True))
    assert found["one"] == [("ada", 2, 1000 * DAY)]
    assert sorted(text for text, _, _ in found["two"]) == ["bob", "cid"]
    assert [row[1:] for row in found["two"]] == [(2, 2000 * DAY), (3, 2000 * DAY)]


@pytest.mark.usefixtures("spark")
def test_tables_that_lack_what_the_base_has_left_stop_the_job(
    chain: Path, tmp_path: Path, preprocess_settings: Settings
) -> None:
    base = f"vocabulary.base={chain / 'one'}"
    raw = write(tmp_path, "too-late", 23.85, 48)
    with pytest.raises(
        InputError, match=r"left 4 impressions .*21:00:00.* has 2 of that time; add the tables of the days"
    ):
        preprocess(preprocess_settings(raw, tmp_path / "out", *SHOP, *until(2), base))
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_base_that_left_nothing_behind_and_a_gap_in_the_boundaries_are_refused_before_spark_starts(
    chain: Path, tmp_path: Path, preprocess_settings: Settings
) -> None:
    base = f"vocabulary.base={chain / 'one'}"
    gap = f"source.events.boundaries=[{DAY},{2 * DAY},{2 * DAY},{3 * DAY}]"
    with pytest.raises(
        InputError, match=r"begin at 1970-01-02T00:00.*written impressions until 1970-01-01T21:00.*lost"
    ):
        Job.of(preprocess_settings(chain / "tuesday", tmp_path / "out", *SHOP, gap, base))
    manifest = json.loads((chain / "one/manifest.json").read_text())
    del manifest["audit"]["events"]["day_by_day"], manifest["content_xxh3"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text(json.dumps(manifest))
    (other / "vocabulary").symlink_to(chain / "one/vocabulary")
    with pytest.raises(InputError, match=r"made without source\.events\.day_by_day=true"):
        Job.of(preprocess_settings(chain / "tuesday", tmp_path / "out", *SHOP, *until(2), f"vocabulary.base={other}"))


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("spark")
def test_seven_days_in_a_chain_give_every_impression_the_labels_of_one_job_over_all_seven(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    raw, days = tmp_path / "raw", [f"2024-05-{day:02d}" for day in range(1, 9)]
    overrides = ["layout=events", "impressions=8000", "seed=9", "dirt=0.01", f"out={raw}"]
    simulate(compose("simulate", SimulateSettings, overrides))
    chosen = ("source=simulated_shop", "features=simulated_shop", "labels=cart_wish", "source.events.day_by_day=true")

    def job(name: str, first: int, stop: int, base: str | None) -> Path:
        """Preprocess the files of days [first, stop): the windows of 25 h need two days before the last one."""
        for table in ("impressions", "actions"):
            (tmp_path / f"raw-{name}" / table).mkdir(parents=True)
            for day in days[first:stop]:
                file = f"{table}/part-{day}.parquet"
                (tmp_path / f"raw-{name}" / file).symlink_to(raw / file)
        for table in ("items", "users"):
            (tmp_path / f"raw-{name}" / table).symlink_to(raw / table)
        end = days[stop]
        times = [f'source.events.boundaries=[{days[0]},"{end}","{end}",2024-06-01]', f"source.events.actions_end={end}"]
        more = [f"vocabulary.base={tmp_path / base}"] if base else []
        preprocess(preprocess_settings(tmp_path / f"raw-{name}", tmp_path / name, *chosen, *times, *more))
        return tmp_path / name

    whole = job("whole", 0, 7, None)
    chain = [job("day1", 0, 2, None)]  # with windows of 25 h, nothing is mature after one day
    for day in range(2, 7):
        chain.append(job(f"day{day}", max(day - 2, 0), day + 1, f"day{day - 1}"))
    parts = [labels_in(dataset) for dataset in chain]
    assert sum(parts, Counter()) == labels_in(whole)
    assert max(sum(parts, Counter()).values()) == 1
    assert sum(labels[3] for labels in labels_in(whole)) > 30
    timed = [
        Counter({key: number for key, number in rejected_in(dataset).items() if b'"timestamp"' in key[1] or key[0] == "duplicate_impression"})
        for dataset in (whole, *chain)
    ]  # fmt: skip
    assert sum(timed[1:], Counter()) == timed[0]
    assert len(timed[0]) > 10
    spans = [span_of(dataset) for dataset in chain]
    assert [later["after_ms"] for later in spans[1:]] == [earlier["until_ms"] for earlier in spans[:-1]]
    assert [later["from_base"] for later in spans[1:]] == [earlier["left"] for earlier in spans[:-1]]
    assert span_of(whole)["until_ms"] == spans[-1]["until_ms"]
