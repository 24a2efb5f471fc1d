"""The recorder as a process of its own: real messages over the bus, real files, real kills."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from hardware import diagnostics, messages
from hardware.bag_thread import OVERHEAD, BagThread
from hardware.bus import COMMAND, EVENTS, LATCHED, SENSOR, Bus, connect
from hardware.episode_recorder import bag_name
from hardware.recorder import main
from robot_rl import bag
from tests.processes import wait_for

STATE, TEXT, STEP = "sensor_msgs/msg/JointState", "std_msgs/msg/String", "std_msgs/msg/Float64MultiArray"
IMAGE = "sensor_msgs/msg/Image"
TOPICS = [["joint_states", STATE, "sensor"], ["policy/policy_info", TEXT, "latched"], ["policy/step", STEP, "events"]]
ROOT = Path(__file__).parents[2]
FLUSH_S = 0.5
ARM = f"arm_{os.getpid()}"  # a namespace of its own: another run of these tests may use the same domain
LIMITED = """
import resource, sys
from hardware.recorder import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""
_DOMAINS = itertools.count(os.getpid() % 80 + 20)


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """A bus in a domain of its own, which the recorder inherits."""
    monkeypatch.setenv("ROS_DOMAIN_ID", str(20 + next(_DOMAINS) % 80))
    with connect("dds", "test", ARM) as bus:
        yield bus


class Robot:
    """Publishes joint states at 200 Hz in a thread and remembers the stamps, as a robot process would."""

    def __init__(self, bus: Bus, joints: int = 2) -> None:
        self.states = bus.publisher("joint_states", STATE, SENSOR)
        self.events = bus.publisher("policy/episode", TEXT, EVENTS)
        self.steps = bus.publisher("policy/step", STEP, EVENTS)
        self.info = bus.publisher("policy/policy_info", TEXT, LATCHED)
        self.told = bus.reader("recorder/bag", TEXT, EVENTS)
        self.stamps: list[int] = []
        self._data = messages.encode(messages.joint_state(1, [f"joint_{n}" for n in range(joints)], [0.1] * joints))
        self.silent = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Robot:
        self.info.publish(text({"policy": "p"}))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.silent.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.silent.wait(0.005):
            self.stamps.append(self.states.publish(self._data))

    def start(self, number: int, **fields: Any) -> int:
        """Begin an episode; returns the stamp."""
        wait_for(lambda: self.told.matched() and self.events.matched())  # else one of the two would go unheard
        return self.events.publish(text({"event": "start", "episode": number, **fields}))

    def episode(self, number: int, steps: int = 20, **fields: Any) -> tuple[int, int]:
        """Run an episode with a step every 10 ms; returns the stamps of its two events."""
        start = self.start(number, **fields)
        for step in range(steps):
            self.steps.publish(messages.encode(messages.float64s([number, step], [("episode", 1), ("step", 1)])))
            time.sleep(0.01)
        return start, self.events.publish(text({"event": "end", "episode": number, "success": number % 2 == 0}))

    def wait_told(self, count: int, timeout_s: float = 8.0) -> list[dict[str, Any]]:
        """What `recorder/bag` says, `count` times."""
        told: list[dict[str, Any]] = []
        end = time.monotonic() + timeout_s
        while len(told) < count:
            assert time.monotonic() < end, f"{len(told)} of {count} bags after {timeout_s} s"
            told += [json.loads(messages.decode(sample.data, TEXT).data) for sample in self.told.take()]
            time.sleep(0.01)
        return told


class Process:
    """A recorder process that is ready."""

    def __init__(self, out: Path, *options: str, limit: int = 0, topics: list[list[str]] = TOPICS) -> None:
        program = ["-c", LIMITED, str(limit)] if limit else ["-m", "hardware.recorder"]
        self.popen = subprocess.Popen(
            [sys.executable, *program, "--bus", "dds", "--namespace", ARM, "--out", str(out), *options], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.popen.stdin
        assert self.popen.stdout
        self.popen.stdin.write(json.dumps(topics))
        self.popen.stdin.close()
        self.popen.stdin = None
        self.said = [self.popen.stdout.readline()]

    def __enter__(self) -> Process:
        assert self.said[0].startswith("recorder: ready"), self.end()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
        """Signal it and return what it said on stdout and stderr."""
        self.popen.send_signal(how)
        out, err = self.popen.communicate(timeout=10)
        return "".join(self.said) + out, err


def text(value: object) -> bytes:
    """A std_msgs/String with JSON."""
    return messages.encode(messages.string(json.dumps(value)))


def published(path: Path, topic: str) -> list[int]:
    """Source stamps of a topic's messages in a bag."""
    return [message.publish_ns for message in bag.read(path, topics={topic})]


def test_one_bag_an_episode_with_preroll(bus: Bus, tmp_path: Path) -> None:
    with Robot(bus) as robot, Process(tmp_path) as process:
        time.sleep(0.7)
        times, told = [], []
        for number in (3, 4):
            times.append(robot.episode(number, bag=f"episode_{number:04d}", goal=[0.1, 0.2]))
            told += robot.wait_told(1)
        said, errors = process.end()
    assert process.popen.returncode == 0
    assert errors == ""
    assert "recorder: ready" in said
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["episode_0003", "episode_0004"]
    for number, (start, end), report in zip((3, 4), times, told, strict=True):
        folder = tmp_path / f"episode_{number:04d}"
        found = bag.info(folder)
        assert report == {"bag": str(folder), "episode": number, "messages": found.messages, "dropped": 0}
        assert found.closed
        assert found.custom == {
            "episode": str(number), "goal": "[0.1, 0.2]", "success": "true" if number == 4 else "false",
            "recorder_end": "episode end", "recorder_dropped": "0"}
        events = [json.loads(messages.decode(m.data, TEXT).data) for m in bag.read(folder, {f"/{ARM}/policy/episode"})]
        assert [(event["event"], event["episode"]) for event in events] == [("start", number), ("end", number)]
        steps = [messages.decode(m.data, STEP).data.tolist() for m in bag.read(folder, {f"/{ARM}/policy/step"})]
        assert steps == [[number, step] for step in range(20)]
        assert found.topics[f"/{ARM}/policy/policy_info"].count == 1
        got = published(folder, f"/{ARM}/joint_states")
        assert [stamp for stamp in robot.stamps if got[0] <= stamp <= got[-1]] == got, "no gap"
        assert 0.4e9 < start - got[0] < 0.9e9, "half a second from before the start"
        assert 0.05e9 < got[-1] - end < 0.5e9, "and a little from after the end"
        first = {message.topic: message.log_ns for message in reversed(list(bag.read(folder)))}
        age = first[f"/{ARM}/policy/episode"] - first[f"/{ARM}/policy/policy_info"]
        assert age <= 0.5e9, "a message of long ago does not stretch the bag beyond the pre-roll"
        with AnyReader([folder]) as reader:
            assert reader.message_count == found.messages


@pytest.mark.parametrize("moments", [
    (0.61, 0.83, 1.27), pytest.param(tuple(np.random.default_rng(0).uniform(0.55, 2.0, 50)), id="50 at random",
                                     marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_killed_at_any_moment(bus: Bus, tmp_path: Path, moments: tuple[float, ...]) -> None:
    with Robot(bus) as robot:
        for attempt, after_s in enumerate(moments):
            compression = ("none", "zstd", "lz4")[attempt % 3]
            with Process(tmp_path, "--flush", str(FLUSH_S), "--compression", compression) as process:
                robot.start(attempt, bag=f"bag_{attempt}")
                time.sleep(after_s)
                process.end(signal.SIGKILL)
                killed = time.time_ns()
            folder = tmp_path / f"bag_{attempt}"
            assert not bag.info(folder).closed
            assert bag.info(folder).custom["episode"] == str(attempt)
            got = published(folder, f"/{ARM}/joint_states")
            due = [stamp for stamp in robot.stamps if got[0] <= stamp < killed - FLUSH_S * 1e9]
            assert due
            assert set(due) <= set(got), "everything older than the flush interval"
            assert bag.recover(folder).closed
            assert published(folder, f"/{ARM}/joint_states") == got


def test_full_disk_is_told_once_and_does_not_stop_the_recorder(bus: Bus, tmp_path: Path) -> None:
    heard = bus.reader(diagnostics.TOPIC, diagnostics.TYPE, COMMAND)
    with Robot(bus, joints=40) as robot, Process(tmp_path, "--flush", "0.1", limit=120_000) as process:
        for number in range(2):
            robot.episode(number, steps=60, bag=f"long_{number}")
            (report,) = robot.wait_told(1)
            assert "File too large" in report["error"]
            told = [messages.decode(sample.data, diagnostics.TYPE).status[0] for sample in heard.take()]
            assert any(one.level == diagnostics.ERROR and "File too large" in one.message for one in told)
            assert report["dropped"] > 0
            found = bag.info(report["bag"])
            assert found.messages == report["messages"] > 0
            assert found.dropped == 0
        robot.silent.set()
        time.sleep(0.6)  # nothing left to pre-roll
        robot.episode(2, steps=2, bag="short")
        (report,) = robot.wait_told(1)
        assert "error" not in report
        assert bag.info(report["bag"]).closed
        said, errors = process.end()
    assert errors.count("cannot write") == 1
    assert said.count("complete") == 3


def test_stop_closes_the_bag_and_names_never_clash(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "episode_0000").mkdir()
    with Robot(bus) as robot, Process(tmp_path) as process:
        robot.events.publish(messages.encode(messages.string("no JSON")))
        robot.events.publish(text(["no event"]))
        robot.episode(0, steps=5, bag="../../outside")
        robot.start(0, bag="episode_0000")
        time.sleep(0.3)
        said, errors = process.end(signal.SIGINT)
    assert {folder.name for folder in tmp_path.iterdir()} == {"episode_0000", "episode_0000-2", "episode_0000-3"}
    assert "exists already, writing" in said
    assert errors.count("not an episode event") == 2
    last = bag.info(tmp_path / "episode_0000-3")
    assert last.closed
    assert last.custom["recorder_end"] == "recorder stopped"
    assert last.messages > 10


def test_policy_process_gone_ends_the_bag(bus: Bus, tmp_path: Path) -> None:
    with Robot(bus) as robot, Process(tmp_path):
        robot.start(1, bag="broken")
        time.sleep(1.3)
        robot.events.close()
        (report,) = robot.wait_told(1)
    assert bag.info(report["bag"]).custom["recorder_end"] == "policy process gone"


def test_episodes_that_follow_at_once_are_kept_apart(bus: Bus, tmp_path: Path) -> None:
    with Robot(bus) as robot, Process(tmp_path):
        for number in range(6):
            robot.episode(number, steps=2)
        reports = robot.wait_told(5)
    for number, report in enumerate(reports):
        assert report["episode"] == number
        assert report["bag"] == str(tmp_path / f"episode_{number:04d}")
        steps = [messages.decode(m.data, STEP).data.tolist() for m in bag.read(report["bag"], {f"/{ARM}/policy/step"})]
        assert steps == [[number, 0], [number, 1]]


def test_continuous_recording_is_split(bus: Bus, tmp_path: Path) -> None:
    camera = bus.publisher("image_raw", IMAGE, SENSOR)
    picture = messages.encode(messages.image(1, "camera", np.zeros((480, 640, 3), np.uint8)))
    topics = [*TOPICS, ["image_raw", IMAGE, "sensor"]]
    options = ("--continuous", "run", "--split", "2", "--flush", "0.1")
    with Robot(bus) as robot, Process(tmp_path, *options, topics=topics) as process:
        wait_for(camera.matched)
        for _ in range(10):
            camera.publish(picture)
            time.sleep(0.08)
        robot.episode(1)
        time.sleep(0.1)
        process.end()
    found = bag.info(tmp_path / "run")
    assert found.closed
    assert 3 <= len(found.files) <= 6
    assert found.size > 9e6
    assert found.topics[f"/{ARM}/image_raw"].count == 10
    assert found.topics[f"/{ARM}/policy/episode"].count == 2
    assert all(message.data == picture for message in bag.read(tmp_path / "run", {f"/{ARM}/image_raw"}))
    with AnyReader([tmp_path / "run"]) as reader:
        assert reader.message_count == found.messages


def test_other_topics_beside_a_robots_own(bus: Bus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = "geometry_msgs/msg/Twist"
    asked = bus.publisher("cmd_vel", kind, SENSOR)
    telling = ("--robot", "quadruped", "--continuous", "run", "--wait", "0.5", "--also", f"cmd_vel={kind}")
    with Process(tmp_path, *telling) as process:
        wait_for(asked.matched)
        asked.publish(messages.encode(messages.twist((0.5, 0.0, 0.1))))
        time.sleep(0.2)
        process.end()
    assert bag.info(tmp_path / "run").topics[f"/{ARM}/cmd_vel"].count == 1
    policy = ("--robot", "so101", "--policy", "so101-reach", "--continuous", "reach", "--wait", "0.1")
    with Process(tmp_path, *policy) as process:
        assert f"/{ARM}/goal" in process.said[0]  # among what nobody publishes
    for wrong, said in (("cmd_vel", "say TOPIC=TYPE"), ("cmd_vel=geometry_msgs/msg/Twits", "Twits")):
        assert main(["--robot", "quadruped", "--out", str(tmp_path), "--also", wrong]) == 2
        assert said in capsys.readouterr().err


def test_a_slow_disk_costs_messages_not_memory(tmp_path: Path) -> None:
    thread = BagThread(tmp_path, queue_bytes=100 * (1000 + OVERHEAD))
    thread.open("slow", [("/x", TEXT, SENSOR)], {})
    for number in range(250):  # nobody writes yet: the disk could not be slower
        thread.put("/x", bytes(1000), number + 1, number + 1)
    assert thread.queued <= 100 * (1000 + OVERHEAD)
    assert thread.dropped == 150
    thread.close({})
    thread.start()
    thread.stop()
    (report,) = thread.reports()
    assert (report.messages, report.dropped, report.error) == (100, 150, "")
    assert bag.info(tmp_path / "slow").custom["recorder_dropped"] == "150"


@pytest.mark.parametrize(("asked", "episode", "name"), [
    ("episode_0001", 1, "episode_0001"), (None, 7, "episode_0007"), ("", None, "episode"), (".", 2, "episode_0002"),
    ("..", 2, "episode_0002"), (".hidden", 2, "episode_0002"), ("a/b", 2, "a_b"), ("a\x00b", 2, "episode_0002"),
    ("x" * 300, 2, "episode_0002"), (5, 2, "episode_0002")])
def test_bag_names_stay_in_their_folder(asked: object, episode: int | None, name: str) -> None:
    assert bag_name(asked, episode) == name
