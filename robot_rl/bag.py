"""Episodes on disk: rosbag2 folders of MCAP files with the raw messages of a run.

A bag is `<bag>/metadata.yaml` and `<bag>/<bag>_0.mcap`, further files `_1`, `_2` when split by size. One whose writer
was killed reads up to its last flush; `recover` makes it whole for other tools.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import heapq
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from hardware.messages import definition, type_hash
from robot_rl import rosbag2
from robot_rl.mcap_reader import McapReader
from robot_rl.mcap_writer import BagError, Channel, McapWriter, Message, compressor
from robot_rl.rosbag2 import Facts, Summary

if TYPE_CHECKING:
    from hardware.bus import Qos

__all__ = ["LOST", "BagError", "BagWriter", "Info", "Message", "Topic", "below", "info", "read", "recover"]

LOST = "recovered_dropped_bytes"
"""The key of the custom data that `recover` leaves in a bag that was not whole."""
_COPY_BYTES = 4 << 20
_LOG = logging.getLogger(__name__)


def below(folder: Path) -> list[Path]:
    """The bags below a folder, those that links lead to among them, by name."""
    return sorted({(folder / file).parent for file in glob.iglob("**/*.mcap", root_dir=folder, recursive=True)})


@dataclass(frozen=True)
class Topic:
    """What a bag holds of one topic."""

    type: str
    count: int
    """Messages."""


@dataclass(frozen=True)
class Info:
    """What is in a bag, without its messages. Times are unix ns, 0 when there is no message."""

    path: Path
    files: tuple[Path, ...]
    topics: dict[str, Topic]
    messages: int
    start_ns: int
    end_ns: int
    size: int
    """Bytes on disk."""
    closed: bool
    """Whether its writer finished it; otherwise it is being written, or `recover` makes it whole."""
    dropped: int
    """Bytes that cannot be used."""
    custom: dict[str, str]


class BagWriter:
    """Writes one bag. OSError from any method means a full or failing disk: the bag so far is intact, close it."""

    def __init__(
        self,
        folder: str | Path,
        *,
        custom: Mapping[str, str] | None = None,
        flush_s: float = 0.5,
        chunk_bytes: int = 4 << 20,
        split_bytes: int = 0,
        compression: str = "",
    ) -> None:
        """Create `folder` with an empty bag. BagError when it exists.

        Args:
            custom: facts about the run for metadata.yaml, there from the start and thus also after a kill.
            flush_s: a `write` hands everything to the system when the last flush is as old as this, s.
            chunk_bytes: ... or when as many bytes wait.
            split_bytes: go on in a new file when one is larger than this; 0 never.
            compression: of the chunks: zstd, lz4 or none. ValueError for another.
        """
        self.folder = Path(folder)
        compressor(compression)  # an unknown one is refused before there is a folder
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            raise BagError(f"{self.folder}: exists already, a bag is never written over") from None
        self._custom = dict(custom or {})
        self._flush_s, self._chunk_bytes, self._split_bytes = flush_s, chunk_bytes, split_bytes
        self._compression = compression
        self._ids: dict[str, int] = {}
        self._finished: list[Facts] = []
        self._described = 0  # topics that metadata.yaml names
        self._flushed = time.monotonic()
        try:
            self._file = self._open()
            self._describe()
        except OSError:
            self._withdraw()
            raise

    @property
    def messages(self) -> int:
        """Messages on disk."""
        return Summary.of(self._facts()).messages

    def add_topic(self, topic: str, type: str, qos: Qos | None = None) -> None:
        """Declare an absolute topic name with its 'pkg/msg/Type' and the QoS that it is offered with."""
        if topic in self._ids:
            raise BagError(f"{self.folder}: topic {topic} is declared twice")
        channel = Channel(topic, type, definition(type), rosbag2.qos_text(qos) if qos else "", type_hash(type))
        self._ids[topic] = self._file.add_channel(channel)

    def write(self, topic: str, data: bytes, log_ns: int, publish_ns: int) -> None:
        """Add a CDR message: `log_ns` is when it was received, `publish_ns` its source stamp, both unix ns."""
        self._file.write(self._ids[topic], data, log_ns, publish_ns)
        if self._file.pending >= self._chunk_bytes or time.monotonic() - self._flushed >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the system: from now on it survives a kill of this process."""
        self._flushed = time.monotonic()
        self._file.flush()
        if self._split_bytes and self._file.size > self._split_bytes:
            self._split()
        elif len(self._ids) > self._described:
            self._describe()

    def close(self, custom: Mapping[str, str] | None = None) -> None:
        """Finish the files and write metadata.yaml, with `custom` added. OSError after doing as much as possible."""
        self._custom.update(custom or {})
        failure: OSError | None = None
        for step in (self._file.flush, lambda: self._file.close(self._metadata()), self._describe):
            try:
                step()
            except OSError as error:
                failure = failure or error
        self._file.abandon()
        if failure:
            raise failure

    def _open(self) -> McapWriter:
        return McapWriter(self.folder / self._name(), self._compression)

    def _withdraw(self) -> None:
        """Leave nothing behind when not even an empty bag could be written."""
        with contextlib.suppress(OSError):
            (self.folder / self._name()).unlink(missing_ok=True)
            self.folder.rmdir()

    def _split(self) -> None:
        full = self._file
        full.close(self._metadata())
        self._finished.append(Facts.of(self._name(), full))
        self._file = self._open()
        for channel in full.channels.values():  # in the same order, thus with the same ids
            self._file.add_channel(channel)
        self._describe()

    def _name(self) -> str:
        return f"{self.folder.name}_{len(self._finished)}.mcap"

    def _facts(self) -> list[Facts]:
        return [*self._finished, Facts.of(self._name(), self._file)]

    def _metadata(self) -> str:
        return rosbag2.serialized(self._facts(), self._custom)

    def _describe(self) -> None:
        self._described = len(self._ids)
        rosbag2.write(self.folder, self._facts(), self._custom)


def read(path: str | Path, topics: Collection[str] | None = None) -> Iterator[Message]:
    """Yield the messages of a bag folder or one .mcap file in log order, of absolute `topics` or of all.

    Damage never raises: what is intact comes, and the bytes that had to be dropped are logged as a warning at the end.
    BagError, at once, when there is no bag at `path`.
    """
    readers = [McapReader(file) for file in _files(Path(path))]
    return _read(readers, topics)


def _read(readers: Sequence[McapReader], topics: Collection[str] | None) -> Iterator[Message]:
    with contextlib.ExitStack() as stack:
        for reader in readers:
            stack.enter_context(reader)
        streams = [reader.messages(topics) for reader in readers]
        yield from streams[0] if len(streams) == 1 else heapq.merge(*streams, key=attrgetter("log_ns"))
        for reader in readers:
            if reader.dropped:
                _LOG.warning("%s: %d bytes dropped, they are damaged or incomplete", reader.path, reader.dropped)


def info(path: str | Path) -> Info:
    """Describe a bag folder or .mcap file. Reads only the summary of a closed one. BagError when there is none."""
    path = Path(path)
    files, facts, closed, dropped = _files(path), [], True, 0
    for file in files:
        with McapReader(file) as reader:
            facts.append(Facts.of(file.name, reader) if reader.closed else _counted(file.name, reader))
            closed, dropped = closed and reader.closed, dropped + reader.dropped
    total = Summary.of(facts)
    topics = {topic: Topic(channel.type, total.counts.get(topic, 0)) for topic, channel in total.channels.items()}
    size = sum(file.stat().st_size for file in files)
    custom = rosbag2.custom(path if path.is_dir() else path.parent)
    return Info(path, files, topics, total.messages, total.start_ns, total.end_ns, size, closed, dropped, custom)


def recover(path: str | Path, out: str | Path | None = None) -> Info:
    """Make a bag whose writer was killed, or that is damaged, whole: in the new folder `out`, or where it lies.

    There it goes file by file and atomically, and a whole bag is left alone. What cannot be read is left out; how many
    bytes those were is `LOST` in the custom data. BagError when there is no bag, when it is still being written and
    when `out` exists.
    """
    path = Path(path)
    files, custom = _files(path), rosbag2.custom(path if path.is_dir() else path.parent)
    folder = path if out is None else Path(out)
    if out is not None:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise BagError(f"{folder}: exists already, a bag is never written over") from None
    whole = [file if out is None else folder / file.name for file in files]
    try:
        lost = [loss for loss in map(_rewrite, files, whole) if loss is not None]
    except BaseException:
        if out is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if folder.is_dir() and (lost or rosbag2.read(folder).get("message_count") != str(info(folder).messages)):
        facts = []
        for file in whole:
            with McapReader(file) as reader:
                facts.append(Facts.of(file.name, reader))
        rosbag2.write(folder, facts, {**custom, LOST: str(sum(lost))} if lost else custom)
    return info(folder)


def _counted(name: str, reader: McapReader) -> Facts:
    """Return the facts of an unfinished file by reading it."""
    counts: Counter[str] = Counter()
    start = end = 0
    for message in reader.messages():
        start, end = start or message.log_ns, message.log_ns
        counts[message.topic] += 1
    return Facts(name, tuple(reader.channels.values()), counts, start, end)


def _rewrite(file: Path, to: Path) -> int | None:
    """Write what is intact of an unfinished or damaged file to another, or in its place; returns the bytes lost.

    A whole one is copied, or left where it is, and None returned.
    """
    with McapReader(file) as reader, file.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BagError(f"{file}: still being written") from None
        if reader.closed and _intact(reader):
            if to != file:
                shutil.copyfile(file, to)
            return None
        whole = to.with_name(f".{to.name}.recover")
        whole.unlink(missing_ok=True)
        writer = McapWriter(whole)
        try:
            _copy(reader, writer)
            writer.close(rosbag2.serialized([Facts.of(file.name, writer)], {}))
        finally:
            writer.abandon()
        with whole.open("rb") as done:  # on disk before it takes the place of the damaged one
            os.fsync(done.fileno())
        whole.replace(to)
        return reader.dropped


def _intact(reader: McapReader) -> bool:
    """Whether every byte can be used, and the summary of the file counts what is in it."""
    return sum(1 for _ in reader.messages()) == sum(reader.counts.values()) and not reader.dropped


def _copy(reader: McapReader, writer: McapWriter) -> None:
    ids: dict[tuple[str, str], int] = {}
    for message in reader.messages():
        key = (message.topic, message.type)
        if key not in ids:  # channels turn up while the file is read
            new = {(channel.topic, channel.type): channel for channel in reader.channels.values()}
            ids.update({key: writer.add_channel(channel) for key, channel in new.items() if key not in ids})
        writer.write(ids[key], message.data, message.log_ns, message.publish_ns)
        if writer.pending > _COPY_BYTES:
            writer.flush()
    writer.flush()


def _files(path: Path) -> tuple[Path, ...]:
    """Return the MCAP files of a bag in the order of their numbers."""
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise BagError(f"{path}: no such bag")
    files = [file for file in path.glob("*.mcap") if not file.name.startswith(".")]
    if not files:
        raise BagError(f"{path}: not a bag, it holds no .mcap file")
    return tuple(sorted(files, key=lambda file: (len(file.name), file.name)))
