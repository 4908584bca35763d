"""The environment that torchrun gives a process, for modules that run before torch is loaded."""

import os


def speaks() -> bool:
    """Return True on rank 0, the one that prints; it is known before the ranks have met."""
    return os.environ.get("RANK", "0") == "0"
