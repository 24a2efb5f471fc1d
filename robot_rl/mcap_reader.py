"""Reads an MCAP file as far as it is intact: closed, still being written, or left by a killed writer.

Nothing is trusted: sizes are checked before they are used, a chunk counts when its checksum is right, and what cannot
be used is counted in bytes instead of raised.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import struct
import sys
import zlib
from bisect import bisect_right
from collections.abc import Collection, Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from robot_rl.mcap_writer import (
    CHANNEL,
    CHUNK,
    CHUNK_FORM,
    DATA_END,
    FAR,
    FOOTER,
    FOOTER_FORM,
    HEAD_FORM,
    MAGIC,
    MESSAGE,
    MESSAGE_FORM,
    SCHEMA,
    STATISTICS,
    STATISTICS_FORM,
    BagError,
    Channel,
    Message,
)

LARGEST_CHUNK = 1 << 28  # bytes; a chunk that claims to unpack to more is taken for damage

_BY_LOG_TIME = attrgetter("log_ns")


class _Segment(NamedTuple):
    """A run of records in the file: a chunk's body or one record outside of chunks."""

    at: int
    length: int
    start_ns: int
    compression: str
    unpacked: int
    crc: int


class McapReader:
    """Reads what is intact: whole chunks with a right checksum, in log order. Never raises for damage, counts it."""

    def __init__(self, path: Path) -> None:
        """Open `path` and find its chunks, without reading them. BagError when it is no MCAP file at all."""
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._fd).st_size
        start = os.pread(self._fd, len(MAGIC), 0)
        if start != MAGIC[: len(start)]:
            self.close()
            raise BagError(f"{path}: not an MCAP file, it starts with {start!r}")
        self.channels: dict[int, Channel] = {}
        self.counts: dict[int, int] = {}
        """Messages by channel id, as the summary of a closed file says."""
        self.start_ns = self.end_ns = 0
        self.dropped = 0
        """Bytes that cannot be used; complete once `messages` has run through."""
        self._unframed = 0
        self._schemas: dict[int, tuple[str, str, str]] = {0: ("", "", "")}
        self._segments: list[_Segment] = []
        self._wanted: dict[int, Channel | None] = {}  # by id, None for those whose messages are to be skipped
        self.closed = self._read_summary()
        """Whether the file has a proper end."""
        self._walk()
        self.dropped = self._unframed

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> McapReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def messages(self, topics: Collection[str] | None = None) -> Iterator[Message]:
        """Yield the messages (of `topics`, by default of all) in log order."""
        self.dropped = self._unframed
        later, starts = FAR, []
        for segment in reversed(self._segments):
            starts.append(later)
            later = min(later, segment.start_ns)
        held: list[tuple[int, int, Message]] = []  # a heap of what a later chunk may still come before
        count = 0
        self._wanted = {identity: self._choice(channel, topics) for identity, channel in self.channels.items()}
        for segment, later in zip(self._segments, reversed(starts), strict=True):
            found = self._parse(segment, topics)
            found.sort(key=_BY_LOG_TIME)
            if not held:  # as nearly always
                cut = bisect_right(found, later, key=_BY_LOG_TIME)
                yield from found[:cut]
                del found[:cut]
            for message in found:
                count += 1
                heapq.heappush(held, (message.log_ns, count, message))
            while held and held[0][0] <= later:
                yield heapq.heappop(held)[2]
        while held:
            yield heapq.heappop(held)[2]

    def _walk(self) -> None:
        """List the segments, up to the end of the data or to the first place where the framing is broken."""
        at = len(MAGIC)
        while at + HEAD_FORM.size <= self._size:
            head = os.pread(self._fd, 80, at)
            opcode, length = HEAD_FORM.unpack_from(head)
            after = at + HEAD_FORM.size + length
            if opcode == DATA_END:
                return
            if opcode == 0 or after > self._size:
                break
            if opcode == CHUNK:
                self._add_chunk(head, at, length)
            elif opcode in (SCHEMA, CHANNEL, MESSAGE):
                whole_message = opcode == MESSAGE and len(head) >= MESSAGE_FORM.size
                start = MESSAGE_FORM.unpack_from(head)[4] if whole_message else FAR
                self._segments.append(_Segment(at, after - at, start, "", after - at, 0))
            at = after
        self._unframed += self._size - min(at, self._size)

    def _add_chunk(self, head: bytes, at: int, length: int) -> None:
        with contextlib.suppress(struct.error, UnicodeDecodeError):
            _, _, start, _, unpacked, crc, name = CHUNK_FORM.unpack_from(head)
            compression = head[CHUNK_FORM.size : CHUNK_FORM.size + name].decode()
            (size,) = struct.unpack_from("<Q", head, CHUNK_FORM.size + name)
            if name + 40 + size == length and unpacked <= LARGEST_CHUNK:
                body_at = at + CHUNK_FORM.size + name + 8
                self._segments.append(_Segment(body_at, size, start, compression, unpacked, crc))
                return
        self._unframed += HEAD_FORM.size + length

    def _parse(self, segment: _Segment, topics: Collection[str] | None) -> list[Message]:
        """Return a segment's messages in file order; empty, and counted, when its checksum is wrong."""
        body = _unpacked(os.pread(self._fd, segment.length, segment.at), segment)
        if body is None or (segment.crc and zlib.crc32(body) != segment.crc):
            self.dropped += segment.length
            return []
        found: list[Message] = []
        wanted = self._wanted
        at, end = 0, len(body)
        try:
            while at < end:
                if body[at] == MESSAGE:  # most records by far, so taken apart in one go
                    _, length, identity, _, log_ns, publish_ns = MESSAGE_FORM.unpack_from(body, at)
                    after, data_at = at + HEAD_FORM.size + length, at + MESSAGE_FORM.size
                    if not data_at <= after <= end:
                        break
                    channel = wanted[identity]
                    if channel is not None:
                        found.append(Message(channel.topic, channel.type, body[data_at:after], log_ns, publish_ns))
                else:
                    opcode, length = HEAD_FORM.unpack_from(body, at)
                    after = at + HEAD_FORM.size + length
                    if after > end:
                        break
                    if opcode in (SCHEMA, CHANNEL):
                        identity = self._declare(opcode, body[at + HEAD_FORM.size : after])
                        if identity is not None:
                            wanted[identity] = self._choice(self.channels[identity], topics)
                at = after
        except (struct.error, KeyError, UnicodeDecodeError):
            pass  # counted just below: the rest of a segment whose records make no sense is not used
        self.dropped += end - at
        return found

    @staticmethod
    def _choice(channel: Channel, topics: Collection[str] | None) -> Channel | None:
        """Return the channel, None when its messages are to be skipped."""
        return channel if topics is None or channel.topic in topics else None

    def _declare(self, opcode: int, body: bytes) -> int | None:
        """Take in a schema, or a channel, whose id is returned."""
        if opcode == SCHEMA:
            (identity,) = struct.unpack_from("<H", body)
            name, at = _read_text(body, 2)
            form, at = _read_text(body, at)
            definition, _ = _read_text(body, at)
            self._schemas[identity] = (name, form, definition)
            return None
        identity, schema = struct.unpack_from("<HH", body)
        topic, at = _read_text(body, 4)
        encoding, at = _read_text(body, at)
        notes = _read_map(body, at)
        name, form, definition = self._schemas[schema]
        qos, digest = notes.get("offered_qos_profiles", ""), notes.get("topic_type_hash", "")
        self.channels[identity] = Channel(topic, name, definition, qos, digest, form, encoding)
        return int(identity)

    def _read_summary(self) -> bool:
        """Take channels and counts from the end of a closed file; False when there is no sound end."""
        footer = os.pread(
            self._fd, FOOTER_FORM.size + 4 + len(MAGIC), max(0, self._size - FOOTER_FORM.size - 4 - len(MAGIC))
        )
        if len(footer) < FOOTER_FORM.size + 4 + len(MAGIC) or not footer.endswith(MAGIC):
            return False
        opcode, length, start, _ = FOOTER_FORM.unpack_from(footer)
        (crc,) = struct.unpack_from("<I", footer, FOOTER_FORM.size)
        size = self._size - len(footer) - start
        if opcode != FOOTER or length != 20 or start < len(MAGIC) or size < 0:
            return False
        summary = os.pread(self._fd, size, start)
        if crc and zlib.crc32(footer[: FOOTER_FORM.size], zlib.crc32(summary)) != crc:
            return False
        try:
            return self._parse_summary(summary)
        except (struct.error, KeyError, UnicodeDecodeError):
            return False

    def _parse_summary(self, summary: bytes) -> bool:
        at, complete = 0, False
        while at < len(summary):
            opcode, length = HEAD_FORM.unpack_from(summary, at)
            body = summary[at + HEAD_FORM.size : at + HEAD_FORM.size + length]
            if opcode in (SCHEMA, CHANNEL):
                self._declare(opcode, body)
            elif opcode == STATISTICS:
                *_, self.start_ns, self.end_ns, _ = STATISTICS_FORM.unpack_from(body)
                self.counts = dict(struct.iter_unpack("<HQ", body[STATISTICS_FORM.size :]))
                complete = True
            at += HEAD_FORM.size + length
        return complete


def _unpacked(body: bytes, segment: _Segment) -> bytes | None:
    """Return the records of a segment; None when they cannot be unpacked to the size that is stated."""
    if not segment.compression:
        return body
    try:
        if segment.compression == "zstd":
            body = _zstd(body, segment.unpacked)
        elif segment.compression == "lz4":
            import lz4.frame  # type: ignore[import-untyped]

            body = lz4.frame.LZ4FrameDecompressor().decompress(body, max_length=segment.unpacked)
    except (RuntimeError, EOFError, ValueError):
        return None
    return body if len(body) == segment.unpacked else None


def _zstd(body: bytes, size: int) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    try:
        return zstd.ZstdDecompressor().decompress(body, max_length=size)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from error


def _read_text(body: bytes, at: int) -> tuple[str, int]:
    """Return the text at `at` and where it ends. struct.error when it is not all there."""
    (length,) = struct.unpack_from("<I", body, at)
    (data,) = struct.unpack_from(f"{length}s", body, at + 4)
    return data.decode(), at + 4 + length


def _read_map(body: bytes, at: int) -> dict[str, str]:
    (length,) = struct.unpack_from("<I", body, at)
    values, at, end = {}, at + 4, at + 4 + length
    while at < end:
        key, at = _read_text(body, at)
        values[key], at = _read_text(body, at)
    return values
