"""numba, imported after `cache` has chosen where compiled kernels are kept: `from pipeline.kernels.jit import nb`.

numba reads the cache directory once, as it is imported, so nobody imports it directly (ruff's banned-api holds that).
"""

from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from pipeline.errors import InputError
from pipeline.kernels.cache import refused_cache  # (before numba)

# isort: split

import numba as nb
from numba.core import caching

__all__ = ["nb"]


class _KernelFile(caching.IndexDataCacheFile):
    """numba's files of one kernel. A full disk is an InputError that names the cache, not the caller's file."""

    def load(self, key: Any) -> Any:
        """Load a compiled kernel; a damaged index counts as none, so that the kernel is compiled again."""
        try:
            with refused_cache(Path(self._cache_path)):
                return super().load(key)
        except (EOFError, ValueError, IndexError, KeyError, AttributeError, ImportError, UnpicklingError) as error:
            if isinstance(error, InputError):
                raise
            with suppress(OSError):
                Path(self._index_path).unlink()
            return None

    def save(self, key: Any, data: Any) -> None:
        """Save a compiled kernel."""
        with refused_cache(Path(self._cache_path)):
            super().save(key, data)


caching.IndexDataCacheFile = _KernelFile
