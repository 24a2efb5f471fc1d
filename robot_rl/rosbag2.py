"""The metadata.yaml of a rosbag2 folder: what ROS 2 reads before it opens the files beside it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import yaml

from robot_rl.mcap_writer import Channel

if TYPE_CHECKING:
    from hardware.bus import Qos

VERSION = 8  # with the QoS as a text, which everything from Humble to Rolling decodes
_ROOT = "rosbag2_bagfile_information"
LARGEST = 16 << 20  # bytes of a metadata.yaml; a larger one is none


class _Plain(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: object) -> bool:
        return True  # no anchors: other readers of rosbag2 files need not know them


class _File(Protocol):
    channels: dict[int, Channel]
    counts: dict[int, int]
    start_ns: int
    end_ns: int


class Facts(NamedTuple):
    """What metadata.yaml says of one MCAP file; times in unix ns, 0 without messages."""

    name: str
    channels: tuple[Channel, ...]
    counts: Mapping[str, int]
    """Messages by topic."""
    start_ns: int
    end_ns: int

    @staticmethod
    def of(name: str, file: _File) -> Facts:
        """Take the facts from a writer or from the reader of a closed file."""
        counts: Counter[str] = Counter()
        for identity, count in file.counts.items():
            if identity in file.channels:
                counts[file.channels[identity].topic] += count
        start, end = (file.start_ns, file.end_ns) if counts.total() else (0, 0)
        return Facts(name, tuple(file.channels.values()), counts, start, end)


class Summary(NamedTuple):
    """The facts of all files of a bag together."""

    channels: dict[str, Channel]
    """By topic."""
    counts: Mapping[str, int]
    messages: int
    start_ns: int
    end_ns: int

    @staticmethod
    def of(files: Sequence[Facts]) -> Summary:
        """Add the files up."""
        counts: Counter[str] = Counter()
        for file in files:
            counts.update(file.counts)
        channels = {channel.topic: channel for file in files for channel in file.channels}
        filled = [file for file in files if any(file.counts.values())]
        start = min((file.start_ns for file in filled), default=0)
        end = max((file.end_ns for file in filled), default=0)
        return Summary(channels, counts, counts.total(), start, end)


def qos_text(qos: Qos) -> str:
    """Return an offered QoS as rosbag2 wrote it up to version 8: a YAML list inside a text, enums as rmw's numbers."""
    forever = {"sec": 9223372036, "nsec": 854775807}
    profile = {
        "history": 1,  # keep last
        "depth": qos.depth,
        "reliability": 1 if qos.reliable else 2,
        "durability": 1 if qos.latched else 2,
        "deadline": forever,
        "lifespan": forever,
        "liveliness": 1,  # automatic
        "liveliness_lease_duration": forever,
        "avoid_ros_namespace_conventions": False,
    }
    return _dump([profile]).strip()


def serialized(files: Sequence[Facts], custom: Mapping[str, str]) -> str:
    """Return the text that rosbag2 keeps in a Metadata record of the MCAP file."""
    return _dump(_metadata(files, custom))


def write(folder: Path, files: Sequence[Facts], custom: Mapping[str, str]) -> None:
    """Write metadata.yaml so that there is always a complete one. OSError leaves the one before."""
    new = folder / ".metadata.yaml.new"
    try:
        new.write_text(_dump({_ROOT: _metadata(files, custom)}), "utf-8")
        os.replace(new, folder / "metadata.yaml")
    except OSError:
        new.unlink(missing_ok=True)
        raise


def read(folder: Path) -> dict[str, Any]:
    """Return what metadata.yaml holds, every value a text; empty when it is missing or makes no sense.

    Not by libyaml: brackets a hundred thousand deep end the whole process in it, here they are a RecursionError.
    """
    try:
        with (folder / "metadata.yaml").open("rb") as file:
            content = yaml.load(file.read(LARGEST), Loader=yaml.BaseLoader)
        return dict(content[_ROOT])
    except (OSError, yaml.YAMLError, RecursionError, ValueError, TypeError, KeyError):
        return {}


def custom(folder: Path) -> dict[str, str]:
    """Return the custom data of a bag folder."""
    found = read(folder).get("custom_data")
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def _metadata(files: Sequence[Facts], custom: Mapping[str, str]) -> dict[str, Any]:
    total = Summary.of(files)
    return {
        "version": VERSION,
        "storage_identifier": "mcap",
        "duration": {"nanoseconds": total.end_ns - total.start_ns},
        "starting_time": {"nanoseconds_since_epoch": total.start_ns},
        "message_count": total.messages,
        "topics_with_message_count": [
            {"topic_metadata": _topic(channel), "message_count": total.counts.get(topic, 0)}
            for topic, channel in total.channels.items()
        ],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file.name for file in files],
        "files": [
            {
                "path": file.name,
                "starting_time": {"nanoseconds_since_epoch": file.start_ns},
                "duration": {"nanoseconds": file.end_ns - file.start_ns},
                "message_count": sum(file.counts.values()),
            }
            for file in files
        ],
        "custom_data": dict(custom),
        "ros_distro": "",
    }


def _topic(channel: Channel) -> dict[str, Any]:
    return {
        "name": channel.topic,
        "type": channel.type,
        "serialization_format": channel.encoding,
        "offered_qos_profiles": channel.qos,
        "type_description_hash": channel.hash,
    }


def _dump(value: object) -> str:
    return str(yaml.dump(value, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=1 << 20))
