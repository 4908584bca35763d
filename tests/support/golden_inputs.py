"""The input logs of the golden datasets: one from the simulator, two rearrangements of it, and two event logs."""

import csv
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from golden_cases import SIMULATION, H
from golden_process import run_in_one_process

Row = dict[str, Any]


def write_logs(checkout: Path, folder: Path) -> dict[str, Path]:
    """Write a simulated log, the same log in parts, the next day's log, and two event logs."""
    logs = {name: folder / "logs" / name for name in ("log", "log_in_parts", "next_log", "events", "events_in_texts")}
    run_in_one_process(checkout, folder / "simulate", [["jobs.simulate", f"out={logs['log']}", *SIMULATION]])
    for name, rearrange in (("next_log", _swap_splits), ("log_in_parts", _cut_into_parts)):
        logs[name].mkdir()
        for path in sorted(logs["log"].glob("*.csv")):
            rearrange(path, logs[name])
    for name, write in (("events", _write_events), ("events_in_texts", _write_events_in_texts)):
        logs[name].mkdir()
        write(logs[name])
    return logs


def _swap_splits(path: Path, folder: Path) -> None:
    """Make the next day's log: its train split is the first day's test split."""
    other = {"train": "test", "test": "train"}
    table, split = path.stem.rsplit("_", 1)
    (folder / f"{table}_{other[split]}.csv").write_bytes(path.read_bytes())


def _cut_into_parts(path: Path, folder: Path) -> None:
    """Write a skeleton or common features as a directory of three parts; lines of the second end in CR LF."""
    content = path.read_bytes()
    if path.stem.startswith("actions"):
        (folder / path.name).write_bytes(content)
        return
    lines = content.splitlines(keepends=True)
    third = len(lines) // 3
    parts = lines[:third], lines[third : 2 * third], lines[2 * third :]
    (folder / path.stem).mkdir()
    for number, part in enumerate(parts):
        text = b"".join(part)
        (folder / path.stem / f"part-{number}").write_bytes(text.replace(b"\n", b"\r\n") if number == 1 else text)


class Draw:
    """Random numbers that no release of Python changes: those of random.random() alone."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, limit: int) -> int:
        return int(self._random() * limit)

    def happens(self, probability: float) -> bool:
        return self._random() < probability


def _page_views(draw: Draw, count: int) -> Iterator[tuple[int, str, list[str]]]:
    """Yield (time, user, items). Some users and items are numbers, most are texts. The items of a page may repeat."""
    for _ in range(count):
        number = draw.below(60)
        user = str(1000 + number) if number % 7 == 0 else f"user-{number}"
        numbers = [min(draw.below(150), draw.below(150)) for _ in range(1 + draw.below(7))]
        yield draw.below(52 * H), user, [str(n) if n % 5 == 0 else f"item/{n}é" for n in numbers]


def _actions_after(draw: Draw, time: int, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Yield the actions that follow an impression, if any: (time, name)."""
    if not draw.happens(0.35):
        return
    click = time + draw.below(4200)  # some of them come too late
    yield click, names["click"]
    if draw.happens(0.1):
        yield click + draw.below(60), names["click"]
    for kind, probability in (("cart", 0.4), ("wish", 0.2), ("purchase", 0.3), ("view", 0.3)):
        if draw.happens(probability):
            yield click + draw.below(40 * H), names[kind]


def _write_events(folder: Path) -> None:
    """Write Parquet impressions with lists and page views, and JSON lines of actions; some actions name their impression."""

    draw, impressions, actions = Draw(11), [], []
    names = {kind: kind for kind in ("click", "cart", "wish", "purchase", "view")}
    for view, (shown, user, items) in enumerate(_page_views(draw, 800)):
        for item in items:
            at, id_ = shown + draw.below(90), f"i{len(impressions)}" if draw.happens(0.5) else str(len(impressions))
            row: Row = {
                "impression_id": id_, "timestamp": at, "user_id": user, "item_id": item, "page_view_id": f"view {view}",
                "city": ("Oslo", "Bergen", None, "København")[len(user) % 4],
                "categories": [draw.below(30) for _ in range(draw.below(4))],
                "item_category": len(item) * 3,
                "tags": [f"t{draw.below(25)}" for _ in range(draw.below(4))],
                "price": None if draw.happens(0.1) else draw.below(9000) / 8,
            }  # fmt: skip
            row["categories__weight"] = [(1 + draw.below(40)) / 7 for _ in row["categories"]]
            impressions.append(row)
            for then, name in _actions_after(draw, at, names):
                of = {"impression_id": id_ if draw.happens(0.3) else None}
                actions.append({"timestamp": then, "user_id": user, "item_id": item, "action": name, **of})
            if draw.happens(0.01):  # delivered twice
                impressions.append(row | {"timestamp": at + draw.below(20)})
            if draw.happens(0.02):
                broken: Row = (
                    {"user_id": None}, {"page_view_id": None}, {"tags": ["a", None]}, {"price": math.inf},
                    {"categories__weight": [0.5] * 9}, {"impression_id": None}, {"timestamp": None},
                )[draw.below(7)]  # fmt: skip
                impressions.append(row | {"impression_id": f"b{len(impressions)}", **broken})
    schema = pa.schema([
        ("impression_id", pa.string()), ("timestamp", pa.int64()), ("user_id", pa.string()), ("item_id", pa.string()),
        ("page_view_id", pa.string()), ("city", pa.string()), ("categories", pa.list_(pa.int64())),
        ("categories__weight", pa.list_(pa.float64())), ("item_category", pa.int32()),
        ("tags", pa.list_(pa.string())), ("price", pa.float64()),
    ])  # fmt: skip
    (folder / "impressions").mkdir()
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(impressions[part::2], schema), folder / "impressions" / f"{part}.parquet")
    lines = [json.dumps(action, ensure_ascii=False) for action in actions]
    lines.insert(len(lines) // 2, '{"timestamp": 9, "user_id"')
    (folder / "actions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_events_in_texts(folder: Path) -> None:
    """Write CSV tables without impression and page-view ids, with a column of clicks; item attributes are a third table."""

    draw, impressions, actions, known = Draw(12), [], [], set()
    names = {"click": "pv", "cart": "cart", "wish": "fav", "purchase": "buy", "view": "basket"}
    for shown, user, items in _page_views(draw, 700):
        for item in items:
            known.add(item)
            at = shown + draw.below(90)
            after = list(_actions_after(draw, at, names))
            row: Row = {
                "timestamp": at, "user_id": user, "item_id": item, "clk": int(bool(after)),
                "city": ("Oslo", "NULL", "", "Tromsø")[len(user) % 4],
                "categories": "|".join(f"c{draw.below(12)}" for _ in range(draw.below(4))),
            }  # fmt: skip
            row["categories__weight"] = "|".join("0.25" for text in row["categories"].split("|") if text)
            if draw.happens(0.02):
                broken: Row = (
                    {"timestamp": "soon"}, {"clk": 2}, {"categories": "7||9"}, {"categories__weight": "nan"}, {"user_id": ""},
                )[draw.below(5)]  # fmt: skip
                row |= broken
            impressions += [row] * (2 if draw.happens(0.01) else 1)
            for then, name in after[1:]:
                # An action may be stamped a little before what it follows.
                actions.append({"timestamp": then - draw.below(4), "user_id": user, "item_id": item, "btag": name})
    for name, rows in (("impressions.csv", impressions), ("actions.csv", actions)):
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    described = [
        {"id": item, "item_category": len(item) * 7, "tags": [f"t{draw.below(9)}" for _ in range(draw.below(3))]}
        for item in sorted(known)
        if not draw.happens(0.1)
    ]
    pq.write_table(pa.Table.from_pylist(described), folder / "items.parquet")
