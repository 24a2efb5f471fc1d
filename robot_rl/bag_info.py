"""What a bag holds, in figures: rates and gaps by topic, whether it is whole, and how its episodes ended."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl import rosbag2
from robot_rl.bag import LOST, Info, info, read, recover
from robot_rl.steplog import EPISODE_TOPIC, outcome, read_event, read_info

GAP = 2.5  # usual spans between two messages of a topic, from which on one counts as a gap


def describe(path: Path) -> dict[str, Any]:
    """Figures of a bag folder or an .mcap file, `topics` by name; all of it is read. BagError when there is none."""
    found = info(path)
    metadata = rosbag2.read(path) if path.is_dir() else {}
    stamps = {topic: array("Q") for topic in found.topics}
    episodes: dict[Any, dict[str, Any]] = {}
    policies: dict[str, None] = dict.fromkeys(filter(None, [found.custom.get("policy")]))
    for message in read(path):
        stamps.setdefault(message.topic, array("Q")).append(message.publish_ns or message.log_ns)
        try:
            if message.topic.endswith(EPISODE_TOPIC):
                event = read_event(message.data)
                episodes.setdefault(event.get("episode"), {}).update(event)
            elif message.topic.endswith("/policy_info"):
                policies[str(read_info(message.data).get("sha256") or "none")] = None
        except ValueError:
            continue  # it is counted, and says nothing
    topics = {name: {"type": topic.type} | _pace(np.array(stamps[name], np.uint64))
              for name, topic in found.topics.items()}
    return {
        "bag": str(path), "files": len(found.files), "bytes": found.size, "messages": found.messages,
        "seconds": (found.end_ns - found.start_ns) * 1e-9,
        "index": "; ".join(_faults(found, metadata, sum(map(len, stamps.values())))) or "complete",
        "dropped_bytes": found.dropped, "metadata_version": metadata.get("version"),
        "ros_distro": metadata.get("ros_distro"), "policies": list(policies),
        "episodes": [{"episode": number, "outcome": outcome(event)} for number, event in episodes.items()],
        "topics": topics, "custom": found.custom,
    }


def lines(figures: dict[str, Any]) -> dict[str, Any]:
    """The same for a person: a line for each topic, episode and policy."""
    out = {key: value for key, value in figures.items() if not isinstance(value, (dict, list))}
    out |= {f"policy {i}": sha for i, sha in enumerate(figures["policies"])}
    out |= {f"episode {e['episode']}": e["outcome"] for e in figures["episodes"]}
    for name, topic in figures["topics"].items():
        line = f"{topic['type']} x {topic['count']}"
        if topic["rate_hz"] is not None:
            line += f", {topic['rate_hz']:.4g} Hz, {topic['gaps']} gaps, the longest span {topic['longest_s']:.4g} s"
        out[f"topic {name}"] = line
    return out | {f"custom {key}": value for key, value in figures["custom"].items()}


def repair(path: Path, out: Path | None) -> dict[str, Any]:
    """Recover a bag into the new folder `out`, or in its place; what was saved and what was lost."""
    before, after = info(path), recover(path, out)
    return {"bag": str(path), "recovered": str(after.path), "was_whole": before.closed and LOST not in after.custom,
            "files": len(after.files), "messages": after.messages,
            "seconds": (after.end_ns - after.start_ns) * 1e-9, "bytes": after.size,
            "lost_bytes": int(after.custom.get(LOST, 0)),
            "recorder_end": after.custom.get("recorder_end", "none: the recorder did not finish; what it had not "
                                             "flushed yet is not in the file")}


def _pace(stamps: np.ndarray) -> dict[str, Any]:
    """Count, mean rate in Hz, spans that are gaps, and the longest span in s, of the (N,) source stamps of a topic."""
    spans = np.diff(np.sort(stamps)).astype(float) * 1e-9
    told: dict[str, Any] = {"count": len(stamps), "rate_hz": None, "gaps": 0, "longest_s": None}
    if len(spans) and spans.sum() > 0:
        told |= {"rate_hz": len(spans) / float(spans.sum()), "longest_s": float(spans.max()),
                 "gaps": int((spans > GAP * np.median(spans)).sum())}
    return told


def _faults(found: Info, metadata: dict[str, Any], read: int) -> list[str]:
    """What keeps a bag of which so many messages could be read from being whole."""
    said = [] if found.closed else ["no summary at the end of a file: its writer did not finish it"]
    if read != found.messages:
        said.append(f"{read} of {found.messages} messages can be read")
    if found.path.is_dir():
        listed, there = metadata.get("relative_file_paths"), [file.name for file in found.files]
        if not metadata:
            said.append("metadata.yaml is missing or makes no sense")
        elif listed != there:
            said.append(f"metadata.yaml: relative_file_paths: {listed}, the folder holds {there}")
        elif metadata.get("message_count") != str(found.messages):
            said.append(f"metadata.yaml: message_count: {metadata.get('message_count')}, the files hold "
                        f"{found.messages}")
    return [*said, "`robot-rl bag recover` mends it"] if said else []
