"""Whether something large fits into this machine's memory, and what becomes of memory that is freed."""

from __future__ import annotations

import ctypes
from pathlib import Path

GB = 1e9
MEMINFO, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def available() -> float:
    """Bytes that this process can still take, within its control group too; infinite where that cannot be told."""
    free = float("inf")
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024
        used = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        limit = (GROUP / "memory.max").read_text().strip()
        return free if limit == "max" else min(free, float(limit) - float(used["anon"]))
    except (OSError, KeyError, ValueError):
        return free  # not Linux, or no control group of the second version


def demand(size: float, what: str) -> None:
    """Raise ValueError with both numbers when `size` bytes are not available."""
    free = available()
    if size > free:
        raise ValueError(f"{what}: needs {size / GB:,.2f} GB of memory, {max(free, 0.0) / GB:,.2f} GB are available")


def keep_freed() -> None:
    """Have this process keep what it frees, up to 512 MB, for what it allocates next; only glibc is told so.

    Otherwise blocks of more than some hundred kB go back to the system, and an update gets them anew page by page, each
    of which the system clears: an eighth of the time of a world model's update.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
    mallopt(M_TRIM_THRESHOLD, 512 << 20)
