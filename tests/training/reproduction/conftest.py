"""A tiny dataset, and jobs that run nothing."""

from pathlib import Path

import pytest
from fake_jobs import FakeJobs
from tiny_dataset import write_tiny_dataset

from training.run import stages


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reproduction") / "data"
    write_tiny_dataset(path, num_contexts=60)
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    jobs = FakeJobs()
    monkeypatch.setattr(stages, "run_command", jobs)
    return jobs
