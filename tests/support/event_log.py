"""A small event log of a shop, and its files in each format."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


H = 3600


EVENTS = ("source=events", "features=shop", "labels=cart_wish", "vocabulary.min_count=1", "rows.max_impressions=3")


BOUNDARIES = f"source.events.boundaries=[{0},{24 * H},{36 * H},{48 * H}]"


MANY = ("categories", "categories__weight", "tags")


def impression(id_: Any, hour: float, user: str, item: int, view: str, **more: Any) -> Row:
    return {
        "impression_id": id_, "timestamp": int(hour * H), "user_id": user, "item_id": item, "page_view_id": view,
        "city": "Oslo" if user == "ada" else None, "categories": [7, 9], "categories__weight": [0.5, 2.0],
        "item_category": item // 10, "tags": [f"t{item}", "new"] if item % 2 else [],
    } | more  # fmt: skip


def action(hour: float, user: str, item: int, name: str) -> Row:
    return {"timestamp": int(hour * H), "user_id": user, "item_id": item, "action": name}


IMPRESSIONS = [
    impression(1, 1, "ada", 31, "v1"),
    impression(2, 1, "ada", 42, "v1"),
    impression(3, 1.5, "ada", 31, "v1", categories=[8], categories__weight=[1.0]),
    impression(4, 2, "bob", 31, "v2"),
    impression(5, 30, "ada", 42, "v3", item_category=-4),
    impression(6, 40, "bob", 53, "v4"),
    impression(7, 40, "bob", 31, "v4"),
    impression(4, 2.2, "bob", 31, "v2"),  # delivered twice
    impression(8, 50, "bob", 31, "v5"),  # outside the splits
]


ACTIONS = [
    action(1.2, "ada", 31, "click"),
    action(1.9, "ada", 31, "click"),
    action(26, "ada", 31, "purchase"),  # 24.1 h after the second click, which 3 had
    action(2.9, "bob", 31, "click"),  # goes to the copy of 4, and so to 4
    action(4, "bob", 31, "cart"),
    action(40.5, "bob", 53, "wish"),  # not clicked
    action(200, "eve", 1, "click"),
    action(5, "ada", 31, "view"),
]


def write_parquet(root: Path, name: str, rows: list[Row]) -> None:
    (root / name).mkdir(parents=True)
    for part in range(2):
        pq.write_table(
            pa.Table.from_pylist(rows[part::2], schema=pa.Table.from_pylist(rows).schema),
            root / name / f"{part}.parquet",
        )


def write_jsonl(root: Path, name: str, rows: list[Row]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(root: Path, name: str, rows: list[Row]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with (root / name).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "|".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})


WRITERS = {"parquet": write_parquet, "jsonl": write_jsonl, "csv": write_csv}


def written(root: Path, form: str, impressions: list[Row] = IMPRESSIONS, actions: list[Row] = ACTIONS) -> list[str]:
    WRITERS[form](root, "impressions", impressions)
    WRITERS[form](root, "actions", actions)
    return [*EVENTS, BOUNDARIES, f"source.events.impressions.format={form}", f"source.events.actions.format={form}"]
