"""What attribution costs as the log grows, and with one user who makes up much of it.

    python -m benchmarks.attribution [events=1000000] [master='local[2]']

Logs of n/2, n and 2n rows (two impressions to one action), then n rows of which a quarter are one user's with one item.
CPU seconds are those of the JVM: nothing crosses into Python. Every run is preceded by one that is not counted, or the
first would pay for the compiler.
"""

import os
import platform
import sys
import time
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.config.preprocess import SparkSettings
from pipeline.events.attribute import Rules, attribute
from pipeline.spark.session import start_spark

SECONDS = 7 * 86400
PARTITIONS = 8
RULES = Rules({"click": 3_600_000, "cart": 86_400_000, "purchase": 259_200_000})


def log_of(spark: SparkSession, num_rows: int, hot_share: float) -> tuple[DataFrame, DataFrame]:
    """Make impressions and actions: one user to 50 rows and 20 items; `hot_share` of the rows are one user's with one item."""
    is_hot = F.rand(1) < hot_share
    user = F.when(is_hot, "hot").otherwise(F.concat(F.lit("u"), (F.rand(2) * (num_rows // 50)).cast("long")))
    item = F.when(F.col("user") == "hot", "i0").otherwise(F.concat(F.lit("i"), (F.rand(3) * 20).cast("int")))
    base = spark.range(num_rows).withColumn("user", user).withColumn("item", item)
    base = base.withColumn("at", (F.rand(4) * SECONDS * 1000).cast("long"))
    is_action = F.col("id") % 3 == 2
    impressions = base.where(~is_action).select(
        "user", "item", "at", F.col("id").alias("impression_id"), (F.col("id") % 1000003).alias("context_key"),
        F.lit(False).alias("clicked"),
    )  # fmt: skip
    kind = F.when(F.rand(5) < 0.7, "click").when(F.rand(6) < 0.5, "cart").otherwise("purchase")
    actions = base.where(is_action).select(
        "user", "item", "at", kind.alias("kind"), F.lit(None).cast("long").alias("named_id")
    )
    return impressions.cache(), actions.cache()


def jvm_seconds(spark: SparkSession) -> float:
    """Read the CPU seconds of the JVM so far."""
    pid = spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid()
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(spark: SparkSession, num_rows: int, hot_share: float) -> tuple[float, float, int]:
    """Attribute a log in memory; return CPU seconds, wall seconds, and the number of attributed actions."""
    impressions, actions = log_of(spark, num_rows, hot_share)
    for frame in (impressions, actions):
        frame.count()
    cpu, started = jvm_seconds(spark), time.monotonic()
    decided = attribute(impressions, actions, RULES, PARTITIONS)
    (row,) = decided.agg(F.count_if(F.col("outcome") == "attributed"), F.sum("impression_id")).collect()
    found = jvm_seconds(spark) - cpu, time.monotonic() - started, row[0]
    for frame in (impressions, actions):
        frame.unpersist()
    return found


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    num_events = int(options.get("events", 1_000_000))
    spark = start_spark(SparkSettings(master=options.get("master", "local[2]")))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Spark {spark.version}, {PARTITIONS} partitions")
    print(f"{'rows':>12} {'one user':>9} {'CPU s':>8} {'wall s':>8} {'CPU us/row':>11} {'attributed':>11}")
    for _ in range(2):
        measure(spark, num_events, 0.0)
    for num_rows, hot_share in ((num_events // 2, 0.0), (num_events, 0.0), (2 * num_events, 0.0), (num_events, 0.25)):
        cpu, wall, attributed = measure(spark, num_rows, hot_share)
        print(
            f"{num_rows:>12,} {hot_share:>9.0%} {cpu:>8.1f} {wall:>8.1f} {cpu / num_rows * 1e6:>11.2f} {attributed:>11,}"
        )
    spark.stop()


if __name__ == "__main__":
    main()
