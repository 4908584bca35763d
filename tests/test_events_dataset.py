"""source=events through the whole chain: the same dataset from every format, and each mistake in one sentence."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline.manifest import InputError, Manifest
from pipeline.preprocess import preprocess
from pipeline.settings import PreprocessSettings

Settings = Callable[..., PreprocessSettings]
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
    impression(5, 30, "ada", 42, "v3"),
    impression(6, 40, "bob", 53, "v4"),
    impression(7, 40, "bob", 31, "v4"),
    impression(4, 2.2, "bob", 31, "v2"),  # delivered twice
    impression(8, 50, "bob", 31, "v5"),  # outside the splits
]
ACTIONS = [
    action(1.2, "ada", 31, "click"),
    action(1.9, "ada", 31, "click"),
    action(26, "ada", 31, "purchase"),  # 24.1 h after the second click, which 3 had
    action(3.1, "bob", 31, "click"),  # 0.9 h after the copy of 4, 1.1 h after 4
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


def text_id(text: str) -> int:
    return xxhash.xxh64(text.encode(), seed=42).intdigest() & ((1 << 63) - 1)


def rows_of(out: Path, manifest: Manifest) -> dict[str, list[Row]]:
    """split → context rows with raw ids."""
    ids = {}
    for field in manifest.fields:
        ids[field.name] = [None, -1, *pq.read_table(out / field.vocabulary)["raw_id"].to_pylist()]
    found: dict[str, list[Row]] = {}
    for file in manifest.files:
        for row in pq.read_table(out / file.path).to_pylist():
            for field in manifest.fields:
                value = row[field.name]
                row[field.name] = (
                    [ids[field.name][i] for i in value] if isinstance(value, list) else ids[field.name][value]
                )
            found.setdefault(file.split, []).append(row)
    return found


@pytest.mark.usefixtures("spark")
def test_labelled_impressions_become_context_rows_with_their_features_times_and_labels(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    overrides = written(tmp_path / "raw", "parquet")
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))
    found = rows_of(tmp_path / "out", manifest)
    first = next(row for row in found["train"] if row["context_id"] == f"{text_id('v1'):016x}")
    assert first == {
        "context_id": f"{text_id('v1'):016x}", "group_id": text_id("ada"),
        "user_id": text_id("ada"), "user_city": text_id("Oslo"),
        "user_categories": [7, 9], "user_categories__weight": [0.5, 2.0],
        "impression_id": [1, 2, 3], "timestamp": [3_600_000, 3_600_000, 5_400_000],
        "click": [1, 0, 1], "daction": [0, 0, 0], "conversion": [0, 0, 1],
        "item_id": [31, 42, 31], "item_category": [3, 4, 3],
        "item_tags": [text_id("t31"), text_id("new")] * 2, "item_tags__length": [2, 0, 2],
    }  # fmt: skip
    second = next(row for row in found["train"] if row["context_id"] == f"{text_id('v2'):016x}")
    assert (second["impression_id"], second["click"], second["daction"]) == ([4], [1], [1])
    assert second["user_city"] is None
    assert [row["impression_id"] for row in found["validation"]] == [[5]]
    assert [(row["impression_id"], row["item_id"]) for row in found["test"]] == [([6, 7], [-1, 31])]
    assert manifest.audit["quarantined"]["duplicate_impression"] == 1
    assert manifest.audit["events"]["impressions"]["outside_split"] == 1
    assert manifest.audit["events"]["actions"]["outcomes"]["wish"] == {"no_click": 1}
    assert manifest.audit["events"]["actions"]["other"] == 1
    assert "259200 s" in manifest.labels["conversion"]


@pytest.mark.usefixtures("spark")
def test_parquet_json_lines_and_csv_of_one_log_give_the_same_files_whatever_the_splits(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    manifests = []
    for form in WRITERS:
        overrides = written(tmp_path / form, form)
        split_bytes = "source.split_bytes=300" if form == "csv" else "source.split_bytes=100000"
        settings = preprocess_settings(tmp_path / form, tmp_path / f"out-{form}", *overrides, split_bytes)
        manifests.append(preprocess(settings))
    assert manifests[0].files
    for manifest in manifests[1:]:
        assert manifest.files == manifests[0].files
        assert manifest.fields == manifests[0].fields


@pytest.mark.usefixtures("spark")
def test_rows_with_defects_are_in_quarantine_whole_and_the_audit_balances(
    tmp_path: Path, preprocess_settings: Settings
) -> None:
    broken = [
        (impression(11, 1, "eve", 1, "v9") | {"timestamp": "soon"}, "malformed_line"),
        (impression(12, 1, "eve", 1, "v9") | {"user_id": None}, "malformed_line"),
        (impression(13, 1, "eve", 1, "v9") | {"page_view_id": None}, "bad_context_key"),
        (impression(14, 1, "eve", 1, "v9") | {"categories__weight": [0.5]}, "bad_feature"),
        (impression(15, 1, "eve", 1, "v9") | {"categories__weight": [0.5, math.inf]}, "bad_feature"),
        (impression(16, 1, "eve", 1, "v9") | {"tags": ["a", None]}, "bad_feature"),
    ]
    overrides = written(tmp_path / "raw", "jsonl", IMPRESSIONS + [row for row, _ in broken])
    with (tmp_path / "raw" / "impressions").open("a") as stream:
        stream.write('{"impression_id": 17, "timest\n')
    manifest = preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "out", *overrides))
    (file,) = manifest.audit["quarantine"]
    found = pq.read_table(tmp_path / "out" / file["path"]).to_pylist()
    reasons = sorted(row["reason"] for row in found)
    assert reasons == sorted([reason for _, reason in broken] + ["malformed_line", "duplicate_impression"])
    assert b'{"impression_id": 17, "timest' in [row["line"] for row in found]
    assert {json.loads(row["line"])["impression_id"] for row in found if row["reason"] == "bad_feature"} == {
        "14",
        "15",
        "16",
    }
    read = sum(lines["impressions"]["read"] for lines in manifest.audit["lines"].values())
    aside = manifest.audit["events"]["impressions"]
    assert aside["read"] == len(IMPRESSIONS) + len(broken) + 1
    assert aside["read"] == read + aside["outside_split"] + sum(aside["immature"].values())
    with pytest.raises(
        InputError, match=r'bad_feature in the row \{"impression_id":"14".*checks.bad_feature=quarantine'
    ):
        preprocess(preprocess_settings(tmp_path / "raw", tmp_path / "other", *overrides, "checks.bad_feature=fail"))
