"""What docs/look.md shows of other tools runs, and all of them see the same impressions."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from raw_log import random_log

from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import Manifest
from pipeline.preprocess import preprocess

PAGE = (Path(__file__).parents[2] / "docs" / "look.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TOOLS = {"duckdb": 1, "polars": 2, "pandas": 3, "pyspark": 4}
COLUMNS = ["context_id", "group_id", "user_age", "impression_id", "item_id", "click", "conversion"]


@pytest.fixture(scope="module")
def dataset(
    spark: object, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Callable[..., PreprocessSettings]
) -> tuple[Path, Manifest]:
    root = tmp_path_factory.mktemp("other")
    raw = random_log(8, num_contexts=12).write(root / "raw")
    settings = preprocess_settings(raw, root / "out", "rows.impressions_per_file=100", "vocabulary.min_count=1")
    return root / "out", preprocess(settings)


@pytest.mark.parametrize("tool", TOOLS)
def test_the_lines_of_the_page_give_one_row_an_impression(dataset: tuple[Path, Manifest], tool: str) -> None:
    out, manifest = dataset
    names: dict[str, Any] = {}
    for number in (0, TOOLS[tool]):
        exec(SHOWN[number].replace("DATASET", str(out)), names)
    assert tool in SHOWN[TOOLS[tool]]
    shown = names["impressions"]
    if hasattr(shown, "toPandas"):
        shown = shown.toPandas()
    rows = shown.to_dict("records") if hasattr(shown, "iterrows") else shown.to_dicts()
    found = sorted(tuple(none_if_nan(row[name]) for name in COLUMNS) for row in rows)
    expected = [
        (row["context_id"], row["group_id"], row["user_age"], *(row[name][place] for name in COLUMNS[3:]))
        for file in manifest.files_of("train")
        for row in pq.read_table(out / file.path).to_pylist()
        for place in range(len(row["impression_id"]))
    ]
    assert found == sorted(expected)
    assert len(names["files"]) > 1
    if tool == "duckdb":
        table = pq.read_table(out / next(field.vocabulary for field in manifest.fields if field.name == "item_id"))
        raw_id = dict(zip(table["index"].to_pylist(), table["raw_id"].to_pylist(), strict=True))
        assert all(none_if_nan(row["raw_id"]) == raw_id.get(row["item_id"]) for row in rows)


def test_the_lines_of_the_page_show_each_quarantined_line_with_its_reason(dataset: tuple[Path, Manifest]) -> None:
    out, manifest = dataset
    names: dict[str, Any] = {}
    exec(SHOWN[5].replace("DATASET", str(out)), names)
    shown = names["quarantine"]
    assert len(shown) == sum(manifest.audit["quarantined"].values()) > 0
    assert set(shown["reason"]) == {reason for reason, number in manifest.audit["quarantined"].items() if number}


def none_if_nan(value: Any) -> Any:
    return None if value is None or value != value else value
