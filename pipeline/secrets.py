"""Secrets: which names say that a value is one, and texts and trees without them, for all that is saved or printed."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

STARS = "***"
#: The one interpolation: a value below spark.conf, which is looked up when Spark starts, and saved as it is written.
FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:(\w+)\}")
#: Of a setting, a property of Hadoop's or Java's, or a variable of the environment. Java reads it as well (Spark's own
#: redaction), so it has no syntax that only Python knows.
SECRET_NAMES = (
    r"secret|passw|passphrase|token|credential|authorization"
    r"|(access|account|api|auth|encryption|master|private|sas|session|shared|signing)[._-]?key|[._]sas([._]|$)"
)
_SECRET_NAME = re.compile(SECRET_NAMES, re.IGNORECASE)
#: name=value or name: value in a text, such as a word of the command line; the value may be in quotes. A name is tried
#: from its first letter alone, and taken whole (++): from every letter, a text of 10,000 took 6 s.
_ASSIGNMENT = re.compile(
    rf"(?<![\w.-])(?=[\w.-]*?(?:{SECRET_NAMES}))(?P<name>[\w.-]++['\"]?\s*+[:=]\s*+)"
    r"(?P<value>'(?:\\.|[^'\\])*'?|\"(?:\\.|[^\"\\])*\"?|[^\s,;}\]'\"]+)",
    re.IGNORECASE,
)
_IN_ADDRESS = re.compile(r"(?<=[\w+.-])://(?=[^\s/@'\":]*+:)[^\s/@'\"]*+@")
_LEAST_LETTERS = 6  # of a variable's value that is hidden wherever it stands: shorter ones are in ordinary words


def is_secret_name(name: str) -> bool:
    """Tell whether a dotted name says that its value is a secret."""
    return _SECRET_NAME.search(name) is not None


def redacted(tree: Any, name: str = "") -> Any:
    """Copy plain values with `***` for what a secret's name holds. What the environment holds stays as it is written."""
    if isinstance(tree, Mapping):
        return {key: redacted(value, f"{name}.{key}" if name else str(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted(value, name) for value in tree]
    if isinstance(tree, str) and FROM_ENVIRONMENT.fullmatch(tree):
        return tree
    if is_secret_name(name) and tree not in (None, "") and not isinstance(tree, bool):
        return STARS
    return without_assignments(tree) if isinstance(tree, str) else tree


def without_assignments(text: str) -> str:
    """Hide the values of secrets' names in `text`, and the credentials in addresses."""
    hidden = _ASSIGNMENT.sub(
        lambda found: f"{found['name']}{STARS}" if not _is_looked_up(found["value"]) else found[0], text
    )
    return _IN_ADDRESS.sub(f"://{STARS}@", hidden)


def _is_looked_up(value: str) -> bool:
    return "${oc.env:" in value


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Hide the values of secrets' names in `text`, and those that `environment` holds under such names."""
    for name, value in environment.items():
        if len(value) >= _LEAST_LETTERS and is_secret_name(name):
            text = text.replace(value, STARS)
    return without_assignments(text)


def command_typed() -> str:
    """Return the command that started this process, without secrets; "" where it is no job."""
    job = Path(sys.argv[0])
    if job.parent.name == "jobs":
        name = f"jobs.{job.stem}"
    elif sys.argv[0].startswith("jobs."):  # entirespace JOB
        name = sys.argv[0]
    else:
        return ""
    return without_secrets(shlex.join(["python", "-m", name, *sys.argv[1:]]))


def refuse_secret_word(word: str) -> None:
    """Raise InputError for a word of the command line that holds a secret: every user of the machine sees it in `ps`."""
    is_free = word.lstrip("+~").startswith("spark.conf")  # other settings have names of ours, and of the log's fields
    if has_credentials(word) or (is_free and without_assignments(word) != word):
        raise InputError(
            f"{without_assignments(word)[:200]} holds a secret, which every user sees in the list of processes; "
            "write '${oc.env:NAME}' for a variable of the environment, or put it into a file of --config-dir."
        )


def has_credentials(text: str) -> bool:
    """Tell whether an address in `text` names an account and its secret, as s3://KEY:SECRET@bucket does."""
    return _IN_ADDRESS.search(text) is not None


def looked_up(key: str, value: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the value of the variable that `value` names, or `value`. Raises InputError where it is not set."""
    named = FROM_ENVIRONMENT.fullmatch(value)
    if named is None:
        return value
    if named[1] not in environment:
        raise InputError(f"{key}={value}: the environment has no {named[1]}; export it, or write another name.")
    return environment[named[1]]
