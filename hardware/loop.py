"""The clock of a control loop: absolute deadlines on the monotonic clock, skipped periods counted, never a burst."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

import numpy as np

SPIN_NS = 200_000  # the last stretch is spun, because a sleep may wake some 100 µs late
PRESENT_PAGES = 1  # mlockall's MCL_CURRENT


class Rehearsing(Protocol):
    """Work that is thrown away, before a deadline."""

    @property
    def ahead_ns(self) -> int:
        """How long before the deadline to begin, ns."""

    def __call__(self, until_ns: int) -> None:
        """Work until then, ns of time.monotonic_ns."""


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

    def wait(self, rehearse: Rehearsing | None = None) -> int:
        """Sleep until the next deadline; returns how many periods have passed (1 when on time).

        `rehearse` runs just before it: what a tick will use lies in the processor's caches then, which after a sleep
        it does not.
        """
        behind = (time.monotonic_ns() - self._next) // self.period_ns
        skipped = max(0, behind)
        self._next += skipped * self.period_ns
        left = self._next - time.monotonic_ns()
        if rehearse is not None and left > 4 * SPIN_NS:  # where there is less, as at 1,000 Hz, nothing grows cold
            # a real-time thread that never sleeps is stopped by Linux for 50 ms in every second
            self._sleep(min(rehearse.ahead_ns, left * 3 // 4))
            rehearse(self._next - SPIN_NS)
        self._sleep(SPIN_NS)
        while (now := time.monotonic_ns()) < self._next:
            pass
        self.late_ns = now - self._next
        self.late[self.ticks % len(self.late)] = self.late_ns
        self.ticks += 1
        self.missed += skipped
        self._next += self.period_ns
        return 1 + skipped

    def _sleep(self, before_ns: int) -> None:
        """Until so long before the next deadline."""
        pause = self._next - time.monotonic_ns() - before_ns
        if pause > 0:
            time.sleep(pause * 1e-9)

    @property
    def lateness_ms(self) -> np.ndarray:
        """(ticks,) how late each tick woke against the absolute schedule, ms."""
        return self.late[:min(self.ticks, len(self.late))] * 1e-6


class Alarm:
    """Calls `ring` in a thread of its own once a time has come, unless the alarm is set to another before."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring, self._changed = ring, threading.Condition()
        self._due: float | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def set(self, due: float | None) -> None:
        """Ring at `due`, s of `time.perf_counter`; never for None. Once this returns, no older time rings."""
        with self._changed:
            self._due = due
            if due is not None and due <= time.perf_counter():  # the thread might come too late to be of use
                self._due = None
                self._ring()
            self._changed.notify()

    def close(self) -> None:
        """Never ring again."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _watch(self) -> None:
        if hasattr(os, "sched_setscheduler"):
            _schedule(os.SCHED_RR, 2)  # before the loop that it is to interrupt, which may share its processor
        with self._changed:
            while not self._closed:
                pause = None if self._due is None else self._due - time.perf_counter()
                if pause is None or pause > 0:
                    self._changed.wait(pause)
                else:
                    self._due = None
                    self._ring()


@dataclass(frozen=True)
class RealTime:
    """What the system granted a control loop."""

    scheduling: bool
    """A real-time class."""
    memory_locked: bool
    """Nothing that is in memory now is paged out."""
    cpu: int | None
    """The one processor that it stays on, where it was to."""


@contextmanager
def steady(cpu: int | None = None) -> Iterator[RealTime]:
    """No garbage collection inside, and for this thread what a real-time loop needs, where that is permitted.

    What lives is set aside, and collecting waits until the loop is over. Round-robin at the lowest real-time priority
    goes before every ordinary thread and behind whatever the system itself runs in such a class. A class that whoever
    started the process chose is left alone, and threads begun inside are ordinary ones. Memory is locked, and with
    `cpu` the thread stays on that processor; ValueError where there is none of that number.
    """
    with _pinned(cpu):
        gc.collect()
        gc.freeze()
        gc.disable()
        ordinary = hasattr(os, "sched_setscheduler") and _scheduling() == os.SCHED_OTHER
        if ordinary:
            _schedule(os.SCHED_RR, 1)
        locked = _memory("mlockall", PRESENT_PAGES)
        try:
            granted = hasattr(os, "sched_setscheduler") and _scheduling() in (os.SCHED_RR, os.SCHED_FIFO)
            yield RealTime(granted, locked, cpu)
        finally:
            if locked:
                _memory("munlockall")
            if ordinary:
                _schedule(os.SCHED_OTHER, 0)
            gc.enable()
            gc.unfreeze()


@contextmanager
def _pinned(cpu: int | None) -> Iterator[None]:
    """This thread on one processor only."""
    if cpu is None:
        yield
        return
    allowed = os.sched_getaffinity(0)
    if cpu not in allowed:
        raise ValueError(f"cpu {cpu}: this process may use {', '.join(map(str, sorted(allowed)))}")
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _memory(call: str, *arguments: int) -> bool:
    """Lock or unlock this process's memory; whether the system permits it."""
    function = getattr(ctypes.CDLL(None), call, None)
    return function is not None and function(*arguments) == 0


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
    came: list[int] = []  # not an Event: a signal that comes within `set` waits for good for the lock held there

    def note(signum: int, frame: FrameType | None) -> None:
        came[:] = [signum]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
        # Python lets go of its handlers as it ends, and one more signal would kill what has ended in order
        atexit.register(signal.signal, number, signal.SIG_IGN)
    return lambda: bool(came)
