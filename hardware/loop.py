"""The clock of a control loop: absolute deadlines on the monotonic clock, skipped periods counted, never a burst."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import numpy as np

SPIN_NS = 200_000  # the last stretch is spun, because a sleep may wake some 100 µs late


class Ticker:
    """Deadlines at `start + n / rate_hz`.

    `wait` returns at the next deadline. When that has passed by a whole period or more, whole periods are skipped
    and counted: a robot is better served by one late command than by several at once.
    """

    def __init__(self, rate_hz: float, capacity: int = 1_000_000) -> None:
        self.period_ns = round(1e9 / rate_hz)
        self.ticks = self.missed = 0
        self.late = np.zeros(capacity, np.int64)
        """Lateness of the newest `capacity` ticks, ns."""
        self.late_ns = 0
        self._next = 0

    def start(self) -> None:
        """Put the first deadline one period from now."""
        self._next = time.monotonic_ns() + self.period_ns

    def wait(self) -> int:
        """Sleep until the next deadline; returns how many periods have passed (1 when on time)."""
        behind = (time.monotonic_ns() - self._next) // self.period_ns
        skipped = max(0, behind)
        self._next += skipped * self.period_ns
        pause = self._next - time.monotonic_ns() - SPIN_NS
        if pause > 0:
            time.sleep(pause * 1e-9)
        while (now := time.monotonic_ns()) < self._next:
            pass
        self.late_ns = now - self._next
        self.late[self.ticks % len(self.late)] = self.late_ns
        self.ticks += 1
        self.missed += skipped
        self._next += self.period_ns
        return 1 + skipped

    @property
    def lateness_ms(self) -> np.ndarray:
        """(ticks,) how late each tick woke against the absolute schedule, ms."""
        return self.late[:min(self.ticks, len(self.late))] * 1e-6


@contextmanager
def steady() -> Iterator[bool]:
    """No garbage collection inside, and this thread in a real-time class where that is permitted; yields whether it is.

    What lives is set aside, and collecting waits until the loop is over. Round-robin at the lowest real-time priority
    goes before every ordinary thread and behind whatever the system itself runs in such a class. A class that whoever
    started the process chose is left alone, and threads begun inside are ordinary ones.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    ordinary = hasattr(os, "sched_setscheduler") and _scheduling() == os.SCHED_OTHER
    if ordinary:
        _schedule(os.SCHED_RR, 1)
    try:
        yield hasattr(os, "sched_setscheduler") and _scheduling() in (os.SCHED_RR, os.SCHED_FIFO)
    finally:
        if ordinary:
            _schedule(os.SCHED_OTHER, 0)
        gc.enable()
        gc.unfreeze()


def _scheduling() -> int:
    """The scheduling class of this thread."""
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK


def _schedule(policy: int, priority: int) -> None:
    """Put this thread in a scheduling class, where that is permitted."""
    with suppress(OSError):
        os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))


def percentiles(values: np.ndarray, *ranks: float) -> list[float]:
    """The given percentiles of the values, NaN when there are none."""
    return [float(v) for v in np.percentile(values, ranks)] if len(values) else [float("nan")] * len(ranks)


def interrupted() -> Callable[[], bool]:
    """A function that turns true once SIGTERM or SIGINT has come."""
    event = threading.Event()

    def note(signum: int, frame: FrameType | None) -> None:
        event.set()
    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return event.is_set
