"""Writes an MCAP file in chunks that outlive a killed writer.

The `mcap` package's writer copies a message three times on its way (2.4 ms for a VGA image, 0.8 ms here) and cannot
go on after a write that failed, so the few record kinds of a rosbag2 file are written here. A file is: magic, header,
chunks each followed by its message indexes, metadata, data end, summary, footer, magic. Times are unix nanoseconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = range(1, 9)
STATISTICS, METADATA, METADATA_INDEX, SUMMARY_OFFSET, DATA_END = range(0x0B, 0x10)

HEAD_FORM = struct.Struct("<BQ")  # opcode, length of what follows
MESSAGE_FORM = struct.Struct("<BQHIQQ")  # head, channel, sequence, log time, publish time
CHUNK_FORM = struct.Struct("<BQQQQII")  # head, first and last log time, size, crc, length of the compression's name
FOOTER_FORM = struct.Struct("<BQQQ")  # head, summary start, summary offset start; its crc follows
STATISTICS_FORM = struct.Struct("<QHIIIIQQI")
FAR = 1 << 64
COMPRESSIONS = ("zstd", "lz4")
LARGE = 1 << 16  # bytes; a message of this size is not copied on its way to the disk


class BagError(ValueError):
    """What was given is no bag, or not one that can be used as asked; the message names the file and why."""


class Message(NamedTuple):
    """One recorded message: `topic` absolute, `type` as 'pkg/msg/Type', `data` CDR with its header, times unix ns."""

    topic: str
    type: str
    data: bytes
    log_ns: int
    publish_ns: int


@dataclass(frozen=True)
class Channel:
    """A topic in a file: its type, the type's full text, and what rosbag2 keeps of it."""

    topic: str
    type: str
    definition: str
    qos: str = ""
    hash: str = ""
    format: str = "ros2msg"
    encoding: str = "cdr"


def compressor(name: str) -> Callable[[bytes], bytes]:
    """How a chunk is compressed: quickly, for it is done while recording. ValueError for an unknown name."""
    if name == "zstd":
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        return lambda data: bytes(zstd.compress(data, 1))
    if name == "lz4":
        import lz4.frame  # type: ignore[import-untyped]

        return lambda data: bytes(lz4.frame.compress(data))
    if name:
        raise ValueError(f"compression {name}: known are {', '.join(COMPRESSIONS)}, and none")
    return bytes


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(data)) + data


def _map(values: dict[str, str]) -> bytes:
    return _text(b"".join(_text(key) + _text(value) for key, value in values.items()))


def _record(opcode: int, body: bytes) -> bytes:
    return HEAD_FORM.pack(opcode, len(body)) + body


def _gathered(parts: list[bytes]) -> list[bytes]:
    """Join small neighbours; what is large stays where it is, to be written from there."""
    runs: list[bytes] = []
    small: list[bytes] = []
    for part in parts:
        if len(part) < LARGE:
            small.append(part)
        else:
            runs += (b"".join(small), part)
            small = []
    return [*runs, b"".join(small)]


class McapWriter:
    """Writes one new file. Nothing reaches the disk before `flush`; a failed flush leaves the file as before it."""

    def __init__(self, path: Path, compression: str = "") -> None:
        """Create `path` and hold a lock on it until closed, so that nobody repairs it. OSError, also when it exists."""
        self._compression, self._compress = compression.encode(), compressor(compression)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.size = 0
        """Bytes on disk, all of them whole records."""
        self.counts: dict[int, int] = {}
        """Messages on disk by channel id."""
        self.start_ns, self.end_ns = FAR, 0
        self.channels: dict[int, Channel] = {}
        self._schemas: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._channel_records: list[bytes] = []
        self._chunk_indexes: list[bytes] = []
        self._parts: list[bytes] = []
        self._index: dict[int, list[int]] = {}  # channel id -> log time, offset, log time, offset, ...
        self._sequence: dict[int, int] = {}
        self.pending = 0
        """Bytes that wait for the next flush."""
        try:
            self._append(MAGIC, _record(HEADER, _text("ros2") + _text("robot_rl")))
        except OSError:
            self.abandon()
            raise

    def add_channel(self, channel: Channel) -> int:
        """Declare a topic; returns its id for `write`."""
        key = (channel.type, channel.definition)
        if key not in self._schemas:
            number = len(self._schemas) + 1
            body = struct.pack("<H", number) + _text(channel.type) + _text(channel.format) + _text(channel.definition)
            self._schemas[key] = number, _record(SCHEMA, body)
            self._put(self._schemas[key][1])
        identity = len(self.channels) + 1
        notes = _map({"offered_qos_profiles": channel.qos, "topic_type_hash": channel.hash})
        head = struct.pack("<HH", identity, self._schemas[key][0])
        record = _record(CHANNEL, head + _text(channel.topic) + _text(channel.encoding) + notes)
        self._channel_records.append(record)
        self._put(record)
        self.channels[identity] = channel
        self.counts[identity] = self._sequence[identity] = 0
        return identity

    def write(self, channel: int, data: bytes, log_ns: int, publish_ns: int) -> None:
        """Add a message to the chunk; `data` is kept, not copied, so it must not change any more."""
        sequence = self._sequence[channel]
        head = MESSAGE_FORM.pack(MESSAGE, 22 + len(data), channel, sequence & 0xFFFFFFFF, log_ns, publish_ns)
        self._sequence[channel] = sequence + 1
        self._index.setdefault(channel, []).extend((log_ns, self.pending))
        self._parts += (head, data)
        self.pending += len(head) + len(data)

    def flush(self) -> None:
        """Write the chunk out, so that it outlives this process. OSError: its messages are lost, the file is whole."""
        if not self._index:
            return
        index, body, size = self._index, _gathered(self._parts), self.pending
        self._index, self._parts, self.pending = {}, [], 0
        start = min(min(flat[::2]) for flat in index.values())
        end = max(max(flat[::2]) for flat in index.values())
        crc = 0
        for run in body:
            crc = zlib.crc32(run, crc)
        stored, name = size, self._compression
        if name:
            body = [self._compress(b"".join(body))]
            stored = len(body[0])
        head = CHUNK_FORM.pack(CHUNK, 40 + len(name) + stored, start, end, size, crc, len(name))
        head += name + struct.pack("<Q", stored)
        indexes, offsets, chunk_at = b"", b"", self.size
        indexes_at = chunk_at + len(head) + stored
        for channel, flat in index.items():
            offsets += struct.pack("<HQ", channel, indexes_at + len(indexes))
            bytes_of_it = 8 * len(flat)
            form = f"<BQHI{len(flat)}Q"
            indexes += struct.pack(form, MESSAGE_INDEX, 6 + bytes_of_it, channel, bytes_of_it, *flat)
        self._append(head, *body, indexes)
        self.start_ns, self.end_ns = min(self.start_ns, start), max(self.end_ns, end)
        for channel, flat in index.items():
            self.counts[channel] += len(flat) // 2
        chunk = struct.pack("<QQQQ", start, end, chunk_at, len(head) + stored) + _text(offsets)
        self._chunk_indexes.append(chunk + struct.pack("<Q", len(indexes)) + _text(name)
                                   + struct.pack("<QQ", stored, size))

    def close(self, metadata: str) -> None:
        """Flush, then write rosbag2's `metadata` text, the summary and the footer."""
        self.flush()
        note, note_at = _record(METADATA, _text("rosbag2") + _map({"serialized_metadata": metadata})), self.size
        self._append(note, _record(DATA_END, bytes(4)))
        counts = b"".join(struct.pack("<HQ", *item) for item in self.counts.items())
        sizes = (sum(self.counts.values()), len(self._schemas), len(self.channels), 0, 1, len(self._chunk_indexes))
        times = (self.start_ns if self._chunk_indexes else 0, self.end_ns)
        groups = {
            SCHEMA: b"".join(record for _, record in self._schemas.values()),
            CHANNEL: b"".join(self._channel_records),
            STATISTICS: _record(STATISTICS, STATISTICS_FORM.pack(*sizes, *times, len(counts)) + counts),
            CHUNK_INDEX: b"".join(_record(CHUNK_INDEX, chunk) for chunk in self._chunk_indexes),
            METADATA_INDEX: _record(METADATA_INDEX, struct.pack("<QQ", note_at, len(note)) + _text("rosbag2")),
        }
        summary, offsets, start = b"", b"", self.size
        for opcode, group in groups.items():
            if group:
                offsets += _record(SUMMARY_OFFSET, struct.pack("<BQQ", opcode, start + len(summary), len(group)))
            summary += group
        summary += offsets + FOOTER_FORM.pack(FOOTER, 20, start, start + len(summary))
        self._append(summary, struct.pack("<I", zlib.crc32(summary)), MAGIC)
        self.abandon()

    def abandon(self) -> None:
        """Close without a summary: what was flushed stays readable. Closing again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _put(self, record: bytes) -> None:
        self._parts.append(record)
        self.pending += len(record)

    def _append(self, *parts: bytes) -> None:
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[os.write(self._fd, view) :]
        except OSError:
            with contextlib.suppress(OSError):  # half a record would hide whatever is written after it
                os.ftruncate(self._fd, self.size)
                os.lseek(self._fd, self.size, os.SEEK_SET)
            raise
        self.size += sum(map(len, parts))
