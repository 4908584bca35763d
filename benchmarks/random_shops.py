"""Random small shops, as some shop writes them, against a slow reference in pandas: no silent difference.

    python -m benchmarks.random_shops [shops=2000] [seed=1] [per_job=20] [master='local[2]']

Every job reads a world of `per_job` shops with users of their own: formats, types, time units and zones, parts whose columns
differ, ids with blanks, zeros and other case, page views that users share, copies, labels in columns, histories. It
compares every labelled row and every outcome with the reference. A world that is refused has to be refused in one sentence.
"""

import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from benchmarks.shop_draw import World, draw_world, write_world
from benchmarks.shop_reference import COLUMNS, Expected
from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.config.preprocess import ChecksSettings, SparkSettings
from pipeline.errors import InputError
from pipeline.events.find import find_log
from pipeline.events.label import label
from pipeline.features.fields import catalogue
from pipeline.spark.session import start_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DACTION = ["cart"]


def differences(spark: "SparkSession", seed: int, num_shops: int, folder: Path) -> list[str]:
    """Run one world below `folder`; return what differs from the reference, "refused: …" for a sentence."""
    world = draw_world(seed, num_shops)
    write_world(world, folder / "raw")
    expected = Expected(world)
    try:
        found = _label_world(spark, world, folder)
    except InputError as error:
        sentence = str(error)
        return ["an error of several lines"] if "\n" in sentence else [f"refused: {sentence}"]
    labelled = pq.read_table(folder / "staging" / "labelled").to_pylist()
    got = sorted(
        (tuple(row.get(name) for name in COLUMNS) for row in labelled if row["status"] != "malformed_line"), key=repr
    )
    wanted = sorted(expected.rows(), key=repr)
    lines = [f"row {mine}, expected {theirs}" for mine, theirs in zip(got, wanted, strict=False) if mine != theirs][:3]
    if len(got) != len(wanted) or len(labelled) - len(got) != expected.num_malformed:
        lines.append(
            f"{len(got)} rows and {len(labelled) - len(got)} malformed, expected {len(wanted)} and {expected.num_malformed}"
        )
    actions = found["actions"]
    if actions["outcomes"] != expected.outcomes:
        lines.append(f"outcomes {actions['outcomes']}, expected {expected.outcomes}")
    for name, number in expected.counts.items():
        if actions[name] != number:
            lines.append(f"{actions[name]} actions {name}, expected {number}")
    return lines


def _label_world(spark: "SparkSession", world: World, folder: Path) -> dict[str, dict[str, object]]:
    columns = ["item", "city", *(["cat"] if world.settings.joins else [])]
    fields = catalogue(FeaturesSettings({name: FieldSettings(name, "impression") for name in columns}), 1, timed=True)
    log = find_log(str(folder / "raw"), world.settings, fields)
    (folder / "staging").mkdir()
    checks = ChecksSettings(duplicates=world.duplicates)
    return label(spark, log, world.settings, fields, DACTION, checks, 2, folder / "staging", needs_train=False).audit


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    num_shops, per_job = int(options.get("shops", 2000)), int(options.get("per_job", 20))
    seed, started = int(options.get("seed", 1)), time.monotonic()
    spark = start_spark(SparkSettings(master=options.get("master", "local[2]")))
    refused, wrong = 0, 0
    num_worlds = math.ceil(num_shops / per_job)
    for number in range(num_worlds):
        folder = Path(tempfile.mkdtemp(prefix="random-shops-"))
        lines = differences(spark, seed * 1_000_000 + number, per_job, folder)
        shutil.rmtree(folder)
        is_refused = bool(lines) and lines[0].startswith("refused: ")
        refused += is_refused
        wrong += bool(lines) and not is_refused
        for line in lines:
            print(f"world {seed * 1_000_000 + number}: {line}", flush=True)
        if number % 5 == 4:
            print(f"{(number + 1) * per_job} shops: {wrong} jobs differ, {refused} were refused", flush=True)
    seconds = time.monotonic() - started
    print(
        f"{num_worlds * per_job} shops in {num_worlds} jobs, {seconds:.0f} s: {wrong} jobs differ, {refused} were refused"
    )
    spark.stop()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
