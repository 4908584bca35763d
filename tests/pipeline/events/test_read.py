"""Event logs full of bad values, in each format: every row's ids, time, features, labels or reason are those of the slow reading."""

import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from references.events import Action, Impression, Reference, own_contexts
from references.events_rows import (
    COLUMNS,
    IDS,
    TIMES,
    Row,
    milliseconds,
    mutated,
    random_row,
    read_row,
    row_of,
    write_rows,
)

from pipeline.config.events import ActionsSettings, EventsSettings, ImpressionsSettings
from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.config.preprocess import ChecksSettings
from pipeline.events.find import find_log
from pipeline.events.label import label
from pipeline.features.fields import catalogue

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

S = 1000
FIELDS = {
    "city": FieldSettings("city", "context"), "item": FieldSettings("item", "impression"),
    "cats": FieldSettings("cats", "impression", "many", True), "tags": FieldSettings("tags", "impression", "many"),
}  # fmt: skip
CATALOGUE = catalogue(FeaturesSettings(FIELDS), 1, timed=True)
WINDOWS_S = {"click": 0, "cart": 20, "purchase": 30}
BOUNDARIES = (2 * S, 30 * S, 50 * S, 90 * S)
END = 110 * S
WINDOW_MS = 7 * S
BROKEN = {
    "jsonl": ['{"user": "u1", "at', "null", "7"],
    "csv": ["u1,2", ",".join("abcdefghijklm"), "x"],
    "parquet": [],
}


def settings_of(form: str, made: bool) -> EventsSettings:
    columns = {"user": ["user"], "item": ["item"], "timestamp": "at", "format": form}
    return EventsSettings(
        impressions=ImpressionsSettings(
            id=[] if made else ["id"], context=[] if made else ["view"], click="clk", **columns
        ),
        actions=ActionsSettings(**columns),
        names={"cart": ["cart"], "purchase": ["buy"]},
        windows_s=WINDOWS_S,
        context_window_s=WINDOW_MS // S,
        boundaries=[str(ms // S) for ms in BOUNDARIES],
        actions_end=str(END // S),
    )


def random_action(draw: random.Random) -> Row:
    row = {"user": f"u{draw.randrange(8)}", "item": str(draw.randrange(4)), "at": f"{draw.uniform(0, 130):.3f}", "action": draw.choice(("cart", "buy", "pv"))}  # fmt: skip
    if draw.random() < 0.3:
        name = draw.choice(list(row))
        row[name] = draw.choice(TIMES if name == "at" else ("", *IDS))
    return row


def read_action(row: Row) -> tuple[str, Action | None]:
    """Return (what is counted, the action that may make a label)."""
    at, kind = milliseconds(row["at"] or None), {"cart": "cart", "buy": "purchase"}.get(row["action"])
    if at is None or not row["user"] or not row["action"] or (kind and not row["item"]):
        return "malformed", None
    if kind is None:
        return "other", None
    return ("after_end", None) if at > END else ("good", Action(row["user"], row["item"], at, kind))


@pytest.mark.parametrize(
    ("form", "made", "num_mutated"),
    [("parquet", False, 0), ("jsonl", True, 0), ("csv", False, 0), ("jsonl", False, 600)],
)
def test_every_row_of_a_log_full_of_bad_values_is_read_as_the_reference_reads_it(
    spark: "SparkSession", tmp_path: Path, form: str, made: bool, num_mutated: int
) -> None:
    draw = random.Random(form)
    rows = [random_row(draw, number) for number in range(1200)]
    if not num_mutated:  # two copies at one moment must be the same, or it is not defined which stays
        rows += rows[:400:9]  # delivered twice
    rows = write_rows(tmp_path / "impressions", form, rows)
    actions = [random_action(draw) for _ in range(600)]
    write_rows(tmp_path / "actions", form, actions)
    with (tmp_path / "impressions").open("a") as stream:
        stream.writelines(f"{line}\n" for line in BROKEN[form])
    num_broken = len(BROKEN[form])
    if num_mutated:
        lines = (tmp_path / "impressions").read_bytes().splitlines()
        for place in draw.sample(range(len(lines)), num_mutated):
            lines[place] = mutated(draw, lines[place], draw.choice(lines))
        (tmp_path / "impressions").write_bytes(b"\n".join(lines))
        taken_apart = [row_of(line) for line in lines if line.strip()]
        rows = [row for row in taken_apart if row is not None]
        num_broken = len(taken_apart) - len(rows)
        assert num_broken > num_mutated / 3
    settings = settings_of(form, made)
    (tmp_path / "staging").mkdir()
    log = find_log(str(tmp_path), settings, CATALOGUE)
    found = label(spark, log, settings, CATALOGUE, ["cart"], ChecksSettings(), 2, tmp_path / "staging")

    readings = [read_row(row, WINDOW_MS if made else None) for row in rows]
    shown = [
        (Impression(r.user, r.item, r.at, r.id, r.context, r.clicked, r.status), r.features)
        for r in readings if r.user is not None and r.item is not None and r.id is not None
    ]  # fmt: skip
    features_of = dict(shown)
    counted, read_actions = Counter(), []
    for status, action in map(read_action, actions):
        counted[status] += 1
        read_actions += [action] if action else []
    reference = Reference({kind: s * S for kind, s in WINDOWS_S.items()}, 0, BOUNDARIES, END)
    expected, own_context = [], own_contexts([impression for impression, _ in shown if impression.context is not None])
    for impression, (status, split, *times) in reference.label([impression for impression, _ in shown], read_actions):
        features = features_of[impression] if status not in ("bad_label", "bad_context_key", "bad_feature") else ()
        context = None if impression.context is None else own_context(impression)
        key = (impression.user, impression.item, impression.at, impression.id, context)
        expected.append((status, split, *key, *times, *features))
    labelled = pq.read_table(tmp_path / "staging" / "labelled").drop_columns("line").to_pylist()
    names = (
        "status",
        "split",
        "user",
        "item",
        "at",
        "impression_id",
        "context_key",
        "click_at",
        "daction_at",
        "conversion_at",
    )
    features = ("f0", "f1", "f2", "w2", "f3")
    got = [
        (*(row[name] for name in names), *(row[name] for name in features if not row["status"].startswith("bad_")))
        for row in labelled
        if row["status"] != "malformed_line"
    ]
    assert sorted(map(repr, got)) == sorted(map(repr, expected))
    statuses = Counter(row["status"] for row in labelled)
    num_malformed = sum(reading.status == "malformed_line" for reading in readings) + num_broken
    assert statuses["malformed_line"] == num_malformed
    reasons = {"malformed_line", "bad_label", "bad_feature", "duplicate_impression"} | (
        set() if made else {"bad_context_key"}
    )
    assert set(statuses) == {"good", "outside_split", "immature"} | reasons
    rejected = pq.read_table(tmp_path / "staging" / "rejected")["line"].cast(pa.binary()).to_pylist()
    assert len(rejected) == sum(statuses[reason] for reason in reasons)
    assert all(rejected)
    wanted = {
        "read": len(actions),
        "malformed": counted["malformed"],
        "other": counted["other"],
        "after_end": counted["after_end"],
    }
    assert {name: found.audit["actions"][name] for name in wanted} == wanted
    assert found.audit["impressions"]["read"] == len(rows) + num_broken
    assert set(COLUMNS) == set(rows[0])
