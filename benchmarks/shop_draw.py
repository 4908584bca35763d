"""Draw small random shops: their events as plain values, settings that describe them, and files as some shop writes them.

A world is what one job reads: some shops with users of their own, one way of writing each table, and one set of settings.
"""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd

from pipeline.config.events import ActionsSettings, EventsSettings, ImpressionsSettings, JoinSettings

Row = dict[str, Any]
BASES = ("2024-05-01T00:00:00", "2024-10-26T20:00:00")  # the second has the night in which Paris shows an hour twice
ZONES = ("UTC", "Asia/Shanghai", "Europe/Paris", "-03:30")
KINDS = ("click", "cart", "purchase")
NAMES = {"click": ["click", "tap"], "cart": ["cart"], "purchase": ["buy"]}
DAY_S = 86400


@dataclass
class World:
    """The events of some shops by their meaning, and the settings for the files that write_world writes."""

    settings: EventsSettings
    duplicates: str
    impressions: list[Row]  # user, item, at, id, page, city, flag, flag_at, sold, sold_at; None where it cannot be read
    actions: list[Row]  # user, item, at, name
    history: list[Row]  # item, since, cat
    writers: dict[str, "TableWriter"] = field(default_factory=dict)


@dataclass
class TableWriter:
    """How one table is written."""

    format: str
    unit: str  # a setting, or "type" for timestamps by type
    zone: str
    parts: int
    spoil: dict[str, Callable[[str], Any]]  # column → how a text is written that `clean` makes plain again
    draw: random.Random

    def time(self, at_s: int | None) -> Any:
        """Write a time; of none, a text that is none."""
        if at_s is None:
            return self.draw.choice([None, "soon", "10:01:00"]) if self.is_text else None
        moment = datetime.fromtimestamp(at_s, UTC)
        local = moment.astimezone(zone_of(self.zone))
        if self.unit in ("s", "ms", "us", "ns"):
            return at_s * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[self.unit]
        if self.unit == "type":
            return pd.Timestamp(local.replace(tzinfo=None))
        if self.unit != "iso":
            return local.strftime("%Y%m%d %H:%M:%S")
        text = local.strftime("%Y-%m-%d %H:%M:%S")
        return text if self.draw.random() < 0.7 else f"{moment:%Y-%m-%dT%H:%M:%S}Z"

    def first(self, at_s: int | None) -> int | None:
        """Return the time that a local clock means: of an hour that it shows twice, it is the first."""
        if at_s is None or self.unit in ("s", "ms", "us", "ns"):
            return at_s
        return int(datetime.fromtimestamp(at_s, zone_of(self.zone)).replace(fold=0).timestamp())

    @property
    def is_text(self) -> bool:
        """Whether times are texts, and so may be none."""
        return self.unit not in ("type",) and (self.format != "parquet" or self.unit in ("iso", PATTERN))

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        """Write the rows, in parts; later parts have their columns in another order, or one more."""
        rows = [{name: self._value(name, value) for name, value in row.items()} for row in rows]
        path.mkdir(parents=True)
        for part in range(self.parts):
            mine = rows[part :: self.parts] or rows[:0]
            names = list(rows[0])
            extra = self.parts > 1 and part and self.draw.random() < 0.5
            if part:
                self.draw.shuffle(names)
            mine = [{name: row[name] for name in names} | ({"note": "x, y"} if extra else {}) for row in mine]
            if mine:
                self._write_part(path / f"part-{part}.{self.format}", mine)

    def _value(self, name: str, value: Any) -> Any:
        if value is None or name not in self.spoil:
            return value
        return self.spoil[name](value)

    def _write_part(self, path: Path, rows: Sequence[Row]) -> None:
        if self.format == "parquet":
            frame = pd.DataFrame(rows, dtype="object").infer_objects()
            for name in frame.columns:
                if all(value is None or type(value) is int for value in (row[name] for row in rows)):
                    frame[name] = frame[name].astype("Int64")  # pandas would make floats of them beside a None
            frame.to_parquet(path, index=False)
        elif self.format == "jsonl":
            with path.open("w") as stream:
                for number, row in enumerate(rows):  # a missing value is null, or not there at all
                    kept = {
                        name: value
                        for name, value in row.items()
                        if value is not None or number == 0 or self.draw.random() < 0.5
                    }
                    stream.write(json.dumps(kept) + "\n")
        else:
            with path.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, rows[0], lineterminator=self.draw.choice(["\n", "\r\n"]))
                writer.writeheader()
                writer.writerows(rows)


PATTERN = "yyyyMMdd HH:mm:ss"


def zone_of(name: str) -> Any:
    """Return the zone of a setting."""
    return datetime.fromisoformat(f"2024-01-01T00:00:00{name}").tzinfo if name[0] in "+-" else ZoneInfo(name)


def draw_world(seed: int, num_shops: int) -> World:
    """Draw the settings, and the events of `num_shops` shops."""
    draw = random.Random(seed)
    base = int(datetime.fromisoformat(draw.choice(BASES)).replace(tzinfo=UTC).timestamp())
    writers = {name: _draw_writer(draw) for name in ("impressions", "actions", "history")}
    one_table = draw.random() < 0.2
    if one_table:
        writers["actions"] = writers["impressions"]
    labels = "actions" if one_table else draw.choice(["actions", "actions", "flag", "flag_at", "all"])
    join = draw.choice([None, "plain", "asof"])
    writers["history"].unit = "s" if join != "asof" else writers["history"].unit
    settings = _draw_settings(draw, base, writers, labels, join, one_table)
    world = World(
        settings, draw.choice(["context", "context", "global"]), [], [], _draw_history(draw, base, join), writers
    )
    for shop in range(num_shops):
        _draw_shop(draw, world, base, shop)
    for table, rows, names in (
        ("impressions", world.impressions, ("at", "flag_at", "sold_at")), ("actions", world.actions, ("at",)),
        ("history", world.history, ("since",)),
    ):  # fmt: skip
        for row in rows:
            row.update({name: writers[table].first(row[name]) for name in names})
    if one_table:  # a table of all events has one list of columns
        world.impressions = [row | {"name": "view"} for row in world.impressions]
    return world


def _draw_writer(draw: random.Random) -> TableWriter:
    form = draw.choice(["csv", "jsonl", "parquet"])
    units = ["s", "ms", "us", "ns", "iso", PATTERN] + (["type"] * 3 if form == "parquet" else [])
    spoil: dict[str, Callable[[str], Any]] = {}
    if draw.random() < 0.4:
        spoil["item"] = draw.choice([lambda text: f"0{text}", lambda text: f"{text}.0", lambda text: f" {text}", float])
    if draw.random() < 0.3:
        spoil["user"] = draw.choice([str.upper, lambda text: f"{text} ", str.title])
    return TableWriter(form, draw.choice(units), draw.choice(ZONES), draw.choice([1, 2]), spoil, draw)


def _draw_settings(
    draw: random.Random, base: int, writers: dict[str, TableWriter], labels: str, join: str | None, one_table: bool
) -> EventsSettings:
    def table(name: str) -> Row:
        writer = writers[name]
        clean = {
            column: ["trim", "integer"] if column == "item" else ["trim", "lower"]
            for column in writer.spoil
            if column == "item" or name != "history"
        }
        unit = "s" if writer.unit == "type" else writer.unit
        return {"path": name, "format": writer.format, "time_unit": unit, "time_zone": writer.zone, "clean": clean}

    columns: Row = {"timestamp": "at", "user": ["user"], "item": ["item"]}
    shown = columns | table("impressions") | {
        "id": draw.choice([["id"], ["id"], []]), "context": draw.choice([["page"], ["page"], []]),
    }  # fmt: skip
    acted = columns | table("actions") | {"action": "name"}
    names = dict(NAMES)
    if labels in ("flag", "flag_at", "all"):
        shown["click"] = "flag"
        names["click"] = []
    if labels in ("flag_at", "all"):
        shown["click_time"] = "flag_at"
    if labels == "all":
        shown |= {"conversion": "sold", "conversion_time": "sold_at"}
        names["purchase"] = []
    if one_table:
        shown["where"] = {"name": ["view"]}
        acted["where"] = {"name": ["click", "tap", "cart", "buy", "look"]}
        acted["path"] = "impressions"
        acted["clean"] = shown["clean"]
    joins = []
    if join:
        of_history = {
            name: value for name, value in table("history").items() if join == "asof" or not name.startswith("time")
        }
        joins = [JoinSettings(by=["item"], key=["item"], asof="since" if join == "asof" else None, **of_history)]
    t1 = base + DAY_S
    return EventsSettings(
        impressions=ImpressionsSettings(**shown),
        actions=ActionsSettings(**acted),
        joins=joins,
        names=names,
        windows_s={"click": draw.choice([60, 3600]), "cart": 7200, "purchase": draw.choice([3600, 40000])},
        boundaries=[str(second) for second in (base, t1, t1 + draw.choice([0, DAY_S // 2]), base + 2 * DAY_S)],
        actions_end=draw.choice([None, str(base + 2 * DAY_S), str(base + 3 * DAY_S)]),
        clock_skew_s=draw.choice([0, 0, 5]),
        context_window_s=draw.choice([600, 1800]),
        nulls=["", "-"],
    )


def _draw_history(draw: random.Random, base: int, join: str | None) -> list[Row]:
    rows = []
    for item in range(6):
        if draw.random() < 0.8:
            for _ in range(draw.randrange(1, 4) if join == "asof" else 1):
                since = base + draw.choice([-100, 0, draw.randrange(2 * DAY_S)])
                if not any(row["item"] == str(item) and row["since"] == since for row in rows):
                    rows.append({"item": str(item), "since": since, "cat": str(draw.randrange(9))})
    rows += draw.sample(rows, k=len(rows) // 3)  # delivered twice
    return rows or [{"item": "99", "since": base, "cat": "1"}]


def _draw_shop(draw: random.Random, world: World, base: int, shop: int) -> None:
    users = [f"u{shop}x{number}" for number in range(draw.randrange(1, 4))]
    start = base + draw.choice([0, -600, DAY_S - 300, DAY_S * 3 // 2, 2 * DAY_S - 100, draw.randrange(2 * DAY_S)])
    span = draw.choice([30, 600, 9000])
    shown: list[Row] = []
    for number in range(draw.randrange(1, 7)):
        at = start + draw.randrange(span)
        own_id, page = str(shop * 100 + draw.choice([number, number, 0])), str(shop * 10 + draw.randrange(2))
        row: Row = {
            "user": draw.choice(users), "item": str(draw.randrange(4)), "at": at, "id": own_id,
            "page": draw.choice([page, page, page, "0"]), "city": draw.choice(["oslo", "-", None, "5"]),
            "flag": "0", "flag_at": None, "sold": "0", "sold_at": None, "name": None,
        }  # fmt: skip
        if draw.random() < 0.5:
            row |= {"flag": "1", "flag_at": at + draw.choice([0, 5, 59, 61, 4000])}
            if draw.random() < 0.5:
                row |= {"sold": "1", "sold_at": row["flag_at"] + draw.choice([0, 10, 3600, 3601, 50000])}
        # Two different rows of one user, item and moment have one made id, and which of them stays is not defined.
        if not any(
            (row["user"], row["item"], row["at"]) == (other["user"], other["item"], other["at"]) for other in shown
        ):
            shown.append(row)
    for row in [row for row in shown if draw.random() < 0.2]:
        copy = row | {"at": row["at"] + draw.choice([0, 0, 3])}  # delivered twice
        if copy["at"] != row["at"] and any(
            (copy["user"], copy["item"], copy["at"]) == (other["user"], other["item"], other["at"]) for other in shown
        ):
            continue
        shown.append(copy)
        if shown[-1]["at"] != row["at"]:
            shown[-1] |= {"flag": "0", "flag_at": None, "sold": "0", "sold_at": None}
    for row in shown:
        if draw.random() < 0.08:
            name = draw.choice(["user", "item", "id", "page", "at"])
            row[name] = None
            if name == "at":
                row |= {"flag_at": None, "flag": "0", "sold": "0", "sold_at": None}
    acted: list[Row] = []
    for _ in range(draw.randrange(9)):
        name = draw.choice(["click", "click", "tap", "cart", "buy", "look"])
        row = {
            "user": draw.choice(users),
            "item": str(draw.randrange(4)),
            "at": start + draw.randrange(-5, span + 3000),
            "name": name,
        }
        if draw.random() < 0.06:
            row[draw.choice(["user", "item", "at", "name"])] = None
        acted.append(row)
    acted += draw.sample(acted, k=len(acted) // 5)
    world.impressions += shown
    world.actions += acted


def write_world(world: World, folder: Path) -> None:
    """Write the tables of a world below `folder`, in random order."""
    draw = world.writers["impressions"].draw
    writer = world.writers["impressions"]
    shown = [_with_times(writer, row, ("at", "flag_at", "sold_at")) for row in world.impressions]
    acting = world.writers["actions"]
    acted = [_with_times(acting, row, ("at",)) for row in world.actions]
    if acting is writer:
        columns = dict.fromkeys(shown[0])
        shown += [columns | row for row in acted]
        draw.shuffle(shown)
        writer.write(folder / "impressions", shown)
    else:
        for name, mine, rows in (("impressions", writer, shown), ("actions", acting, acted)):
            draw.shuffle(rows)
            if rows:
                mine.write(folder / name, rows)
    keeper = world.writers["history"]
    keeper.write(folder / "history", [_with_times(keeper, row, ("since",)) for row in world.history])


def _with_times(writer: TableWriter, row: Row, names: Sequence[str]) -> Row:
    """Write the times of a row; a label that did not follow has none."""
    found = dict(row)
    for name in names:
        found[name] = None if row[name] is None and name in ("flag_at", "sold_at") else writer.time(row[name])
    return found
