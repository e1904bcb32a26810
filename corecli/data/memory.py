"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
import platform

# mallopt's parameters, from malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MEBI = 1 << 20


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 32 MiB (its limit) for reuse. Call once, before any tensor is made.

    By default glibc returns every large block to the system when it is freed. Each temporary tensor on the CPU then
    needs new zeroed pages, which takes two to five times as long as the operation itself for a few hundred KiB. At most
    512 MiB of freed memory is kept. Returns whether the settings took effect; without glibc nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    settings = {_MMAP_THRESHOLD: 32 * _MEBI, _TRIM_THRESHOLD: 512 * _MEBI, _TOP_PAD: 64 * _MEBI}
    mallopt = ctypes.CDLL(None).mallopt
    taken = [mallopt(parameter, value) == 1 for parameter, value in settings.items()]
    return all(taken)
