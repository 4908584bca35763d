"""What torchrun tells a process in its environment, for those who ask before torch is loaded."""

import os


def speaks() -> bool:
    """Whether this process prints: rank 0 of a world, known before the ranks have met."""
    return os.environ.get("RANK", "0") == "0"
