"""The clock of a control loop: absolute deadlines on the monotonic clock, skipped periods counted, never a burst."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
def steady() -> Iterator[None]:
    """No garbage collection inside: what lives is set aside, and collecting waits until the loop is over."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


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
