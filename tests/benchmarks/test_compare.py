"""benchmarks.compare: settings with commas are crossed, and a study that was cut short goes on."""

import json
from pathlib import Path

import pytest
from tiny_dataset import write_tiny_dataset

from benchmarks import compare
from benchmarks.runs import CONTEXTS


def test_values_with_commas_are_crossed_and_lists_are_one_value() -> None:
    assert compare.crossed("model=esmm a=1,2 b=[3,4] c=5,6") == [
        ["model=esmm", "a=1", "b=[3,4]", "c=5"],
        ["model=esmm", "a=1", "b=[3,4]", "c=6"],
        ["model=esmm", "a=2", "b=[3,4]", "c=5"],
        ["model=esmm", "a=2", "b=[3,4]", "c=6"],
    ]


def test_a_study_trains_each_seed_once_and_goes_on_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=100)
    overrides = [["model=esmm", "plan.batch_size=40", "world.device=cpu", "embedding.dims.item_id=6"]]
    data, results = [str(tmp_path / "data")], tmp_path / "results.jsonl"
    first = compare.study(overrides, data, [], "test", [1], results)
    both = compare.study(overrides, data, [], "test", [1, 2], results)
    (runs,) = both.values()
    assert runs[0] == next(iter(first.values()))[0]
    assert runs[0]["ctr_auc"] != runs[1]["ctr_auc"]
    assert 0 < runs[0][CONTEXTS] <= 40
    assert len(results.read_text().splitlines()) == 2
    monkeypatch.setattr(compare, "run", None)  # nothing is trained again
    assert compare.study(overrides, data, [], "test", [1, 2], results) == both
    assert json.loads(results.read_text().splitlines()[0])["figures"] == runs[0]
    values = [figures["ctr_auc"] for figures in runs]
    spread = abs(values[0] - values[1]) / 2**0.5
    assert f"{sum(values) / 2:.4f} ± {spread:.4f}" in compare.table(both)
