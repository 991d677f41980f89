"""Settings of the memory allocator."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 1 << 30  # bytes


def reuse_freed_memory() -> None:
    """Keep the memory of freed tensors for the next ones; without glibc do nothing.

    By default glibc gives a feature map above 32 MB back to the system when it is freed, so that every page of the next
    one is cleared again. EDSR's upsampler makes such maps: its forward then takes a tenth longer.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
