"""What every page says of how it was written: when, by which release and which command."""

import platform
import time

from pipeline.release import release
from pipeline.secrets import command_typed


def facts_of_writing() -> list[tuple[str, str]]:
    """Return (name, text) of the facts that are known."""
    facts = [
        ("written", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        ("written by", f"entirespace {release()} · Python {platform.python_version()}"),
        ("command", command_typed()),
    ]
    return [(name, text) for name, text in facts if text]
