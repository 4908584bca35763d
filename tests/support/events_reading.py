"""Read the impressions of a small event log, whatever its format: one dict a row, with text ids as the log has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.events import ActionsSettings, EventsSettings, ImpressionsSettings, JoinSettings
from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.events.find import find_log
from pipeline.events.parse_tables import parse_tables
from pipeline.events.rows import Periods, impressions_of
from pipeline.events.tables import EventLog
from pipeline.features.fields import Catalogue, catalogue
from pipeline.spark.exceptions import plain_errors

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: Of both tables; `fields` and the settings of a case add to it.
HEADER = "id,user,item,view,at"
_FAR = 253_402_300_799


def settings_of(
    impressions: Mapping[str, Any], actions: Mapping[str, Any] | None = None, joins: tuple[Any, ...] = (), **more: Any
) -> EventsSettings:
    """Make the settings of a log whose columns are called as in HEADER."""
    columns: dict[str, Any] = {"user": ["user"], "item": ["item"], "timestamp": "at"}
    return EventsSettings(
        impressions=ImpressionsSettings(**columns | {"id": ["id"], "context": ["view"]} | dict(impressions)),
        actions=ActionsSettings(**columns | dict(actions or {"path": "actions.csv", "format": "csv"})),
        joins=[JoinSettings(**join) for join in joins],
        names={"click": [] if impressions.get("click") else ["click"], "purchase": ["buy"]},
        windows_s={"click": 60, "purchase": 60},
        boundaries=["0", "1", "1", str(_FAR)],
        actions_end=str(_FAR),
        **more,
    )


def find(root: Path, settings: EventsSettings, **fields: FieldSettings) -> tuple[EventLog, Catalogue]:
    """Find the tables below `root`, with a file of actions where there is none, before Spark starts."""
    if not (root / "actions.csv").exists():
        (root / "actions.csv").write_text("user,item,action,at\nu,1,click,1\n")
    chosen = catalogue(FeaturesSettings(fields or {"item": FieldSettings("item", "impression")}), 1, timed=True)
    return find_log(str(root), settings, chosen, start_session=_session), chosen


def _session() -> "SparkSession":
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    assert session is not None
    return session


def read_impressions(
    spark: "SparkSession", root: Path, settings: EventsSettings, **fields: FieldSettings
) -> dict[str, dict[str, Any]]:
    """Read the impressions below `root`: id → status, clicked, at, user, item, line, and the value of each field.

    Rows without an id stand under their line.
    """
    log, chosen = find(root, settings, **fields)
    staging = root.with_name(f"{root.name}-staging")
    staging.mkdir()
    with plain_errors():
        log = parse_tables(spark, log, settings, chosen, 2, staging)
    periods = Periods(settings.boundaries_ms(), settings.actions_end_ms() or 0)
    found = {}
    for row in impressions_of(spark, log, settings, chosen, periods).collect():
        values = {entry.name: row[f"f{number}"] for number, entry in enumerate(chosen.fields)}
        shown = {name: row[name] for name in ("status", "clicked", "at", "user", "line", "impression_id")}
        found[str(row["impression_id"] if row["impression_id"] is not None else row["line"])] = shown | values
    return found
