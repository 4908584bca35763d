"""Lines of joined tables that cannot be read: they give no features, and are quarantined or stop the job, as elsewhere.

They are lines of no impression, so the audit counts them among the contexts, as the lines of Ali-CCP's joined table.
"""

from collections.abc import Sequence
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipeline.chunks.reasons import rules_of
from pipeline.config.preprocess import FAIL, ChecksSettings
from pipeline.config.tables import CSV, JSONL
from pipeline.errors import InputError, printable
from pipeline.events.tables import CORRUPT, Table

_MALFORMED = "malformed_line"
_CHARACTERS_SHOWN = 200


def write_rejected_lines(
    spark: SparkSession, joins: Sequence[Table], checks: ChecksSettings, directory: Path
) -> list[int]:
    """Write the lines of each joined table that cannot be read below `directory`; return how many there are.

    Raises InputError for one of them where `checks` stops at it.
    """
    return [
        _write_lines(spark, table, checks, path_of_rejected(directory, number)) for number, table in enumerate(joins)
    ]


def path_of_rejected(directory: Path, number: int) -> Path:
    """Return where the lines of a joined table are that cannot be read, if there are any."""
    return directory / f"rejected-joins-{number}"


def _write_lines(spark: SparkSession, table: Table, checks: ChecksSettings, path: Path) -> int:
    if table.format not in (CSV, JSONL) or not table.parsed:
        return 0
    lines = spark.read.parquet(table.parsed).where(F.col(CORRUPT).isNotNull())
    number, first = lines.agg(F.count("*"), F.min(CORRUPT)).collect()[0]
    if not number:
        return 0
    if checks.malformed_line == FAIL:
        where = table.files[0].path if len(table.files) == 1 else table.name
        raise InputError(
            f"{where} has {_MALFORMED} ({rules_of('events')[_MALFORMED]}) in the row {printable(first[:_CHARACTERS_SHOWN])}, and "
            f"checks.{_MALFORMED}=fail stops there; fix the row, or set checks.{_MALFORMED}=quarantine."
        )
    rows = lines.select(
        F.lit(_MALFORMED).alias("status"), F.lit(None).cast("int").alias("split"), F.col(CORRUPT).alias("line")
    )
    rows.repartition(1).sortWithinPartitions("line").write.parquet(f"file:{path}")
    return int(number)
