"""Turn exceptions of Spark and py4j into error messages for users. No other module knows their texts and names."""

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast
from urllib.parse import unquote

from pipeline.errors import InputError, not_written

# An InputError of a task arrives as text in Spark's exception.
_INPUT_ERROR = re.compile(rf"{re.escape(InputError.__module__)}\.{InputError.__qualname__}: (.+)")
_UNREADABLE_FILE = re.compile(
    r"\[FAILED_READ_FILE[^\]]*\] Encountered error while reading file (?:file:/+(?=/))?(.+?)\.\s(.*?)\s*SQLSTATE"
)
# What Python says in a task, at the end of its trace.
_NOT_WRITTEN = "|".join(map(str, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)))
_SYSTEM_ERROR = re.compile(rf"^OSError: \[Errno ({_NOT_WRITTEN})\] ([^\n:]+)(?:: '([^\n]+)')?$", re.MULTILINE)
_NO_MODULE = re.compile(r"^(?:ModuleNotFoundError|ImportError): ([^\n]+)$", re.MULTILINE)
_NO_PYTHON = re.compile(r'Cannot run program "([^"]+)"')
_OTHER_PYTHON = re.compile(r"PYTHON_VERSION_MISMATCH\] ([^\n]+?\.) ")
_NO_ROOM = re.compile(
    r"(?:FileNotFoundException|IOException|FileSystemException): (?:(/[^\n(]+?):? )?\(?No space left on device"
)
#: Where Spark meets one of these in reading a file, the file is not to blame.
_OF_THE_MACHINE = ("No space left on device", "Too many open files", "OutOfMemoryError", "MemoryError")
#: Text of Spark's exception at one of its limits → the error message. The first that is found counts.
_LIMITS = {
    "unable to create native thread": "The Java side of Spark can start no more threads; raise the limit of processes "
    "(ulimit -u, or pids of the container).",
    "java.lang.OutOfMemoryError": "The Java side of Spark ran out of memory; the driver holds 16 bytes for each id that "
    "enters a vocabulary: raise spark.driver.memory ('+spark.conf={spark.driver.memory: 8g}'), or vocabulary.min_count.",
    "is bigger than spark.driver.maxResultSize": "The vocabularies are larger than spark.driver.maxResultSize, which "
    "spark.conf or spark-submit has set; leave it out, or raise it.",
    "Too many open files": "Spark ran into the limit of open files; raise it (ulimit -n 4096).",
    "Cannot allocate memory": "The machine has no memory left for another process of Spark; end other processes, or lower "
    "spark.driver.memory.",
    "MemoryError": "A Python worker of Spark ran out of memory; lower source.split_bytes, or the number of tasks at a "
    "time ('spark.master=local[1]', or spark.executor.cores).",
    "Python worker exited unexpectedly (crashed)": "The Python workers of a task were killed each time, mostly by the "
    "system for want of memory; give the machine more, or lower the number of tasks at a time ('spark.master=local[1]', "
    "or spark.executor.cores).",
}
_JVM_ENDED = (
    "Spark's Java process has ended{how}; out is as it was. If it was killed for want of memory, give the machine more, or "
    "lower spark.driver.memory; then run again."
)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise InputError for what a user can fix: an InputError of a task, an unreadable file, a limit of Spark's own.

    A fault of the machine (no room, no memory, no Python) is told from one of the input. Any other exception passes
    through.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if message := _message_for(str(error)):
            raise InputError(message) from error
        if has_java_ended(error):
            raise InputError(_JVM_ENDED.format(how=_how_java_ended())) from error
        raise


def _message_for(text: str) -> str:
    """Return the error message for the text of an exception of Spark; "" if it is none that a user can fix."""
    if found := _INPUT_ERROR.search(text):
        return found.group(1).strip()
    is_fault_of_machine = any(sign in text for sign in _OF_THE_MACHINE)
    if (found := _UNREADABLE_FILE.search(text)) and not is_fault_of_machine:
        return (
            f"{unquote(found.group(1))} cannot be read to its end "
            f"({found.group(2) or 'it is damaged, or not of the format that it should have'}); "
            "repair or replace the file, then run again."
        )
    if found := _SYSTEM_ERROR.search(text):
        where = f"{found.group(3)}, which a task of Spark uses," if found.group(3) else "The disk of a task of Spark"
        scratch = "point SPARK_LOCAL_DIRS and TMPDIR at a larger disk"
        return str(not_written(where, OSError(int(found.group(1)), found.group(2)), scratch))
    if "No space left on device" in text:
        found = _NO_ROOM.search(text)
        where = (found and found.group(1)) or os.environ.get("SPARK_LOCAL_DIRS") or tempfile.gettempdir()
        return (
            f"Spark's scratch space is full ({where}); point SPARK_LOCAL_DIRS at a larger disk (the shuffle is about as "
            "large as the dataset), or read from smaller files."
        )
    if found := _NO_PYTHON.search(text):
        return f"Spark's workers cannot run {found.group(1)}; set PYSPARK_PYTHON to the Python of this environment."
    if found := _OTHER_PYTHON.search(text):
        return f"{found.group(1)} Set PYSPARK_PYTHON to the driver's version on every host."
    if found := _NO_MODULE.search(text):
        return (
            f"A Python worker of Spark lacks a module ({found.group(1)}); give every host the environment of this one "
            "(PYSPARK_PYTHON, docs/clusters.md)."
        )
    return next((message for sign, message in _LIMITS.items() if sign in text), "")


def has_java_ended(error: BaseException) -> bool:
    """Tell whether an error means that the JVM is gone, or comes from one that is."""
    if type(error).__name__ == "Py4JNetworkError" or "Answer from Java side is empty" in str(error):
        return True
    may_come_of_it = is_java_error(error) or isinstance(error, (ConnectionError, EOFError))
    return may_come_of_it and _java_status() is not None


def _java_status() -> int | None:
    """Return the exit status of the JVM that this process has started; None while it runs, or if there is none."""
    context = sys.modules.get("pyspark.core.context")
    process = context and getattr(context.SparkContext._gateway, "proc", None)
    if process is None:
        return None
    with suppress(subprocess.TimeoutExpired):  # its sockets close a moment before it can be waited for
        process.wait(timeout=2)
    return cast("int | None", process.poll())


def _how_java_ended() -> str:
    status = _java_status()
    if status is None:
        return ""
    return f" (killed by {signal.Signals(-status).name})" if status < 0 else f" (status {status})"


def is_java_error(error: BaseException) -> bool:
    """Tell whether Java raised it, or the connection to it broke: py4j's exceptions have no common base class."""
    return type(error).__module__.startswith("py4j")


def first_line(error: BaseException) -> str:
    """Return the first line of Java's exception without its class, or else of the Python one."""
    text = str(getattr(error, "java_exception", None) or error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    return re.sub(r"\A(?:[\w$]+\.)+[\w$]+: ", "", first)
