"""numba, imported after `cache` has chosen where compiled kernels are kept: `from pipeline.kernels.jit import nb`.

numba reads the cache directory once, as it is imported, so nobody imports it directly (ruff's banned-api holds that).
"""

import pipeline.kernels.cache  # noqa: F401  (before numba)

# isort: split

import numba as nb

__all__ = ["nb"]
