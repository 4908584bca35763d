"""Attribution, labels and maturity against the brute-force reference; what becomes of every kind of row."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from references.events import Action, Impression, Reference, own_contexts

from pipeline.config.events import ActionsSettings, EventsSettings, ImpressionsSettings
from pipeline.config.preprocess import ChecksSettings
from pipeline.events.find import find_log
from pipeline.events.label import LabelledLog, label
from pipeline.features.fields import Catalogue, Field

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

S = 1000
CATALOGUE = Catalogue((Field("item_id", "item", "impression", "one", False, 1),), "", True)
BOUNDARIES = (0, 40 * S, 60 * S, 90 * S)
END = 110 * S
KINDS = ("click", "cart", "wish", "purchase")
WINDOWS_S = {"click": 10, "cart": 15, "wish": 8, "purchase": 25}


def settings_of(**changes: Any) -> EventsSettings:
    columns = {"user": ["user"], "item": ["item"], "timestamp": "at"}
    impressions = ImpressionsSettings(id=["id"], context=["context"], **columns)
    actions = ActionsSettings(**columns)
    for table, key in ((impressions, "click"), (actions, "impression")):
        if key in changes:
            setattr(table, key, changes.pop(key))
    names = {"click": ["clk"], "cart": ["cart"], "wish": ["fav", "wish"], "purchase": ["buy"]}
    if impressions.click:
        names.pop("click")
    fixed: dict[str, Any] = {
        "impressions": impressions,
        "actions": actions,
        "names": names,
        "windows_s": WINDOWS_S,
        "time_unit": "ms",
        "boundaries": [str(ms // S) for ms in BOUNDARIES],
        "actions_end": str(END // S),
    }
    return EventsSettings(**fixed | changes)


def run_label(spark: "SparkSession", raw: Path, settings: EventsSettings, staging: Path, **more: Any) -> LabelledLog:
    catalogue, checks = more.get("catalogue", CATALOGUE), more.get("checks", ChecksSettings())
    log = find_log(str(raw), settings, catalogue)
    staging.mkdir()
    return label(spark, log, settings, catalogue, ["cart", "wish"], checks, 2, staging)


def random_log(
    draw: random.Random, user: int, clicked: bool, named: bool, ids: int
) -> tuple[list[Impression], list[Action]]:
    """Draw some events of one user and two items, at a few dense moments, so that ties and windows' edges are common.

    Impression ids are `ids` and a digit; so are contexts, which users of one log share.
    """
    impressions, actions = [], []
    start = draw.choice([-5, 30, 50, 85, 100, draw.randrange(-10, 125)])
    span = draw.choice([3, 12, 40])
    for _ in range(draw.randrange(5)):
        at = max(start + draw.randrange(span), 0) * S
        item = draw.choice("ab")
        id_ = ids * 10 + draw.randrange(4)
        impressions.append(
            Impression(str(user), item, at, id_, ids * 10 + draw.randrange(2), clicked and draw.random() < 0.4)
        )
    kinds = KINDS[1:] if clicked else KINDS + ("click",) * 2
    for _ in range(draw.randrange(7)):
        at = max(start + draw.randrange(-2, span + 20), 0) * S
        name = ids * 10 + draw.randrange(5) if named and draw.random() < 0.4 else None
        actions.append(Action(str(user), draw.choice("ab"), at, draw.choice(kinds), name))
    actions += draw.choices(actions, k=draw.randrange(2)) if actions else []
    return impressions, actions


def write_log(raw: Path, impressions: list[Impression], actions: list[Action], draw: random.Random) -> None:
    """Write both tables in random order, in two parts each."""
    names = {"click": "clk", "cart": "cart", "wish": "fav", "purchase": "buy"}
    shown = [
        {"user": i.user, "item": i.item, "at": i.at, "id": i.id, "context": i.context, "clk": int(i.clicked)}
        for i in impressions
    ]
    acted = [
        {"user": a.user, "item": a.item, "at": a.at, "action": names[a.kind], "impression": a.named} for a in actions
    ]
    acted += [{"user": "1", "item": "a", "at": 5, "action": "pv", "impression": None}] * 3
    for name, rows in (("impressions", shown), ("actions", acted)):
        draw.shuffle(rows)
        (raw / name).mkdir(parents=True)
        for part in range(2):
            pq.write_table(pa.Table.from_pylist(rows[part::2]), raw / name / f"part-{part}.parquet")


@pytest.mark.parametrize(
    ("skew_s", "clicked", "named", "anywhere"),
    [(0, False, False, False), (3, False, False, True), (0, False, True, False), (2, True, True, True)],
)
def test_every_label_of_a_thousand_random_logs_is_that_of_the_reference(
    spark: "SparkSession", tmp_path: Path, skew_s: int, clicked: bool, named: bool, anywhere: bool
) -> None:
    draw = random.Random(f"{skew_s}{clicked}{named}")
    reference = Reference({kind: s * S for kind, s in WINDOWS_S.items()}, skew_s * S, BOUNDARIES, END, anywhere)
    if clicked:
        reference.windows["click"] = 0
    expected, outcomes, all_impressions, all_actions = [], {}, [], []
    for log in range(1, 1001):
        users = (2 * log, 2 * log + 1) if anywhere or log % 3 == 0 else (2 * log,)  # some share contexts and ids
        parts = [random_log(draw, user, clicked, named, log) for user in users]
        impressions, actions = ([event for part in parts for event in part[table]] for table in (0, 1))
        own_context = own_contexts(impressions)
        expected += [
            (i.user, i.item, i.at, i.id, own_context(i), *found) for i, found in reference.label(impressions, actions)
        ]
        for action, outcome, _ in reference.attribute(impressions, [a for a in actions if a.at <= END]):
            counts = outcomes.setdefault(action.kind, {})
            counts[outcome] = counts.get(outcome, 0) + 1
        all_impressions += impressions
        all_actions += actions
    write_log(tmp_path / "raw", all_impressions, all_actions, draw)
    changes: dict[str, Any] = {"clock_skew_s": skew_s}
    changes |= {"click": "clk"} if clicked else {}
    changes |= {"impression": ["impression"]} if named else {}
    reach_ms = max(reference.windows.values()) + reference.windows["click"]
    checks = ChecksSettings(duplicates="global" if anywhere else "context")
    found = run_label(spark, tmp_path / "raw", settings_of(**changes), tmp_path / "staging", checks=checks)
    assert spark.conf.get("spark.sql.shuffle.partitions") == "2", "not Spark's 200, however small the log"
    rows = pq.read_table(tmp_path / "staging" / "labelled").to_pylist()
    columns = (
        "user",
        "item",
        "at",
        "impression_id",
        "context_key",
        "status",
        "split",
        "click_at",
        "daction_at",
        "conversion_at",
    )
    assert sorted(map(repr, expected)) == sorted(repr(tuple(row[name] for name in columns)) for row in rows)
    train_times = [row[name] for row in rows if row["split"] == 0 for name in columns[-3:] if row[name] is not None]
    assert max(train_times) < BOUNDARIES[1] + reach_ms
    assert found.audit["actions"]["outcomes"] == outcomes
    assert found.audit["actions"]["other"] == 3
    assert found.audit["actions"]["read"] == len(all_actions) + 3
    statuses = {row["status"] for row in rows}
    assert statuses == {"good", "immature", "outside_split", "duplicate_impression"}
    met = {outcome for counts in outcomes.values() for outcome in counts}
    assert {"attributed", "no_impression", "no_click", "outside_window"} <= met
    assert ("unknown_impression" in met) == named
