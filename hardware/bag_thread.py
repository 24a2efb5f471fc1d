"""The thread that writes the recorder's bags: a bounded queue in front of it, and a failing disk that stops nobody."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

from hardware.bus import Qos
from robot_rl.bag import BagError, BagWriter

OVERHEAD = 256  # bytes that a queued message takes beside its data, about

_Row = tuple[str, bytes, int, int]


class Report(NamedTuple):
    """A bag that is complete, or as complete as the disk let it be."""

    bag: str
    episode: int | None
    messages: int
    """On disk."""
    dropped: int
    """Received and not on disk."""
    error: str

    def fields(self) -> dict[str, str | int | None]:
        """What is told on the bus: without "error" when there was none."""
        return {key: value for key, value in self._asdict().items() if key != "error" or value}

    def line(self) -> str:
        """What is told to a person."""
        failed = f", failed: {self.error}" if self.error else ""
        return f"bag {self.bag} complete, {self.messages} messages, {self.dropped} dropped{failed}"


class BagThread(threading.Thread):
    """Opens, fills and closes bags below `out`, in the order of the calls. No call waits for the disk but `stop`."""

    def __init__(self, out: Path, *, queue_bytes: int = 256 << 20, flush_s: float = 0.5, split_bytes: int = 0,
                 compression: str = "") -> None:
        """What is received is on disk `flush_s` later; at most `queue_bytes` wait, the rest is dropped and counted.

        Chunks are compressed by this thread, which lets the others of its process run meanwhile.
        """
        super().__init__(name="bags", daemon=True)
        self._out_folder, self._split_bytes, self._compression = out, split_bytes, compression
        self._flush_s = flush_s / 2  # the rest of the promise is for the wait below and for a busy machine
        self._items: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._batch: list[_Row] = []
        self._limit, self._put_bytes, self._done_bytes = queue_bytes, 0, 0  # each written by one thread only
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._bag: BagWriter | None = None
        self._folder, self._offered, self._failure, self._running = out, 0, "", True
        self.dropped = 0
        """Messages of the bag being filled that found the queue full."""
        self.error = ""
        """Why nothing is being written, empty once a bag was written without trouble again."""

    @property
    def queued(self) -> int:
        """Bytes that wait to be written."""
        return self._put_bytes - self._done_bytes

    def open(self, name: str, topics: Sequence[tuple[str, str, Qos]], custom: dict[str, str]) -> None:
        """Begin a bag of (absolute topic, type, QoS) topics, under the next free name when `name` is taken."""
        self.push()
        self.dropped = 0
        self._items.put(partial(self._begin, name, topics, custom))

    def put(self, topic: str, data: bytes, log_ns: int, publish_ns: int) -> None:
        """Add a message for the next `push`, or count it as dropped when too much waits already."""
        size = len(data) + OVERHEAD
        if self.queued + size > self._limit:
            self.dropped += 1
            return
        self._put_bytes += size
        self._batch.append((topic, data, log_ns, publish_ns if publish_ns > 0 else log_ns))

    def push(self) -> None:
        """Hand over what was put: together, so that the thread wakes up once and not for every message."""
        if self._batch:
            self._items.put(partial(self._write, self._batch))
            self._batch = []

    def close(self, custom: dict[str, str], episode: int | None = None) -> None:
        """End the bag; its report follows."""
        self.push()
        self._items.put(partial(self._end, custom, episode, self.dropped))
        self.dropped = 0

    def reports(self) -> list[Report]:
        """Return what was completed since the last call."""
        return [self._reports.get() for _ in range(self._reports.qsize())]

    def stop(self) -> None:
        """Write what waits, then end the thread."""
        self.push()
        self._items.put(self._finish)
        self.join()

    def run(self) -> None:
        """Work through the queue, and flush when it is quiet."""
        while self._running:
            try:
                item = self._items.get(timeout=self._flush_s / 2)
            except queue.Empty:
                if self._bag is not None and not self._failure:
                    self._attempt(self._bag.flush)
            else:
                self._attempt(item)

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do it; whatever goes wrong ends this bag and not the recorder."""
        try:
            action()
        except (OSError, BagError) as error:
            self._fail(str(error))
        except Exception as error:  # a bug here must not leave a recorder that looks alive and writes nothing
            traceback.print_exc()
            self._fail(repr(error))

    def _write(self, rows: list[_Row]) -> None:
        self._offered += len(rows)
        try:
            if self._bag is not None and not self._failure:
                for row in rows:
                    self._bag.write(*row)
        finally:
            self._done_bytes += sum(len(row[1]) + OVERHEAD for row in rows)

    def _begin(self, name: str, topics: Sequence[tuple[str, str, Qos]], custom: dict[str, str]) -> None:
        self._bag, self._offered, self._failure = None, 0, ""
        self._folder = free_folder(self._out_folder, name)
        if self._folder.name != name:
            say(f"recorder: {self._out_folder / name} exists already, writing {self._folder}")
        self._bag = BagWriter(self._folder, custom=custom, flush_s=self._flush_s, split_bytes=self._split_bytes,
                              compression=self._compression)
        for topic in topics:
            self._bag.add_topic(*topic)

    def _end(self, custom: dict[str, str], episode: int | None, dropped: int) -> None:
        bag, self._bag, written = self._bag, None, 0
        if bag is not None:
            if not self._failure:
                self._attempt(bag.flush)
            written = bag.messages
            lost = {"recorder_dropped": str(dropped + self._offered - written)}
            self._attempt(partial(bag.close, {**custom, **lost}))
        total = dropped + self._offered - written
        self._reports.put(Report(str(self._folder), episode, written, total, self._failure))
        self.error = self._failure

    def _fail(self, error: str) -> None:
        self._failure = self._failure or error
        self.error = self.error or f"{self._folder}: {error}"

    def _finish(self) -> None:
        self._running = False


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line, unless whoever should read it is gone or reads no more: that must not hold the recorder up."""
    stream = stream or sys.stdout
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [stream], [], 0)[1]:
            os.write(stream.fileno(), f"{line}\n".encode())


def free_folder(out: Path, name: str) -> Path:
    """Return `out`/`name`, or the first of name-2, name-3, ... that does not exist."""
    folder, number = out / name, 2
    while folder.exists():
        folder, number = out / f"{name}-{number}", number + 1
    return folder
