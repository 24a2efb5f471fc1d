"""Whether something large fits into this machine's memory."""

from __future__ import annotations

from pathlib import Path

GB = 1e9
MEMINFO, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


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
