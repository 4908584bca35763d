"""The settings that every table of an event log has: where it is, and how its files are written."""

import codecs
from dataclasses import dataclass, field, fields

from pipeline.config.recorded import NEWER
from pipeline.errors import InputError

PARQUET, JSONL, CSV, DELTA, ICEBERG = "parquet", "jsonl", "csv", "delta", "iceberg"
FORMATS = (PARQUET, JSONL, CSV, DELTA, ICEBERG)
UTF8 = "utf-8"
_DELIMITER_WORDS = {"\\t": "\t", "tab": "\t", "\\x01": "\x01"}  # of delimiters that a shell makes hard to type


@dataclass
class TableSettings:
    """Where a table is: files below source.path, or a table of Spark's catalogs. And how its files are written."""

    path: str = ""  # a file, a folder of files, a folder of k=v/ folders, or a pattern: imp/dt=2024-05-*
    format: str = PARQUET  # parquet | jsonl | csv | delta | iceberg
    table: str | None = field(default=None, metadata=NEWER)  # instead of path, a table of Spark's catalogs: db.imp
    as_of: str | None = field(default=None, metadata=NEWER)  # its version or snapshot; null: the newest
    header: list[str] = field(default_factory=list, metadata=NEWER)  # csv: the columns, where no file names them
    delimiter: str = field(default=",", metadata=NEWER)  # csv: between two columns; tab for tabs
    quote: str | None = field(default='"', metadata=NEWER)  # csv: around values with delimiters or line breaks
    escape: str | None = field(default=None, metadata=NEWER)  # csv: before a quote within quotes; null: a second quote
    encoding: str = field(default=UTF8, metadata=NEWER)  # csv, jsonl: gbk, latin-1, utf-16, …


def check_table(where: str, table: TableSettings) -> None:
    """Raise InputError for settings of a table that cannot be; `where` is their key. Write the delimiter as it is."""
    if table.format not in FORMATS:
        raise InputError(f"{where}.format={table.format} is not one of {', '.join(FORMATS)}.")
    default = {entry.name: entry.default for entry in fields(TableSettings)} | {"header": []}
    of_text = {"encoding": (CSV, JSONL)} | dict.fromkeys(("header", "delimiter", "quote", "escape"), (CSV,))
    for name, formats in of_text.items():
        if getattr(table, name) != default[name] and table.format not in formats:
            raise InputError(
                f"{where}.{name}={getattr(table, name)} has no meaning with {where}.format={table.format}; set the "
                f"format to {' or '.join(formats)}, or leave {name} out."
            )
    table.delimiter = _DELIMITER_WORDS.get(table.delimiter, table.delimiter)
    for name in ("quote", "escape"):
        value = getattr(table, name)
        if value is not None and not (len(value) == 1 and value.isascii() and value.isprintable()):
            raise InputError(f"{where}.{name}={value!r} is not one ASCII character; give one, or null.")
    if any(character in table.delimiter for character in ("\n", "\r", table.quote or "\n")):
        raise InputError(f"{where}.delimiter={table.delimiter!r} has a quote or a line break; give ',' or 'tab' or so.")
    if len(set(table.header)) != len(table.header) or not all(table.header):
        raise InputError(f"{where}.header={list(table.header)} needs names, each one of its own.")
    _check_encoding(where, table)


def _check_encoding(where: str, table: TableSettings) -> None:
    try:
        known = codecs.lookup(table.encoding)
        "".encode(table.encoding)  # base64 and the like are no encodings of text
    except (LookupError, ValueError) as error:
        raise InputError(
            f"{where}.encoding={table.encoding} is no encoding that Python knows; give utf-8, gbk, latin-1 or so."
        ) from error
    table.encoding = UTF8 if known.name in ("utf-8", "utf-8-sig", "ascii") else known.name
