"""Keep freed memory in the process: the next step needs buffers of the same sizes."""

import ctypes
import sys

import pyarrow as pa

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
_LARGEST_BLOCK = 1 << 30


def keep_freed_memory() -> None:
    """Make malloc reuse large blocks instead of returning them to the system, which would fault them in again, zeroed.

    Every step asks for the same arrays of some megabytes, which is where glibc begins to map and unmap each by itself:
    up to 5,000 page faults a step, measured as an eighth of training. The settings are those of the environment
    variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_. Arrow's buffers join the same heap. To be called before
    the process has allocated much; does nothing to malloc where the C library is not glibc.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def return_freed_memory() -> None:
    """Return the memory that is free to the system, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
