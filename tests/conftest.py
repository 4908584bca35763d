"""Fixtures for every test: one Spark session, and settings of small jobs. Slow tests are marked here, by what they use."""

import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings, SparkSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# CI judges a change, so it tries the same examples each time; a developer's machine goes on looking for new ones.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


WHOLE = Path(__file__).parent / "whole"
# A test module that imports one of these starts processes.
STARTERS = ("subprocess", "multiprocessing", "run_ranks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow; with several workers (`-n 2`) hand it out first, so that none of them ends much later."""
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (item.path.parent != WHOLE, item.get_closest_marker("slow") is None))


def is_slow(item: pytest.Item) -> bool:
    """A test goes through several rooms, needs the Spark session, or stands in a module that starts processes."""
    module = getattr(item, "module", None)
    return (
        item.path.parent == WHOLE
        or "spark" in getattr(item, "fixturenames", ())
        or any(hasattr(module, name) for name in STARTERS)
    )


def pytest_sessionfinish() -> None:
    """Undo the gc.freeze of tasks that tests ran in this process: DuckDB would report objects that are never collected."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def spark() -> "Iterator[SparkSession]":
    """The one session; jobs started through pipeline.preprocess find and use it."""
    from pipeline.spark.session import start_spark

    before = signal.getsignal(signal.SIGINT)  # pytest-xdist interrupts its workers at the end, and pyspark would answer
    session = start_spark(SparkSettings(master="local[2]"))
    yield session
    session.stop()
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def preprocess_settings() -> Callable[..., PreprocessSettings]:
    """Settings of jobs.preprocess from conf/, with overrides as on the command line."""

    def settings(source: Path, out: Path, *overrides: str) -> PreprocessSettings:
        return compose("preprocess", PreprocessSettings, [f"source.path={source}", f"out={out}", *overrides])

    return settings
