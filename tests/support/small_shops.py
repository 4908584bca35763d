"""Small event logs written inline as CSV, and what label() makes of them."""

from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from pipeline.config.events import ActionsSettings, EventsSettings, ImpressionsSettings, JoinSettings
from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.config.preprocess import ChecksSettings
from pipeline.events.find import find_log
from pipeline.events.label import LabelledLog, label
from pipeline.features.fields import catalogue

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Row = dict[str, Any]

NAMES = {"click": ["click"], "cart": ["cart"], "purchase": ["purchase"]}
WINDOWS_S = {"click": 100, "cart": 1000, "purchase": 1000}


def event_settings(**changes: Any) -> EventsSettings:
    """Return settings of CSV tables; `impressions` and `actions` change those of a table, other names the rest."""
    columns: Row = {"format": "csv", "timestamp": "at", "user": ["user"], "item": ["item"]}
    impressions = columns | {"path": "impressions.csv", "id": ["id"], "context": ["page"]}
    fixed: Row = {
        "impressions": ImpressionsSettings(**impressions | changes.pop("impressions", {})),
        "actions": ActionsSettings(**columns | {"path": "actions.csv"} | changes.pop("actions", {})),
        "joins": [JoinSettings(format="csv", **join) for join in changes.pop("joins", [])],
        "names": NAMES,
        "windows_s": WINDOWS_S,
        "boundaries": ["1000", "2000", "2000", "3000"],
        "actions_end": "9000",
    }
    return EventsSettings(**fixed | changes)


def label_shop(
    spark: "SparkSession",
    folder: Path,
    tables: dict[str, str],
    settings: EventsSettings,
    fields: tuple[str, ...] = ("item",),
    daction: tuple[str, ...] = ("cart",),
    **checks: str,
) -> tuple[LabelledLog, list[Row]]:
    """Write the tables as CSV below `folder` and label the log; return also the labelled rows, in order of id and user."""
    (folder / "raw").mkdir()
    for name, text in tables.items():
        (folder / "raw" / f"{name}.csv").write_text(dedent(text).lstrip())
    chosen = catalogue(FeaturesSettings({name: FieldSettings(name, "impression") for name in fields}), 1, timed=True)
    (folder / "staging").mkdir()
    with_actions = bool(settings.named_actions(settings.label_actions(list(daction))))
    log = find_log(str(folder / "raw"), settings, chosen, with_actions)
    found = label(spark, log, settings, chosen, daction, ChecksSettings(**checks), 2, folder / "staging")
    rows = pq.read_table(folder / "staging" / "labelled").to_pylist()
    return found, sorted(rows, key=lambda row: (row["impression_id"] or 0, row["user"] or ""))


def warnings_of(found: LabelledLog) -> dict[str, str]:
    """Return check → the last message."""
    return {doubt["check"]: doubt["message"] for doubt in found.details["warnings"]}
