"""Paths as Spark wants them."""

_ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\{}[]*?"})


def escape_glob(path: str) -> str:
    """Escape the characters that Spark would read as a pattern: a path names one file."""
    return path.translate(_ESCAPED)
