"""glibc's allocator keeps large blocks, instead of returning each to the kernel and having it zeroed again."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**31 - 1  # bytes; mallopt takes a C int


def keep_large_blocks() -> bool:
    """Tell glibc, for this process and those that it forks; return whether there is glibc to tell.

    Training frees and allocates the same tensors in every step. By default each block above 32 MB at most is mapped
    anew, and the kernel zeroes its pages again.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
