"""The recorder: a process that writes what is on the bus into bags, one for each episode, and never holds anybody up.

    python -m hardware.recorder --out runs/x --topics topics.json

`topics.json` is a list of [topic, type, kind], kind one of sensor, command, latched, events. A bag starts with the
`policy/episode` event {"event": "start", "episode": 3, "bag": "episode_0003", ...} and ends shortly after
{"event": "end", ...}; the other fields of both go into its custom data. The messages of the last moments before the
start are in it too, so that the inputs of the first step are, and so is the last message of every topic. When it is
complete, `recorder/bag` says so: {"bag": path, "episode": 3, "messages": n, "dropped": d} and "error" if there was one.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hardware import messages
from hardware.bag_thread import BagThread, say
from hardware.bus import COMMAND, EVENTS, LATCHED, SENSOR, chosen, connect, own_arguments, resolve
from hardware.episode_recorder import Recorder, Source, bag_name
from robot_rl.mcap_writer import COMPRESSIONS
from robot_rl.spec import PolicySpec, load_robot, policy_file
from robot_rl.steplog import INFO_TOPIC, TEXT_TYPE, asked_topics, recorded_topics

KINDS = {"sensor": SENSOR, "command": COMMAND, "latched": LATCHED, "events": EVENTS}


def sources(rows: Sequence[Sequence[str]], namespace: str) -> list[Source]:
    """Make sources of [topic, type, kind]. ValueError naming what is wrong."""
    found = []
    for row in rows:
        topic, type, kind = row
        if kind not in KINDS:
            raise ValueError(f"topic {topic}: kind {kind!r} is none of {', '.join(KINDS)}")
        try:
            messages.definition(type)
        except KeyError as error:
            raise ValueError(f"topic {topic}: {error.args[0]}") from None
        found.append(Source("/" + resolve(topic, namespace), type, KINDS[kind]))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Record until SIGTERM or SIGINT; returns the exit status."""
    args = _parser().parse_args(own_arguments() if argv is None else argv)
    try:
        rows = _wanted(args)
        sources(rows, "")
        chosen(args.bus)
    except (OSError, ValueError) as error:
        print(f"recorder: {error}", file=sys.stderr)
        return 2
    stopping: list[int] = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: stopping.append(number))
    disk = BagThread(Path(args.out), queue_bytes=args.max_queue << 20, flush_s=args.flush, split_bytes=args.split << 20,
                     compression="" if args.compression == "none" else args.compression)
    with connect(args.bus, "recorder", args.namespace, args.domain) as bus:
        wanted = sources([(bus.resolve(topic), type, kind) for topic, type, kind in rows], "")
        recorder = Recorder(bus, wanted, disk, episodes=args.continuous is None, preroll_s=args.preroll,
                            tail_s=args.tail)
        disk.start()
        if args.continuous is not None:
            recorder.open(bag_name(args.continuous, None), {})
        try:
            _run(recorder, args, stopping)
        finally:
            recorder.stop()
        time.sleep(0.05)  # the last word on recorder/bag is on its way
    return 0


def _wanted(args: argparse.Namespace) -> Sequence[Sequence[str]]:
    if args.robot:
        robot = load_robot(args.robot, supervised=args.supervised == "true")
        asked = asked_topics(_contract(args.policy)) if args.policy else []
        return [*recorded_topics(robot, not args.no_cameras), (INFO_TOPIC, TEXT_TYPE, "latched"), *asked,
                *map(_also, args.also.split())]
    text = sys.stdin.read() if args.topics == "-" else Path(args.topics).read_text()
    try:
        return msgspec.json.decode(text, type=list[tuple[str, str, str]])
    except msgspec.DecodeError as error:
        raise ValueError(f"--topics {args.topics}: no JSON list of [topic, type, kind]: {error}") from None


def _contract(policy: str) -> PolicySpec:
    from robot_rl.policy import Policy  # a recorder beside `deploy` is told its topics and needs no onnxruntime
    return Policy(policy_file(policy)).spec


def _also(text: str) -> tuple[str, str, str]:
    topic, _, type = text.partition("=")
    if not topic or not type:
        raise ValueError(f"--also {text}: say TOPIC=TYPE, such as cmd_vel=geometry_msgs/msg/Twist")
    return topic, type, "sensor"


def _run(recorder: Recorder, args: argparse.Namespace, stopping: Sequence[int]) -> None:
    parent, begun, ready, watched = os.getppid(), time.monotonic(), False, 0.0
    while not stopping:
        recorder.poll()
        now = time.monotonic()
        if not ready:
            silent = [topic for topic in recorder.unmatched() if "/policy/" not in topic]
            if not silent or now - begun >= args.wait:
                ready = True
                say("recorder: ready" + (f" (nobody publishes {', '.join(silent)})" if silent else ""))
        if now - watched >= 1.0:
            watched = now
            recorder.watch()
            if args.with_parent and os.getppid() != parent:
                say("recorder: the process that started it is gone", sys.stderr)
                return
        time.sleep(args.poll)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("recorder", description="Record what is on the bus, one rosbag2 bag an episode.")
    add = parser.add_argument
    add("--bus", choices=("auto", "dds", "ros"), default="auto", help="backend; auto is ros where rclpy is installed")
    add("--domain", type=int, help="DDS domain (ROS_DOMAIN_ID, else 0)")
    add("--namespace", default="", help="namespace of the robot's topics")
    add("--out", required=True, help="folder for the bags")
    add("--robot", help="record the topics of this robot, instead of --topics: a name or the path of a robot.yaml")
    add("--topics", default="-", help="file with a JSON list of [topic, type, kind]; - reads stdin (default)")
    add("--no-cameras", action="store_true", help="with --robot: not its cameras")
    add("--policy", help="with --robot: what this policy is asked by too, such as cmd_vel: a file or a name")
    add("--also", default="", metavar="TOPIC=TYPE",
        help="with --robot: other topics, with spaces between them, such as cmd_vel=geometry_msgs/msg/Twist")
    add("--supervised", choices=("true", "false"), default="false",
        help="with --robot: what its supervisor tells too, as `supervised: true` in its file says")
    add("--preroll", type=float, default=0.5, metavar="S", help="what a bag holds from before its episode, s (0.5)")
    add("--tail", type=float, default=0.1, metavar="S", help="what a bag holds from after its episode, s (0.1)")
    add("--flush", type=float, default=0.5, metavar="S", help="what is older than this survives a kill, s (0.5)")
    add("--poll", type=float, default=0.004, metavar="S", help="pause between two looks at the bus, s (0.004)")
    add("--max-queue", type=int, default=256, metavar="MIB", help="messages that may wait for the disk, MiB (256)")
    add("--wait", type=float, default=2.0, metavar="S", help="say ready without the topics still missing after, s (2)")
    add("--continuous", metavar="NAME", help="one bag of this name from start to stop, whatever the episodes")
    add("--split", type=int, default=0, metavar="MIB", help="go on in a new file of the bag at this size, MiB (never)")
    add("--compression", choices=("none", *COMPRESSIONS), default="none", help="of the chunks, done by the recorder")
    add("--with-parent", action="store_true", help="stop when the process that started this one ends")
    return parser


if __name__ == "__main__":
    sys.exit(main())
