"""What attribution costs as the log grows, with one user who makes up much of it, and beside a plain Spark SQL job.

    python -m benchmarks.attribution [events=1000000,3000000,10000000] [hot=1000000] [master='local[2]']

Logs of each size (two impressions to one action), then the largest with `hot` rows of one user with one item. CPU seconds
are those of the JVM: nothing crosses into Python. Every run is preceded by one that is not counted, or the first would pay
for the compiler. `peak` is the most memory that the JVM had so far.

The SQL job is what one would write by hand: last_value() over a window of each (user, item). It has no outcomes, no named
impressions and no clock skew, and has to attribute the same number of actions.
"""

import os
import platform
import re
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
        F.lit(None).cast("long").alias("click_at"),
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


SQL = """
WITH events AS (
  SELECT user, item, at, 0 AS rank, CAST(NULL AS STRING) AS kind, impression_id, context_key FROM impressions
  UNION ALL
  SELECT user, item, at, IF(kind = 'click', 1, 2), kind, NULL, NULL FROM actions
), shown AS (
  SELECT *, last_value(IF(rank = 0, struct(at, context_key, impression_id), NULL), true) OVER time AS latest FROM events
  WINDOW time AS (PARTITION BY user, item ORDER BY at, rank, impression_id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
), clicked AS (
  SELECT *, last_value(IF(kind = 'click' AND at - latest.at <= {click}, struct(at, latest AS target), NULL), true) OVER time AS click
  FROM shown
  WINDOW time AS (PARTITION BY user, item ORDER BY at, rank, impression_id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
)
SELECT IF(kind = 'click', latest, click.target) AS target FROM clicked
WHERE (kind = 'click' AND at - latest.at <= {click}) OR (kind = 'cart' AND at - click.at <= {cart})
   OR (kind = 'purchase' AND at - click.at <= {purchase})
"""


def peak_gib(spark: SparkSession) -> float:
    """Read the most memory that the JVM had."""
    pid = spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid()
    (kib,) = re.findall(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib) / (1 << 20)


def measure(spark: SparkSession, num_rows: int, hot_rows: int, by_sql: bool) -> tuple[float, float, int]:
    """Attribute a log in memory; return CPU seconds, wall seconds, and the number of attributed actions."""
    impressions, actions = log_of(spark, num_rows, hot_rows / num_rows)
    for name, frame in (("impressions", impressions), ("actions", actions)):
        frame.count()
        frame.createOrReplaceTempView(name)
    cpu, started = jvm_seconds(spark), time.monotonic()
    if by_sql:
        found = spark.sql(SQL.format(**RULES.windows_ms)).select("target.impression_id")
    else:
        found = attribute(impressions, actions, RULES, PARTITIONS).where(F.col("outcome") == "attributed")
    (row,) = found.agg(F.count("*"), F.sum("impression_id")).collect()
    seconds = jvm_seconds(spark) - cpu, time.monotonic() - started
    for frame in (impressions, actions):
        frame.unpersist()
    return *seconds, row[0]


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    sizes = [int(text) for text in options.get("events", "1000000,3000000,10000000").split(",")]
    hot_rows = min(int(options.get("hot", 1_000_000)), sizes[-1] // 2)
    spark = start_spark(SparkSettings(master=options.get("master", "local[2]")))
    spark.conf.set("spark.sql.shuffle.partitions", PARTITIONS)  # of the SQL job
    print(f"{platform.machine()}, {os.cpu_count()} cores, Spark {spark.version}, {PARTITIONS} partitions")
    print(
        f"{'job':>10} {'rows':>12} {'one user':>10} {'CPU s':>8} {'wall s':>8} {'CPU us/row':>11} {'peak GiB':>9} {'attributed':>11}"
    )
    for by_sql in (False, True):
        measure(spark, sizes[0], 0, by_sql)
    for num_rows, hot in [*((size, 0) for size in sizes), (sizes[-1], hot_rows)]:
        counts = []
        for by_sql in (False, True):
            cpu, wall, attributed = measure(spark, num_rows, hot, by_sql)
            counts.append(attributed)
            print(
                f"{'Spark SQL' if by_sql else 'attribute':>10} {num_rows:>12,} {hot:>10,} {cpu:>8.1f} {wall:>8.1f} "
                f"{cpu / num_rows * 1e6:>11.2f} {peak_gib(spark):>9.2f} {attributed:>11,}", flush=True,
            )  # fmt: skip
        if len(set(counts)) > 1:
            sys.exit(f"the two jobs attribute {counts[0]:,} and {counts[1]:,} actions")
    spark.stop()


if __name__ == "__main__":
    main()
