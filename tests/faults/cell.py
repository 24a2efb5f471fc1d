"""A whole robot between processes, each as the command line starts it, for faults to be tried on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hardware import diagnostics, messages
from hardware.bus import EVENTS, LATCHED
from hardware.either import BOOL
from robot_rl.spec import JOINT_STATE, POSE, mjcf_file, policy_file, robot_file
from robot_rl.steplog import STEP_TOPIC, STEP_TYPE, StepRecord
from sim.faults import Injector
from tests.hardware.scene import PATIENCE_S, Supervised
from tests.processes import start, wait_for

GOALS = ((0.22, -0.12, 0.12), (0.22, 0.12, 0.2))  # m, turn and turn about, so that the arm always moves
GOAL_S = 0.7
ANSWER_S = 15.0
HEARTBEAT_S = 0.2  # the policy's period is 0.05 s


class Cell(Supervised):
    """The simulated SO-101, its supervisor, a policy in continuous control, and an operator. A context manager."""

    def __init__(self, folder: Path, domain: int, robot: str = "so101", policy: Path | None = None,
                 supervised: bool = True, cameras: bool = False, patience_s: float = 0.0) -> None:
        """With `patience_s` sensors, cameras and the policy may be silent for so long: a busy machine is no fault."""
        super().__init__(domain)
        self._folder, self._supervised, self._cameras = folder, supervised, cameras
        self.model = folder / "policy.onnx"
        shutil.copy(policy or policy_file("so101-reach"), self.model)
        data = yaml.safe_load(robot_file(robot).read_text()) | {
            "supervised": supervised, "mjcf": str(mjcf_file(robot))}
        data["supervisor"]["heartbeat_s"] = patience_s or HEARTBEAT_S
        for one in [*data["sensors"], *data["cameras"]] if patience_s else []:
            one["stale_after_s"] = patience_s
        self.file = folder / "robot.yaml"
        self.file.write_text(yaml.safe_dump(data))
        self._turn_s, self._turn = 0.0, 0
        self._begun: list[subprocess.Popen] = []

    def __enter__(self) -> Cell:
        self.connect()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self.robot = self._begin("sim-robot", self.file, *(() if self._cameras else ("--no-cameras",)))
        self._run_policy()
        if self._supervised:
            self.process = self._begin("supervisor", self.file)
        self._goals = self.bus.publisher("goal", POSE, LATCHED)
        self._stop = self.bus.publisher("safety/protective_stop", BOOL, LATCHED)
        self._steps = self.bus.reader(STEP_TOPIC, STEP_TYPE, EVENTS)
        self._joints = self.bus.reader("joint_states", JOINT_STATE, EVENTS)
        self.steps: list[StepRecord] = []
        self._health = self.bus.reader(diagnostics.TOPIC, diagnostics.TYPE, EVENTS)
        self._injector = Injector(self.bus)
        assert self._until_told("sim-robot", "ready") and (not self._supervised or self.until("inactive"))

    def __exit__(self, *error: object) -> None:
        for process in self._begun:
            process.kill()
            process.wait()
        self.bus.close()

    @property
    def processes(self) -> list[subprocess.Popen]:
        return [self.robot, self.policy, *([self.process] if self._supervised else [])]

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self._folder / f"{name}.log").read_text()

    def look(self) -> None:
        """Take what is told, and move the goal."""
        super().look()
        self.steps += [StepRecord.decode(s.data) for s in self._steps.take()]
        if time.monotonic() - self._turn_s > GOAL_S:
            self._turn_s, self._turn = time.monotonic(), 1 - self._turn
            self.aim(GOALS[self._turn])

    def hold_goal(self, held: bool = True) -> None:
        """Leave the goal alone from now on, or move it again."""
        self._turn_s = float("inf") if held else 0.0

    def policy_again(self) -> None:
        """A new policy process in place of the one that is gone."""
        self.policy.wait(PATIENCE_S)
        self._run_policy()

    def aim(self, goal: Sequence[float]) -> None:
        """Send a goal (3,), m."""
        self._goals.publish(messages.encode(messages.pose_stamped(time.time_ns(), "base_link", goal, (0, 0, 0, 1))))

    def arm(self) -> None:
        """Have the robot steered by the policy, whatever was before; a supervisor may stop it again on the way."""
        end = time.monotonic() + 2 * PATIENCE_S
        while time.monotonic() < end:
            if self._supervised:
                super().arm()
            self.look()
            if self._started():
                return
        raise AssertionError(f"the policy does not start: {self.log('policy')[-500:]}")

    def _started(self) -> bool:
        """Whether the policy is active; one that was killed answers no more, the one in its place does."""
        try:
            return self.status()["state"] == "active" or self.bus.call("policy/start", ANSWER_S)[0]
        except TimeoutError:
            return False

    def moving(self, steps: int = 10) -> None:
        """Have it steered by the policy, and wait for so many of its steps."""
        self.arm()
        self.steps.clear()
        wait_for(lambda: self.look() or len(self.steps) >= steps, PATIENCE_S)

    def inject(self, name: str, fault: str) -> int:
        """Give a sensor or camera a fault; returns since when, ns since the Unix epoch by the robot's process."""
        told = self._injector.inject(name, fault, PATIENCE_S)
        return int(told["faults"][name]["since_ns"]) if fault != "ok" else int(told["told_ns"])

    def status(self) -> dict[str, Any]:
        """State, policy and last error of the policy process."""
        return dict(json.loads(self.bus.call("policy/status", ANSWER_S)[1]))

    def joint_states(self, count: int) -> list[tuple[int, Any]]:
        """So many joint states as they come from now on, each with its source stamp, ns since the Unix epoch."""
        self._joints.take()
        found: list[Any] = []
        wait_for(lambda: self.look() or found.extend(self._joints.take()) or len(found) >= count, PATIENCE_S)
        return [(sample.stamp_ns, messages.decode(sample.data, JOINT_STATE)) for sample in found]

    def diagnosed(self, words: str, seconds: float) -> bool:
        """Whether diagnostics say so within some time, in a message or as `key=value`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            for one in [one for s in self._health.take() for one in messages.decode(s.data, diagnostics.TYPE).status]:
                if words in one.message or words in [f"{pair.key}={pair.value}" for pair in one.values]:
                    return True
            time.sleep(0.02)
        return False

    def press(self, value: bool) -> int:
        """Press the protective stop, or let it go; returns when, ns since the Unix epoch."""
        return self._stop.publish(messages.encode(messages.boolean(value)))

    def _run_policy(self) -> None:
        self.policy = self._begin("policy", "run", self.model, "--robot", self.file)

    def _begin(self, *arguments: object) -> subprocess.Popen:
        with (self._folder / f"{arguments[0]}.log").open("w") as log:
            self._begun.append(start(*arguments, "--bus", "dds", "--domain", self.domain, stdout=log, stderr=log))
        return self._begun[-1]

    def _until_told(self, name: str, word: str) -> bool:
        return bool(wait_for(lambda: word in self.log(name), PATIENCE_S))


def freeze(process: subprocess.Popen) -> int:
    """Stop a process where it is; returns when, ns since the Unix epoch."""
    os.kill(process.pid, signal.SIGSTOP)
    return time.time_ns()


def go_on(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGCONT)
