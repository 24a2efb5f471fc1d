"""A policy without a supervisor, or whose supervisor is gone: what is refused, and how soon it ends."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hardware import messages
from hardware.bus import EVENTS, LATCHED, connect
from hardware.either import BOOL
from hardware.managed import ManagedPolicy, Settings
from hardware.policy_node import PolicyNode
from robot_rl.policy import Policy
from robot_rl.safety import Reason
from robot_rl.spec import POSE, SUPERVISOR_STOPPED, SpecError, Watchdog, load_robot, policy_file
from robot_rl.steplog import STEP_TOPIC, STEP_TYPE, StepRecord
from robot_rl.stop import DEFAULTS, Flag, objections
from tests.hardware.processes import PATIENCE_S, patient, process, ready, until, written

NO_ROS = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None,
                            reason="rclpy is not installed: it comes with a ROS 2 install, not from a package index")
STEPS = 20
(WORDS,) = objections(Flag.WATCHDOG, DEFAULTS)


@pytest.mark.parametrize(("robot", "policy", "supervised", "acknowledged", "refused"), [
    ("so101", "so101-reach", False, False, True), ("so101", "so101-reach", False, True, False),
    ("so101", "so101-reach", True, False, False), ("furuta", "furuta-swingup", False, True, True),
    ("furuta", "furuta-swingup", True, False, False)])
def test_without_a_watchdog_downstream_it_is_refused_as_a_supervisor_refuses_it(
        domain: int, robot: str, policy: str, supervised: bool, acknowledged: bool, refused: bool) -> None:
    alone = msgspec.structs.replace(load_robot(robot), watchdog=Watchdog(), supervised=supervised)
    with connect("dds", "policy", "", domain) as bus:
        made: list[PolicyNode] = []

        def make() -> None:
            made.append(PolicyNode(Policy(policy_file(policy)), alone, bus, acknowledged=acknowledged))
        if not refused:
            make()
            made[0].close()
            return
        with pytest.raises(SpecError, match=f"robot {robot}: watchdog.kind=none, .*: {re.escape(WORDS)}") as error:
            make()
        assert ("--acknowledge-no-watchdog" in str(error.value)) == (alone.command.interface == "position")


def test_a_managed_policy_asks_for_a_watchdog_too(domain: int, tmp_path: Path) -> None:
    file = written(load_robot("so101"), tmp_path, watchdog={"kind": "none"})
    with connect("dds", "policy", "", domain) as bus:
        for settings, refused in ((Settings("so101-reach", str(file)), True),
                                  (Settings("so101-reach", str(file), supervised=True), False),
                                  (Settings("so101-reach", str(file), acknowledge_no_watchdog=True), False)):
            managed = ManagedPolicy(bus, lambda settings=settings: settings)  # type: ignore[misc]
            if refused:
                with pytest.raises(SpecError, match=re.escape(WORDS)):
                    managed.configure()
            else:
                managed.configure()
            managed.cleanup()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An SO-101 whose sensors and whose policy may be late: a busy machine is no fault here."""
    return patient(tmp_path)


@pytest.fixture
def robot(domain: int, file: Path) -> Iterator[subprocess.Popen[str]]:
    """The robot, which has been heard of."""
    with process("sim-robot", file, "--no-cameras", bus="dds") as one:
        ready(one)
        yield one


class Watch:
    """What policy and supervisor tell, from outside."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus
        self._steps = bus.reader(STEP_TOPIC, STEP_TYPE, EVENTS)
        self._words = bus.reader(SUPERVISOR_STOPPED, BOOL, EVENTS)
        self.steps: list[tuple[int, StepRecord]] = []
        self.heard_ns = 0
        """When the supervisor last spoke."""

    def look(self) -> list[tuple[int, StepRecord]]:
        self.steps += [(s.stamp_ns, StepRecord.decode(s.data)) for s in self._steps.take()]
        for sample in self._words.take():
            self.heard_ns = sample.stamp_ns
        return self.steps

    def arm(self) -> None:
        until(lambda: self._bus.call("supervisor/arm", PATIENCE_S)[0])

    def forwarded(self) -> None:
        """Wait until a policy has been in control for a while."""
        until(lambda: len(self.look()) > STEPS)

    def end(self) -> tuple[float, StepRecord]:
        """The step by which a policy ended for want of a supervisor, and how long after that one's last word, s.

        From the beginning of its episode, where the word came before.
        """
        stamp, last = until(lambda: next(
            (s for s in self.look() if int(s[1].faults[0]) & Reason.UNSUPERVISED), None))
        began = min(at for at, record in self.steps if record.episode[0] == last.episode[0])
        return (stamp - max(began, self.heard_ns)) * 1e-9, last


@pytest.mark.parametrize(("kind", "how"), [
    ("dds", signal.SIGSTOP), ("dds", signal.SIGKILL), pytest.param("ros", signal.SIGKILL, marks=NO_ROS)])
def test_a_policy_whose_supervisor_is_gone_stops_within_a_second(
        kind: str, how: signal.Signals, domain: int, file: Path, robot: Any) -> None:
    with connect("dds", "operator", "", domain, "lo") as bus, process("supervisor", file, bus="dds") as supervisor, \
            process("policy", "run", "so101-reach", "--robot", file, "--supervised", bus=kind) as policy:
        ready(supervisor)
        watch, goals = Watch(bus), bus.publisher("goal", POSE, LATCHED)
        goals.publish(messages.encode(messages.pose_stamped(time.time_ns(), "base_link", (0.22, 0, 0.15),
                                                            (0, 0, 0, 1))))
        done, said = bus.call("policy/start", PATIENCE_S)
        assert not done
        assert "pressed on /supervisor/stopped" in said
        watch.arm()
        until(lambda: bus.call("policy/start", PATIENCE_S)[0])
        watch.forwarded()
        supervisor.send_signal(how)
        silent, last = watch.end()
        print(f"{how.name}, policy on {kind}: {silent:.2f} s after the supervisor's last word")
        assert 0.5 < silent < 1.0 + last.lateness[0]
        state = until(lambda: (s := json.loads(bus.call("policy/status", PATIENCE_S)[1]))["state"] == "inactive" and s)
        assert re.match(r"unsupervised, supervisor on /supervisor/stopped \(std_msgs/msg/Bool\) silent for .* s, at "
                        r"most 0.75 s", state["last_error"])
        done, said = bus.call("policy/start", PATIENCE_S)
        assert not done
        assert "/supervisor/" in said
        policy.send_signal(signal.SIGINT)
        assert policy.wait(60) == 0


def test_episodes_begin_when_the_supervisor_is_armed_and_end_when_it_is_gone(domain: int, file: Path, robot: Any
                                                                           ) -> None:
    with connect("dds", "operator", "", domain, "lo") as bus, process("supervisor", file, bus="dds") as supervisor, \
            process("deploy", "so101-reach", "--robot", file, "--supervised", "--episodes", 50, "--no-cameras",
                    "--json", bus="dds") as policy:
        ready(supervisor)
        assert policy.stderr is not None
        line = policy.stderr.readline()
        assert "deploy: waits: stop, pressed on /supervisor/stopped" in line
        watch = Watch(bus)
        watch.arm()
        watch.forwarded()
        supervisor.kill()
        silent, last = watch.end()
        assert 0.5 < silent < 1.0 + last.lateness[0]
        out, said = policy.communicate(timeout=PATIENCE_S)
        assert "deploy: stopped: unsupervised, supervisor on /supervisor/stopped" in said
        assert json.loads(out.splitlines()[-1])["episodes"] < 50
