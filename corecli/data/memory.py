"""How the C library hands memory back to the system."""

from __future__ import annotations

import ctypes
import platform

# mallopt's parameters, from malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MEBI = 1 << 20


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 32 MiB (its limit) for reuse; call once, before tensors are made.

    By default glibc returns every large block to the system when it is freed, so each temporary of a CPU tensor
    operation pays for new zeroed pages: two to five times the price of the operation itself on a few hundred KiB. At
    most 512 MiB of freed memory is kept. True if it took effect, False (and nothing done) off glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    settings = {_MMAP_THRESHOLD: 32 * _MEBI, _TRIM_THRESHOLD: 512 * _MEBI, _TOP_PAD: 64 * _MEBI}
    mallopt = ctypes.CDLL(None).mallopt
    taken = [mallopt(parameter, value) == 1 for parameter, value in settings.items()]
    return all(taken)
