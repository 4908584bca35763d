"""benchmarks.train and benchmarks.train_profile still fit the trainer that they take apart."""

from pathlib import Path

import pytest
from tiny_dataset import write_tiny_dataset

from benchmarks import train, train_profile

OVERRIDES = ["plan.batch_size=16", "world.device=cpu"]


def test_training_is_measured_beside_both_floors(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=300)
    settings_of = {
        precision: train.configured(
            str(tmp_path / "data"), str(tmp_path / precision), "esmm", [f"precision={precision}", *OVERRIDES]
        )
        for precision in ("fp32", "bf16")
    }
    found, figures = train.measure(settings_of)
    assert found["fp32"] > found["floor"] > 0
    assert found["nn.Linear"] > 0
    assert figures.keys() == {"fp32", "bf16"}


def test_a_profile_names_the_forward_and_the_backward_pass_of_towers_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=300)
    train_profile.measure(train.configured(str(tmp_path / "data"), str(tmp_path / "run"), "esmm", OVERRIDES), 2)
    table = capsys.readouterr().out
    for part in ("towers, forward", "towers, backward", "lookup (FBGEMM)", "tables: gradient and update (FBGEMM)"):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {part} |"))
        assert float(row.split("|")[2]) > 0
