"""Decides what goes into which bag: episodes by the events on the bus, with the moments before and after them."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple

from hardware import diagnostics, messages
from hardware.bag_thread import BagThread, say
from hardware.bus import COMMAND, EVENTS, Bus, Qos, resolve
from robot_rl.steplog import EPISODE_TOPIC, TEXT_TYPE, read_info

BAG_TOPIC = "recorder/bag"
DEPTH, IMAGE_DEPTH = 1000, 16  # messages that wait in the bus between two polls; 16 VGA images are 15 MB


@dataclass(frozen=True)
class Source:
    """A topic to record: its absolute name, 'pkg/msg/Type' and the QoS it is offered with."""

    topic: str
    type: str
    qos: Qos

    @property
    def preroll(self) -> bool:
        """State is wanted from before the episode too; events of the time before would be mistaken for its own."""
        return self.qos != EVENTS

    @property
    def reader_qos(self) -> Qos:
        """As offered, but deep enough to hold what arrives between two polls."""
        large = self.type.rpartition("/")[2] in ("Image", "CompressedImage", "PointCloud2")
        return replace(self.qos, depth=IMAGE_DEPTH if large else DEPTH)


class _Entry(NamedTuple):
    """A message as taken from the bus: arrival on the monotonic clock, stamp of its source in unix ns."""

    topic: str
    data: bytes
    arrival_ns: int
    stamp_ns: int


@dataclass
class _Bag:
    """The bag being filled."""

    episode: int | None
    offset_ns: int
    """From the monotonic clock to unix time, fixed for the bag so that a clock jump cannot disorder it."""
    ends_ns: int = 0
    """When the tail of an ended episode is over, monotonic; 0 while it runs."""
    followed: bool = False
    """A policy process was seen since the bag was opened."""
    outcome: dict[str, str] = field(default_factory=dict)


class Recorder:
    """Reads the bus and hands messages to the thread that writes them. Call `poll` every few milliseconds."""

    def __init__(self, bus: Bus, sources: Sequence[Source], disk: BagThread, *, episodes: bool = True,
                 preroll_s: float = 0.5, tail_s: float = 0.1, preroll_bytes: int = 64 << 20) -> None:
        """Make the readers. Without `episodes` only `open` starts a bag."""
        events = Source("/" + resolve(EPISODE_TOPIC, bus.namespace), TEXT_TYPE, EVENTS)
        self._sources = {source.topic: source for source in (*sources, events)}
        self._bus, self._disk, self._follow = bus, disk, episodes
        self._preroll_ns, self._tail_ns = round(preroll_s * 1e9), round(tail_s * 1e9)
        self._readers = {name: bus.reader(name, source.type, source.reader_qos)
                         for name, source in self._sources.items()}
        self._events = events.topic
        self._told = bus.publisher(BAG_TOPIC, TEXT_TYPE, EVENTS)
        self._diagnostics = bus.publisher(diagnostics.TOPIC, diagnostics.TYPE, COMMAND)
        self._ring: deque[_Entry] = deque()
        self._ring_bytes, self._ring_limit = 0, preroll_bytes
        self._last: dict[str, _Entry] = {}
        self._bag: _Bag | None = None
        self._bags = self._dropped = 0
        self._error = ""

    def unmatched(self) -> list[str]:
        """Topics that nobody publishes (yet)."""
        return [name for name, reader in self._readers.items() if not reader.matched()]

    def poll(self) -> None:
        """Take everything new and pass it on; open and close bags as the episode events say."""
        fresh = [_Entry(name, sample.data, sample.arrival_ns, sample.stamp_ns)
                 for name, reader in self._readers.items() for sample in reader.take()]
        if any(entry.topic == self._events for entry in fresh):
            fresh.sort(key=attrgetter("stamp_ns"))  # steps and events fall on the right side of each other
        for entry in fresh:
            if entry.topic == self._events and self._follow:
                self._event(entry)
            self._pass_on(entry)
        now = time.monotonic_ns()
        self._trim(now - self._preroll_ns)
        if self._bag is not None and self._bag.ends_ns and now >= self._bag.ends_ns:
            self._close("episode end")
        self._disk.push()
        self._tell()

    def watch(self) -> None:
        """Once a second: end the bag of a policy process that is gone, and publish diagnostics."""
        alive = self._readers[self._events].matched() > 0
        if self._follow and self._bag is not None:
            if self._bag.followed and not alive:
                self._close("policy process gone")
            else:
                self._bag.followed = alive
        self._publish_diagnostics()

    def open(self, name: str, custom: dict[str, str], episode: int | None = None) -> None:
        """Start a bag, with the messages of the last moments and the last message of every topic in it."""
        now = time.monotonic_ns()
        self._bag = _Bag(episode, time.time_ns() - now)
        self._disk.open(name, [(s.topic, s.type, s.qos) for s in self._sources.values()], custom)
        inside = {entry.topic for entry in self._ring}
        for entry in self._last.values():
            if entry.topic not in inside:  # said to arrive now at the earliest, or its age would stretch the bag
                self._put(entry, max(entry.arrival_ns, now - self._preroll_ns))
        for entry in self._ring:
            self._put(entry, entry.arrival_ns)

    def stop(self) -> None:
        """Take what is still on its way, end the bag if there is one, wait until it is written and tell."""
        end = time.monotonic_ns() + self._tail_ns
        try:
            while self._bag is not None and time.monotonic_ns() < end:
                self.poll()
                time.sleep(0.002)
        finally:
            if self._bag is not None:
                self._close("episode end" if self._bag.ends_ns else "recorder stopped")
            self._disk.stop()
        self._tell()

    def _event(self, entry: _Entry) -> None:
        try:
            event = read_info(entry.data)
            kind, number = event["event"], event.get("episode")
        except Exception as error:  # outside bytes: whatever the decoders make of them, it is no event
            say(f"recorder: not an episode event: {error!r}", sys.stderr)
            return
        fields = {key: value if isinstance(value, str) else json.dumps(value)
                  for key, value in event.items() if key not in ("event", "bag")}
        if kind == "start":
            if self._bag is not None:
                self._close("episode end" if self._bag.ends_ns else "next episode")
            episode = number if isinstance(number, int) else None
            self.open(bag_name(event.get("bag"), episode), fields, episode)
        elif kind == "end" and self._bag is not None:
            self._bag.outcome = fields
            self._bag.ends_ns = time.monotonic_ns() + self._tail_ns

    def _pass_on(self, entry: _Entry) -> None:
        if self._bag is not None:
            self._put(entry, entry.arrival_ns)
        if self._sources[entry.topic].preroll:
            self._last[entry.topic] = entry
            self._ring.append(entry)
            self._ring_bytes += len(entry.data)

    def _put(self, entry: _Entry, arrival_ns: int) -> None:
        assert self._bag is not None
        self._disk.put(entry.topic, entry.data, arrival_ns + self._bag.offset_ns, entry.stamp_ns)

    def _trim(self, since_ns: int) -> None:
        while self._ring and (self._ring[0].arrival_ns < since_ns or self._ring_bytes > self._ring_limit):
            self._ring_bytes -= len(self._ring.popleft().data)

    def _close(self, reason: str) -> None:
        assert self._bag is not None
        self._disk.close({**self._bag.outcome, "recorder_end": reason}, self._bag.episode)
        self._bag = None

    def _tell(self) -> None:
        """Say which bags are complete, and once when writing fails."""
        for report in self._disk.reports():
            self._bags, self._dropped = self._bags + 1, self._dropped + report.dropped
            self._told.publish(messages.encode(messages.string(json.dumps(report.fields()))))
            say(f"recorder: {report.line()}")
        if self._disk.error != self._error:
            first, self._error = not self._error, self._disk.error
            if first:
                say(f"recorder: cannot write: {self._error}", sys.stderr)
            self._publish_diagnostics()

    def _publish_diagnostics(self) -> None:
        lost = self._disk.dropped
        level = diagnostics.ERROR if self._error else diagnostics.WARN if lost else diagnostics.OK
        said = self._error or ("recording" if self._bag is not None else "waiting for an episode")
        values = {"bags": self._bags, "dropped": self._dropped + lost, "queued_bytes": self._disk.queued}
        self._diagnostics.publish(messages.encode(diagnostics.diagnostic(
            self._bus.now_ns(), f"{self._bus.node}: bags", level, said, values)))


def bag_name(asked: object, episode: int | None) -> str:
    """Return the name asked for when it is a plain folder name: text from the bus must not choose another place."""
    if isinstance(asked, str) and asked.isprintable() and 0 < len(asked.encode()) <= 200 and asked[0] != ".":
        return asked.replace("/", "_").replace("\\", "_")
    return "episode" if episode is None else f"episode_{episode:04d}"
