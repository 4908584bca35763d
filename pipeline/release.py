"""The version of this package."""

import contextlib
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_DISTRIBUTION = "entirespace"


def release() -> str:
    """Return the version of this package: of the installed one, or of the checkout that runs."""
    checkout = Path(__file__).resolve().parents[1] / "pyproject.toml"
    with contextlib.suppress(OSError):
        project = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]
        if project["name"] == _DISTRIBUTION:
            return str(project["version"])
    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
