"""Find the raw files of an Ali-CCP log; raise InputError for a file of another kind."""

import zlib

from pipeline.chunks.files import Entry, Files, files_of
from pipeline.chunks.sources import ACTIONS, CONTEXT, PERIODS, SKELETON, SourceFile, check_parts
from pipeline.errors import InputError, reason_of
from pipeline.spark.exceptions import is_java_error

#: The columns that a line of each table has.
NUM_COLUMNS = {SKELETON: 6, CONTEXT: 3}
_HEAD_BYTES, _HEAD_LINES = 1 << 16, 100  # of each file, before Spark starts


def find_sources(
    directory: str, with_actions: bool, by_spark: bool = False, needs_labels: bool = True
) -> list[SourceFile]:
    """Find the files of the log below `directory`, a path or an address, in the order of the log.

    A log that `needs_labels` has a train and a test period. Any other has those that are there, or none: then its tables
    are sample_skeleton.csv and common_features.csv. Raises InputError for a missing directory, a missing, doubled or
    empty table, or a first line that is no line of its table.
    """
    try:
        return _find_tables(directory, with_actions, by_spark, needs_labels)
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or is_java_error(error):
            raise InputError(
                f"source.path={directory} cannot be read ({reason_of(error)}); check the address, the network and the "
                "credentials."
            ) from error
        raise


def _find_tables(directory: str, with_actions: bool, by_spark: bool, needs_labels: bool) -> list[SourceFile]:
    files = files_of(directory, by_spark)
    root = files.entry(directory)
    if root is None or not root.is_directory:
        what = "is not a directory" if root else "does not exist"
        expected = _expected(with_actions) if needs_labels else _UNLABELLED
        raise InputError(
            f"source.path={directory} {what}; give the directory that holds {expected}"
            " (plain, .gz, or a directory of parts each)."
        )
    periods = PERIODS if needs_labels else _periods_there(files, root.address)
    tables = [(CONTEXT, period) for period in periods] + [(SKELETON, period) for period in periods]
    tables += [(ACTIONS, period) for period in periods] if with_actions else []
    sources: list[SourceFile] = []
    for table, period in tables:
        parts = _parts_of(files, root.address, table, period, _expected(with_actions) if needs_labels else _UNLABELLED)
        if sum(part.bytes for _, part in parts) == 0:
            raise InputError(f"{parts[0][1].address} is empty; a {table} log of one line or more is needed.")
        for name, part in parts:
            compressed = name.endswith(".gz")
            source = SourceFile(
                len(sources), name, part.address, part.bytes, table, period, compressed, part.stamp, by_spark
            )
            sources.append(source)
    for table, period in tables:
        if table in NUM_COLUMNS:
            mine = [source for source in sources if (source.table, source.period) == (table, period)]
            _check_shapes(mine, needs_labels)
    return sources


def _periods_there(files: Files, root: str) -> list[str]:
    """List the periods of which there is a table of impressions; "" for tables that name none."""
    found = [period for period in ("", *PERIODS) if any(files.entry(root, name) for name in _names(SKELETON, period))]
    if not found:
        raise InputError(f"source.path={root} has no {SKELETON}.csv; expected are {_UNLABELLED}.")
    if found[0] == "" and len(found) > 1:
        raise InputError(
            f"source.path={root} has {SKELETON} as well as {SKELETON}_{found[1]}, so it is unclear which to read; move one "
            "of them, with its contexts, to another folder."
        )
    return found


def _names(table: str, period: str) -> tuple[str, str, str]:
    """Return the names that a table may have: of a file, a packed one, a directory of parts."""
    stem = f"{table}_{period}" if period else table
    return f"{stem}.csv", f"{stem}.csv.gz", stem


def _parts_of(files: Files, root: str, table: str, period: str, expected: str) -> list[tuple[str, Entry]]:
    """List the parts of a table: (name below `root`, file)."""
    names = _names(table, period)
    stem = names[-1]
    present = [entry for name in names if (entry := files.entry(root, name))]
    if not present:
        why = " because labels.daction is set (labels.daction=[] does without)" if table == ACTIONS else ""
        raise InputError(
            f"source.path={root} has no {stem}.csv (nor {stem}.csv.gz, nor a directory {stem}/ of parts), which is "
            f"needed{why}; expected are {expected}."
        )
    if len(present) > 1:
        both = " and ".join(entry.name for entry in present)
        raise InputError(f"source.path={root} has both {both}, so its lines would be read twice; remove one of them.")
    table_entry = present[0]
    if table_entry.oddity:
        raise InputError(f"{root}/{table_entry.name} is {table_entry.oddity}; put the {table} log there.")
    if not table_entry.is_directory:
        return [(table_entry.name, table_entry)]
    children = files.children(table_entry.address)
    parts = [entry for entry in children if not entry.name.startswith(("_", "."))]  # as Hadoop hides files
    check_parts(
        table_entry.address,
        {entry.name: "a directory" if entry.is_directory else entry.oddity for entry in parts},
    )
    if not parts:
        raise InputError(f"{table_entry.address} holds no parts; put the {table} log there or remove the directory.")
    part_names = {entry.name for entry in parts}
    for entry in parts:
        if entry.name.endswith(".gz") and entry.name.removesuffix(".gz") in part_names:
            raise InputError(
                f"{table_entry.address} has both {entry.name.removesuffix('.gz')} and {entry.name}; remove one of them."
            )
    return [(f"{table_entry.name}/{entry.name}", entry) for entry in parts]


_UNLABELLED = f"{SKELETON}.csv and {CONTEXT}.csv, or both with _train or _test behind the name"


def _expected(with_actions: bool) -> str:
    tables = (CONTEXT, SKELETON, ACTIONS) if with_actions else (CONTEXT, SKELETON)
    return ", ".join(f"{table}_{{{','.join(PERIODS)}}}.csv" for table in tables)


def _check_shapes(parts: list[SourceFile], needs_labels: bool) -> None:
    """Raise InputError for a file none of whose first lines has the columns and separators of its table."""
    heads = [(source, _first_lines(source)) for source in parts if source.bytes]
    wrong = [
        (source, lines)
        for source, lines in heads
        if lines is not None and not _any_line_fits(source.table, lines, needs_labels)
    ]
    if len(wrong) < len(heads):
        # A small part of bad lines only, among good parts, goes to the quarantine.
        wrong = [(source, lines) for source, lines in wrong if len(lines) >= _HEAD_LINES]
    for source, lines in wrong:
        seen = repr(lines[0][:60].decode("latin-1")) if lines else "only empty lines"
        raise InputError(
            f"{source.path} is no {source.table} log: a line has {NUM_COLUMNS[source.table]} comma-separated columns, "
            f"the last of them features as name\\x02id\\x03value joined by \\x01, but its first lines read {seen}; "
            "is it another file, or written with other separators?"
        )


def _first_lines(source: SourceFile) -> list[bytes] | None:
    """Read some lines that are not empty; None if the first line is longer than _HEAD_BYTES."""
    try:
        with source.open() as stream:
            head = stream.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{source.path} cannot be read ({reason_of(error)}); repair or replace the file.") from error
    if len(head) == _HEAD_BYTES:
        if b"\n" not in head:
            return None
        head = head[: head.rindex(b"\n")]
    return [line for line in head.split(b"\n") if line.strip()][:_HEAD_LINES]


def _any_line_fits(table: str, lines: list[bytes], needs_labels: bool) -> bool:
    commas = {NUM_COLUMNS[table] - 1}
    if table == SKELETON and not needs_labels:
        commas.add(NUM_COLUMNS[table] - len(("click", "buy")) - 1)
    return any(line.count(b",") in commas and _has_features(line) for line in lines)


def _has_features(line: bytes) -> bool:
    features = line.rsplit(b",", 1)[1].strip()
    return not features or all(
        feature.count(b"\x02") == feature.count(b"\x03") == 1 for feature in features.split(b"\x01")
    )
