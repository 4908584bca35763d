"""The commands make of fixed inputs what they made when golden.json was recorded (see tests/support/golden_runs.py)."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import golden_runs
import pytest
from golden_cases import DATASETS, RUNS
from golden_comparison import all_differences, differences, run_differences
from golden_record import Record

GOLDEN: Record = json.loads(golden_runs.GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Run the commands of this checkout, or of the one that the environment names."""
    checkout = Path(os.environ.get(golden_runs.CHECKOUT, golden_runs.ROOT))
    return golden_runs.run_all(checkout.resolve(), tmp_path_factory.mktemp("golden"))


def message_of(found: list[str]) -> str:
    return "\n".join([*found[:20], f"… {len(found)} in all"])


def slow(test: Callable[..., None]) -> Callable[..., None]:
    """The first of these tests runs every command: 90 s on two quiet cores."""
    return pytest.mark.slow(pytest.mark.timeout(1200)(test))


@slow
def test_logs_are_the_recorded_ones_byte_for_byte(seen: Record) -> None:
    found = differences(GOLDEN["logs"], seen["logs"])
    assert not found, message_of(found)


@slow
@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_is_the_recorded_one_byte_for_byte(seen: Record, name: str) -> None:
    found = differences(GOLDEN["datasets"][name], seen["datasets"][name])
    of = f"recorded with pyarrow {GOLDEN['pyarrow']}, here {seen['pyarrow']}, which names its version in each file"
    assert not found, message_of([*([] if GOLDEN["pyarrow"] == seen["pyarrow"] else [of]), *found])


@slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_to_the_recorded_losses_weights_metrics_and_predictions(seen: Record, name: str) -> None:
    golden, now = GOLDEN["runs"][name], seen["runs"][name]
    if GOLDEN["fingerprint"] == seen["fingerprint"]:
        found = differences(golden, now)
    else:
        found = run_differences(name, golden, now)
    assert not found, message_of(found)


def test_nothing_differs_from_itself() -> None:
    assert all_differences(GOLDEN, GOLDEN) == []
    for name, run in GOLDEN["runs"].items():
        assert run_differences(name, run, run) == []


def leaves(value: object) -> int:
    if isinstance(value, dict):
        return sum(leaves(item) for item in value.values())
    return sum(leaves(item) for item in value) if isinstance(value, list) else 1


@pytest.mark.parametrize("part", ["logs", "datasets", "runs"])
def test_every_recorded_value_that_changes_is_a_difference(part: str) -> None:
    changed = json.loads(json.dumps(GOLDEN[part]), parse_float=lambda text: float(text) * 1.0000001 + 1e-12)

    def change(value: object) -> object:
        if isinstance(value, dict):
            return {key: change(item) for key, item in value.items()}
        if isinstance(value, list):
            return [change(item) for item in value]
        return value if isinstance(value, float) else f"{value}."

    assert len(differences(GOLDEN[part], change(changed))) == leaves(GOLDEN[part])


def with_tensor(run: Record, checkpoint: str, key: str, factor: float) -> Record:
    """The run with other bits of one tensor, and `factor` of its norm and sum."""
    changed = copy.deepcopy(run)
    tensors = changed["checkpoints"][checkpoint]["tensors"]
    kind, shape, _, *numbers = tensors[key].split()
    tensors[key] = " ".join([kind, shape, "other", *(f"{float(number) * factor:.7g}" for number in numbers)])
    return changed


def test_on_another_machine_a_rounding_is_no_difference_and_a_weight_or_a_loss_that_is_off_is_one() -> None:
    run, key = GOLDEN["runs"]["esmm"], "rank-00000.safetensors:item_id/0/weight"
    early, last = "step-00000010", "step-00000060"
    assert run_differences("esmm", run, with_tensor(run, early, key, 1 + 1e-5)) == []
    assert run_differences("esmm", run, with_tensor(run, last, key, 1.1)) == []
    for changed in (with_tensor(run, early, key, 1.002), with_tensor(run, last, key, 1.6)):
        (found,) = run_differences("esmm", run, changed)
        assert "item_id" in found
    for step, factor, expected in ((0, 1 + 1e-5, 0), (0, 1.002, 1), (50, 1.1, 0), (50, 1.3, 1)):
        changed = copy.deepcopy(run)
        changed["log"][step]["loss_conversion"] *= factor
        assert len(run_differences("esmm", run, changed)) == expected
    changed = copy.deepcopy(run)
    del changed["checkpoints"][early]["tensors"][key]
    assert run_differences("esmm", run, changed) == [f"/checkpoints/{early}/tensors/{key} is gone"]
