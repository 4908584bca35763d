"""Turn exceptions of Spark and py4j into error messages for users. No other module knows their texts and names."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from pipeline.errors import InputError

# An InputError of a task arrives as text in Spark's exception.
_INPUT_ERROR = re.compile(rf"{re.escape(InputError.__module__)}\.{InputError.__qualname__}: (.+)")
_UNREADABLE = re.compile(
    r"\[FAILED_READ_FILE[^\]]*\] Encountered error while reading file (?:file:/+(?=/))?(.+?)\.\s(.*?)\s*SQLSTATE"
)
#: Text of Spark's exception at one of its limits → the error message.
_LIMITS = {
    "java.lang.OutOfMemoryError": "The Java side of Spark ran out of memory; the driver holds 16 bytes for each id that "
    "enters a vocabulary: raise spark.driver.memory ('+spark.conf={spark.driver.memory: 8g}'), or vocabulary.min_count.",
    "No space left on device": "Spark's scratch space is full; point SPARK_LOCAL_DIRS at a larger disk (the shuffle is "
    "about as large as the dataset), or read from smaller files.",
    "is bigger than spark.driver.maxResultSize": "The vocabularies are larger than spark.driver.maxResultSize, which "
    "spark.conf or spark-submit has set; leave it out, or raise it.",
}


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise InputError for what a user can fix: an InputError of a task, an unreadable file, a limit of Spark's own.

    Any other exception passes through.
    """
    try:
        yield
    except Exception as error:
        if found := _INPUT_ERROR.search(str(error)):
            raise InputError(found.group(1).strip()) from None
        if found := _UNREADABLE.search(str(error)):
            raise InputError(
                f"{unquote(found.group(1))} cannot be read to its end "
                f"({found.group(2) or 'it is damaged, or not of the format that it should have'}); "
                "repair or replace the file, then run again."
            ) from error
        for sign, message in _LIMITS.items():
            if sign in str(error):
                raise InputError(message) from error
        raise


def is_java_error(error: BaseException) -> bool:
    """Tell whether Java raised it, or the connection to it broke: py4j's exceptions have no common base class."""
    return type(error).__module__.startswith("py4j")


def first_line(error: BaseException) -> str:
    """Return the first line of Java's exception, or else of the Python one."""
    text = str(getattr(error, "java_exception", None) or error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
