"""Fixtures for every test: one Spark session, and settings of small jobs."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hydra import compose, initialize_config_module

from jobs.entry import typed
from pipeline.config.preprocess import PreprocessSettings, SparkSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# CI judges a change, so it tries the same examples each time; a developer's machine goes on looking for new ones.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def spark() -> "Iterator[SparkSession]":
    """The one session; jobs started through pipeline.preprocess find and use it."""
    from pipeline.spark.session import start_spark

    session = start_spark(SparkSettings(master="local[2]"))
    yield session
    session.stop()


@pytest.fixture(scope="session")
def preprocess_settings() -> Callable[..., PreprocessSettings]:
    """Settings of jobs.preprocess from conf/, with overrides as on the command line."""

    def settings(source: Path, out: Path, *overrides: str) -> PreprocessSettings:
        with initialize_config_module("conf", version_base="1.3"):
            config: Any = compose("preprocess", [f"source.path={source}", f"out={out}", *overrides])
        return typed(PreprocessSettings, config)

    return settings
