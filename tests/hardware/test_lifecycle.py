"""The managed policy process on both backends: its life cycle, its refusals, and its graph as seen from outside.

The robot is a simulated one in a process of its own, on `dds`; the policy is on the backend that is tested.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

from hardware import diagnostics, messages
from hardware.bus import EVENTS, LATCHED, SENSOR, Bus, Qos, connect
from hardware.bus.dds import DdsBus
from robot_rl.finetune import bags_in
from robot_rl.safety import Reason
from robot_rl.spec import POSE, load_robot, mjcf_file
from robot_rl.steplog import read_episode
from tests.hardware.graph import HASHES, endpoints
from tests.processes import wait_for

NO_ROS = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None,
                            reason="rclpy is not installed: it comes with a ROS 2 install, not from a package index")
COMMANDS, NUMBERS = "forward_position_controller/commands", "std_msgs/msg/Float64MultiArray"
BOOL, STOP, FADE_S = "std_msgs/msg/Bool", "safety/protective_stop", 2.0
RATE, STEP = 20.0, 0.12  # Hz and rad: of the policy so101-reach
NAMESPACE = "arm"


class Process:
    """The policy process and an operator beside it."""

    def __init__(self, kind: str, folder: Path, domain: int, policy: str, robot: str) -> None:
        self.kind, self.folder = kind, folder
        self.log = (folder / f"{policy}-{Path(robot).stem}.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "robot_rl.cli", "policy", "run", policy, f"--robot={robot}", f"--fade={FADE_S}",
             f"--bus={kind}", f"--domain={domain}", f"--namespace={NAMESPACE}", "--fresh-timeout=4"],
            stdout=self.log, stderr=self.log, env=os.environ | {"ROBOT_RL_INTERFACE": "lo"})

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


class Operator:
    """What a person does about a robot, on the bus."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.goals = bus.publisher("goal", POSE, LATCHED)
        self.stops = bus.publisher(STOP, BOOL, LATCHED)
        self.diagnostics = bus.reader(diagnostics.TOPIC, diagnostics.TYPE, SENSOR)

    def ask(self, what: str) -> tuple[bool, str]:
        return self.bus.call(f"policy/{what}", 90.0)

    def status(self) -> dict[str, Any]:
        done, said = self.ask("status")
        assert done
        return json.loads(said)

    def aim(self, x: float, y: float, z: float, frame: str = "base_link") -> None:
        self.goals.publish(messages.encode(messages.pose_stamped(time.time_ns(), frame, (x, y, z), (0, 0, 0, 1))))

    def press(self, value: bool) -> None:
        self.stops.publish(messages.encode(messages.boolean(value)))

    def health(self) -> Any:
        """The policy's newest diagnostics."""
        told = [messages.decode(s.data, diagnostics.TYPE).status[0] for s in [self.diagnostics.newest()] if s]
        return told[0] if told else None


@pytest.fixture(scope="module", params=["dds", pytest.param("ros", marks=NO_ROS)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def domain() -> int:
    return 20 + os.getpid() % 80


@pytest.fixture(scope="module")
def robot(domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-m", "robot_rl.cli", "sim-robot", "so101", "--bus", "dds", "--domain",
                                str(domain), "--namespace", NAMESPACE, "--no-cameras"],
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    yield process
    process.send_signal(signal.SIGCONT)
    process.terminate()
    assert process.wait(30) == 0


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The robot's file with sensors that may be late: a busy machine is no fault here."""
    body, folder = msgspec.to_builtins(load_robot("so101")), tmp_path_factory.mktemp("robot")
    for sensor in body["sensors"]:
        sensor["stale_after_s"] = 3.0
    (folder / "so101.xml").write_bytes(mjcf_file("so101").read_bytes())
    (folder / "robot.yaml").write_text(yaml.safe_dump(body))
    return folder / "robot.yaml"


@pytest.fixture(scope="module")
def process(kind: str, domain: int, robot: Any, patient: Path,
            tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    one = Process(kind, tmp_path_factory.mktemp("policy"), domain, "so101-reach", str(patient))
    yield one
    assert one.end() == 0


@pytest.fixture(scope="module")
def operator(domain: int, process: Process) -> Iterator[Operator]:
    with connect("dds", "operator", NAMESPACE, domain, "lo") as bus:
        yield Operator(bus)


@pytest.fixture
def active(operator: Operator, robot: Any) -> Operator:
    """Control that was started just now, with a goal."""
    operator.aim(0.22, 0.0, 0.15)
    operator.press(False)
    assert operator.ask("stop")[0]
    wait_for(lambda: operator.ask("start")[0])
    return operator


def numbers(samples: list[Any]) -> np.ndarray:
    return np.array([messages.decode(s.data, NUMBERS).data for s in samples])


def test_nothing_starts_without_a_goal_or_with_one_that_the_policy_does_not_know(operator: Operator) -> None:
    assert operator.status()["state"] == "unconfigured"
    done, said = operator.ask("start")
    assert not done and "no goal heard on /arm/goal (geometry_msgs/msg/PoseStamped)" in said
    assert operator.status()["state"] == "inactive"
    for place, frame, words in (((0.9, 0.0, 0.1), "base_link", "goal at (0.9, 0, 0.1)"),
                                ((0.2, 0.0, 0.1), "map", "goal in frame 'map', the policy's are in 'base_link'")):
        operator.aim(*place, frame)
        wait_for(lambda wanted=words: wanted in operator.ask("start")[1])  # type: ignore[misc]
    assert operator.status()["state"] == "inactive"


def test_it_begins_at_the_measured_pose_fades_in_and_ends_silent(operator: Operator, robot: Any) -> None:
    states = operator.bus.reader("joint_states", "sensor_msgs/msg/JointState", SENSOR)
    commands = operator.bus.reader(COMMANDS, NUMBERS, EVENTS)
    operator.aim(0.22, 0.1, 0.15)
    measured = messages.decode(wait_for(states.newest).data, "sensor_msgs/msg/JointState").position
    wait_for(lambda: commands.matched() == 1)
    wait_for(lambda: operator.ask("start")[0])
    sent: list[Any] = []
    wait_for(lambda: sent.extend(commands.take()) or len(sent) > 1.5 * FADE_S * RATE)
    path = numbers(sent)
    np.testing.assert_allclose(path[0], measured, atol=0.02)
    moved = np.abs(np.diff(path[:, :5], axis=0)).max(1)
    faded = np.minimum(1.0, np.arange(1, len(path)) / (FADE_S * RATE))
    assert np.all(moved <= STEP * faded + 1e-9), "no step is larger than the policy's share of it"
    assert moved.max() > 0.003, "and the arm is moved"

    assert operator.ask("stop") == (True, "inactive")
    sent += commands.take()
    time.sleep(0.3)  # what was on its way
    sent += commands.take()
    held = numbers(sent)[-3:]
    assert np.ptp(held, axis=0).max() < 1e-9, "the stop behaviour is to hold one pose"
    time.sleep(1.0)
    assert commands.take() == []
    for end in (states, commands):
        end.close()


def test_a_silent_sensor_stops_it_and_is_named(active: Operator, robot: Any) -> None:
    robot.send_signal(signal.SIGSTOP)
    try:
        found = wait_for(lambda: (s := active.status())["state"] == "inactive" and s["last_error"] != "none" and s)
        first = r"(joints on /arm/joint_states|tip on /arm/tip_pose)"  # whichever was late when both stopped
        assert re.search(rf"stale, {first} silent for [3-9].* s, at most 3 s", found["last_error"])
        health = wait_for(lambda: (h := active.health()) and h.level == diagnostics.ERROR and h)
        assert (health.name, health.hardware_id) == ("arm/policy: control", "so101")
        assert health.message == found["last_error"]
        done, said = active.ask("start")
        assert not done and "joints on /arm/joint_states (sensor_msgs/msg/JointState)" in said
    finally:
        robot.send_signal(signal.SIGCONT)
    wait_for(lambda: active.ask("start")[0])
    assert active.status()["last_error"] == "none"


def test_the_protective_stop_stops_it_and_holds_it(active: Operator) -> None:
    active.press(True)
    found = wait_for(lambda: (s := active.status())["state"] == "inactive" and s["last_error"] != "none" and s)
    assert found["last_error"] == "stop, pressed on /arm/safety/protective_stop"
    done, said = active.ask("start")
    assert not done and "the protective stop is pressed on /arm/safety/protective_stop" in said
    active.press(False)
    wait_for(lambda: active.ask("start")[0])


def test_diagnostics_of_a_running_policy(active: Operator) -> None:
    def running() -> Any:
        health = active.health()
        values = {pair.key: pair.value for pair in health.values} if health else {}
        return values if values.get("state") == "active" and float(values["rate_hz"]) > 0 else None
    values = wait_for(running)
    assert {"policy_sha256", "jitter_ms_p50", "jitter_ms_p99", "jitter_ms_max", "latency_ms_p99", "missed_deadlines",
            "late_plans", "age_s joints", "age_s tip", "clamps rate", "clamps position", "clamps effort",
            "last_error"} <= set(values)
    assert values["policy_sha256"] == active.status()["sha256"]
    assert float(values["rate_wanted_hz"]) == RATE
    assert float(values["age_s joints"]) < 3.0


def test_what_it_did_is_read_back_with_goals_that_moved(active: Operator, process: Process, domain: int,
                                                        tmp_path: Path) -> None:
    assert active.ask("stop")[0]
    command = [sys.executable, "-m", "hardware.recorder", "--robot", "so101", "--out", str(tmp_path), "--bus", "dds",
               "--domain", str(domain), "--namespace", NAMESPACE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as recorder:
        assert recorder.stdout is not None
        assert "ready" in recorder.stdout.readline()
        wait_for(lambda: active.ask("start")[0])
        time.sleep(1.0)
        active.aim(0.2, 0.12, 0.2)
        time.sleep(1.0)
        assert active.ask("stop")[0]
        time.sleep(0.5)
        recorder.terminate()
    log = read_episode(bags_in(tmp_path)[0])
    assert log.start["continuous"] and log.end["faults"] == "stop"
    assert [list(goal) for goal in log.goals.values()] == [[0.2, 0.12, 0.2]]
    pairs = list(zip(log.replayed(), log.records, strict=True))
    assert len(pairs) > 20
    for (outcome, action), record in pairs[:-1]:
        np.testing.assert_array_equal(outcome.observation, record.observation.astype(np.float32))
        np.testing.assert_array_equal(action, record.action)
    assert int(pairs[3][1].reasons[0]) & Reason.FADE
    assert active.status()["last_error"] == "none", "that it was stopped by its operator is no error"


GOLDEN = {
    "writer rt/arm/forward_position_controller/commands std_msgs/msg/Float64MultiArray reliable volatile",
    "writer rt/arm/policy/episode std_msgs/msg/String reliable volatile",
    "writer rt/arm/policy/policy_info std_msgs/msg/String reliable latched",
    "writer rt/arm/policy/step std_msgs/msg/Float64MultiArray reliable volatile",
    "writer rt/diagnostics diagnostic_msgs/msg/DiagnosticArray reliable volatile",
    "reader rt/arm/goal geometry_msgs/msg/PoseStamped best-effort volatile",
    "reader rt/arm/goal geometry_msgs/msg/PoseStamped reliable latched",
    "reader rt/arm/joint_states sensor_msgs/msg/JointState best-effort volatile",
    "reader rt/arm/safety/protective_stop std_msgs/msg/Bool best-effort volatile",
    "reader rt/arm/safety/protective_stop std_msgs/msg/Bool reliable latched",
    "reader rt/arm/tip_pose geometry_msgs/msg/PoseStamped best-effort volatile",
} | {f"{end} {prefix}/arm/policy/{name}{side} std_srvs/srv/Trigger_{kind} reliable volatile"
     for name in ("start", "stop", "reload", "status")
     for end, prefix, side, kind in (("reader", "rq", "Request", "Request"), ("writer", "rr", "Reply", "Response"))}
"""What /arm/policy has on the wire, on either backend."""
ROS_ONLY = re.compile(r"(rt/rosout|rt/parameter_events|rt/arm/policy/transition_event|rt/clock|r[qr]/arm/policy/("
                      r"\w*parameter\w*|get_state|change_state|get_available_\w+|get_transition_graph|"
                      r"get_type_description)(Request|Reply)) ")


def test_the_graph_from_outside_is_the_golden_one(active: Operator, kind: str, domain: int) -> None:
    with connect("dds", "outside", "", domain, "lo") as bus:
        assert isinstance(bus, DdsBus)
        found = wait_for(lambda: (seen := endpoints(bus, "/arm", "policy")) and set(seen) >= GOLDEN and seen)
        assert endpoints(bus, "/arm", "robot"), "the robot's node is named too"
    others = {row for row in found if not ROS_ONLY.search(row)} - GOLDEN
    assert not others
    assert any(ROS_ONLY.search(row) for row in found) == (kind == "ros")
    for row, stated in found.items():
        if (type := row.split()[2]) in HASHES:
            assert stated == HASHES[type], row


def test_a_policy_of_another_robot_is_refused_with_both_names(kind: str, domain: int, tmp_path: Path) -> None:
    other = Process(kind, tmp_path, domain + 1, "so101-reach", "furuta")
    with connect("dds", "operator", NAMESPACE, domain + 1, "lo") as bus:
        done, said = Operator(bus).ask("start")
        assert not done
        assert "was made for robot 'so101' and does not fit 'furuta'" in said and "joint 'shoulder_pan'" in said
        assert Operator(bus).status()["state"] == "unconfigured"
        assert bus.reader("forward_effort_controller/commands", NUMBERS, Qos()).matched() == 0
    assert other.end() == 0
