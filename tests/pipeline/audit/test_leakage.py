"""The leakage check: planted leaks of every kind are named, and nothing else is, however many ids a field has."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.audit.evidence import read_sample
from pipeline.audit.leakage import FieldAuc, field_aucs, find_leaks, leak_warnings, leakage
from pipeline.config.preprocess import AuditSettings
from pipeline.dataset.manifest import DatasetFile, RowGroup
from pipeline.errors import InputError
from pipeline.features.fields import Field

NUM_CONTEXTS, PER_CONTEXT = 600, 10


def field(name: str, arity: str = "one", scope: str = "impression", weighted: bool = False) -> Field:
    return Field(name, name, scope, arity, weighted, 1)


INNOCENT = [
    field("user", scope="context"),
    field("item"),
    field("shops", "many", "context", True),
    field("tags", "many"),
]


def ragged(rng: np.random.Generator, lengths: np.ndarray, high: int) -> list[list[int]]:
    return [rng.integers(1, high, length).tolist() for length in lengths]


def split(seed: int, **leaks: Any) -> pa.Table:
    """Rows of 600 contexts of ten impressions, with innocent fields of few and of many ids, and planted leaks."""
    rng = np.random.default_rng(seed)
    shape = (NUM_CONTEXTS, PER_CONTEXT)
    click = rng.random(shape) < 0.3
    conversion = click & (rng.random(shape) < 0.2)
    ints, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
    num_shops, num_tags = rng.integers(0, 6, NUM_CONTEXTS), rng.integers(0, 4, shape)
    shops = ragged(rng, num_shops, 9)
    columns = {
        "context_id": pa.array([f"{key:016x}" for key in rng.integers(0, 2**62, NUM_CONTEXTS)]),
        "click": pa.array(click.astype(np.int8).tolist(), pa.list_(pa.int8())),
        "conversion": pa.array(conversion.astype(np.int8).tolist(), pa.list_(pa.int8())),
        "user": pa.array(rng.integers(0, 5000, NUM_CONTEXTS), pa.int32()),
        "item": pa.array(rng.integers(0, 100_000, shape).tolist(), ints),
        "shops": pa.array(shops, ints),
        "shops__weight": pa.array([rng.random(len(values)).tolist() for values in shops], floats),
        "tags": pa.array(ragged(rng, num_tags.sum(axis=1), 50), ints),
        "tags__length": pa.array(num_tags.tolist(), ints),
    }
    for name, plant in leaks.items():
        columns |= plant(name, rng, click, conversion)
    return pa.table(columns)


def written(out: Path, **splits: pa.Table) -> list[DatasetFile]:
    files = []
    for name, table in splits.items():
        pq.write_table(table, out / f"{name}.parquet", row_group_size=200)
        groups = (RowGroup(200, 200 * PER_CONTEXT, 0, 0),) * (len(table) // 200)
        files.append(DatasetFile(f"{name}.parquet", name, 0, "", groups))
    return files


def a_value_of_bought_items(name: str, rng: np.random.Generator, click: np.ndarray, conversion: np.ndarray) -> dict:
    return {name: pa.array(np.where(conversion, 7, rng.integers(2, 7, click.shape)).tolist(), pa.list_(pa.int32()))}


def missing_where_not_clicked(name: str, rng: np.random.Generator, click: np.ndarray, _: np.ndarray) -> dict:
    return {name: pa.array(np.where(click, rng.integers(1, 9000, click.shape), 0).tolist(), pa.list_(pa.int32()))}


def one_value_more_after_a_click(name: str, rng: np.random.Generator, click: np.ndarray, _: np.ndarray) -> dict:
    length = 2 + click
    flat = ragged(rng, length.sum(axis=1), 1000)
    kind = pa.list_(pa.int32())
    return {name: pa.array(flat, kind), f"{name}__length": pa.array(length.tolist(), kind)}


def a_tell_among_many_values(name: str, rng: np.random.Generator, click: np.ndarray, _: np.ndarray) -> dict:
    index = rng.integers(2, 30_000, (*click.shape, 100), np.int32)
    index[:, :, 50] = np.where(click, 30_000, index[:, :, 50])
    kind = pa.list_(pa.int32())
    flat = pa.ListArray.from_arrays(np.arange(0, index.size + 1, 100 * PER_CONTEXT, np.int32), index.ravel())
    return {name: flat, f"{name}__length": pa.array(np.full(click.shape, 100).tolist(), kind)}


def a_number_that_the_click_moves(name: str, rng: np.random.Generator, click: np.ndarray, _: np.ndarray) -> dict:
    return {name: pa.array((click * 4 + rng.normal(size=click.shape)).tolist(), pa.list_(pa.float32()))}


PLANTED = [
    (a_value_of_bought_items, "one", "conversion", "values"),
    (missing_where_not_clicked, "one", "click", "values"),
    (one_value_more_after_a_click, "many", "click", "number of values"),
    (a_tell_among_many_values, "many", "click", "loudest value"),
    (a_number_that_the_click_moves, "one", "click", "values"),
]


@pytest.mark.parametrize(("plant", "arity", "label", "by"), PLANTED, ids=[plant.__name__ for plant, *_ in PLANTED])
def test_a_planted_leak_is_named_with_its_label_and_its_kind_and_no_innocent_field_is(
    tmp_path: Path, plant: Any, arity: str, label: str, by: str
) -> None:
    files = written(tmp_path, train=split(1, leak=plant), validation=split(2, leak=plant))
    found = leakage(tmp_path, files, [*INNOCENT, field("leak", arity)], AuditSettings())
    assert found["named"] == [{"field": "leak", "label": label}]
    assert found["auc"]["leak"][label]["by"] == by
    assert found["auc"]["leak"][label]["auc"] > 0.95
    for entry in INNOCENT:
        for numbers in found["auc"][entry.name].values():
            assert abs(numbers["auc"] - 0.5) < 0.1
    (sentence,) = leak_warnings(found)
    assert sentence.startswith(f"leak alone predicts {label} with an AUC of ")


def test_without_validation_one_half_of_the_contexts_scores_the_other(tmp_path: Path) -> None:
    files = written(tmp_path, train=split(1, leak=missing_where_not_clicked))
    found = leakage(tmp_path, files, [*INNOCENT, field("leak")], AuditSettings(leakage_impressions=3000))
    assert found["named"] == [{"field": "leak", "label": "click"}]
    assert found["sample"]["learned"] + found["sample"]["scored"] == 4000  # two row groups
    assert "half" in found["sample"]["scored_on"]


def test_an_auc_of_single_values_is_that_of_the_rates_learned_on_train_ties_at_one_half(tmp_path: Path) -> None:
    def plant(name: str, rng: np.random.Generator, click: np.ndarray, _: np.ndarray) -> dict:
        noisy = np.where(rng.random(click.shape) < 0.7, click, rng.random(click.shape) < 0.5)
        return {name: pa.array((2 + noisy).tolist(), pa.list_(pa.int32()))}

    files = written(tmp_path, train=split(1, hint=plant), validation=split(2, hint=plant))
    samples = [read_sample(tmp_path, files[place : place + 1], 10**6) for place in (0, 1)]
    assert samples[0] is not None
    assert samples[1] is not None
    (result,) = field_aucs(field("hint"), samples[0], samples[1], ["click"])
    flat = {name: samples[1].table.column(name).combine_chunks().flatten().to_numpy() for name in ("hint", "click")}
    assert result.auc == pytest.approx(roc_auc_score(flat["click"], flat["hint"]), abs=1e-9)


def test_a_label_with_a_handful_of_positives_is_not_evaluated(tmp_path: Path) -> None:
    table = split(1)
    never = pa.array(np.zeros((NUM_CONTEXTS, PER_CONTEXT), np.int8).tolist(), pa.list_(pa.int8()))
    table = table.set_column(table.column_names.index("conversion"), "conversion", never)
    found = leakage(tmp_path, written(tmp_path, train=table), INNOCENT, AuditSettings())
    assert not found["labels"]["conversion"]["judged"]
    assert all("conversion" not in numbers for numbers in found["auc"].values())
    assert leakage(tmp_path, written(tmp_path, test=table), INNOCENT, AuditSettings())["named"] == []


def test_what_every_field_tells_is_no_leak_and_what_chance_may_have_told_is_none() -> None:
    alike = [FieldAuc(f"f{number}", "click", 0.95, 0.001, "values") for number in range(5)]
    assert find_leaks(alike, 0.9) == []
    lone = FieldAuc("leak", "click", 0.93, 0.05, "values")
    usual = [FieldAuc(f"f{number}", "click", 0.6, 0.001, "values") for number in range(5)]
    assert find_leaks([*usual, lone], 0.9) == []
    assert find_leaks([*usual, FieldAuc("leak", "click", 0.93, 0.01, "values")], 0.9)
    for wrong in (0.5, 1.1):
        with pytest.raises(InputError, match="leakage_auc"):
            AuditSettings(leakage_auc=wrong)
