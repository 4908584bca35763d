"""Paths as arguments of Spark's readers."""

_ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\{}[]*?"})


def escape_glob(path: str) -> str:
    """Escape the characters that Spark reads as a pattern, so that a path names one file."""
    return path.translate(_ESCAPED)
