"""One setting of the process: keep freed memory for the next batch instead of handing it back to the kernel.

Torch frees and takes buffers of megabytes many times a step; by default glibc unmaps each and the kernel zeroes new
pages, a third of a small convolution's time. `make bench` prints the ratio.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 << 20  # glibc takes no larger threshold for mmap


def keep_freed_memory(keep: bool = True) -> None:
    """Tell glibc to keep freed memory (or to go back to its defaults); does nothing where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(M_MMAP_THRESHOLD, LARGEST if keep else 128 << 10)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1 if keep else 128 << 10)
