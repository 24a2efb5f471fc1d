"""The policy as a managed process: what each transition does, and the control loop while it is active."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from hardware.administration import Administration, Answers
from hardware.bus import Bus, chosen
from hardware.deploy import BusOptions
from hardware.diagnostics import Health
from hardware.lifecycle import LifeCycle, Operator, State
from hardware.policy_node import FRESH_TIMEOUT_S, PolicyNode
from robot_rl.policy import Policy
from robot_rl.spec import SpecError, load_robot, policy_file

POLL_S = 0.02
LOOP_END_S = 10.0
SLICE_S = 1.0  # a wait for the robot looks this often whether the process is to end


@dataclass(frozen=True)
class Settings:
    """What a policy process is told: on `ros` these are its parameters."""

    policy_path: str = ""
    robot: str = ""
    fade_s: float = 1.0
    fresh_timeout_s: float = FRESH_TIMEOUT_S
    explore: bool = False
    seed: int = 0
    autostart: bool = False
    supervised: bool = False
    acknowledge_no_watchdog: bool = False


class ManagedPolicy:
    """See Managed. Transitions run in the thread that administers, control in the one that calls `run`."""

    def __init__(self, bus: Bus, settings: Callable[[], Settings]) -> None:
        self.settings = settings
        self.node: PolicyNode | None = None
        self._bus = bus
        self._fade_s = 0.0
        self.fault = ""
        """Why the control loop stopped the robot by itself; the administering thread then sees to the state."""
        self._active, self._idle, self._leaving = threading.Event(), threading.Event(), threading.Event()
        self._idle.set()

    def configure(self) -> None:
        """Load policy and robot, check one against the other, warm up, listen."""
        told = self.settings()
        for key in ("policy_path", "robot"):
            if not getattr(told, key):
                raise SpecError(f"{key} is empty: say which")
        robot, policy = load_robot(told.robot, supervised=told.supervised), Policy(policy_file(told.policy_path))
        self.node = PolicyNode(policy, robot, self._bus, told.seed, told.explore, endless=True,
                               acknowledged=told.acknowledge_no_watchdog)

    def activate(self) -> None:
        """Wait for fresh state of every input, then begin."""
        assert self.node is not None
        told = self.settings()
        self.node.explore, self._fade_s = told.explore, told.fade_s
        self.node.swap()
        end = time.monotonic() + told.fresh_timeout_s
        while True:
            try:
                self.node.ready(max(0.0, min(SLICE_S, end - time.monotonic())))
                break
            except TimeoutError:
                if self._leaving.is_set() or time.monotonic() >= end:
                    raise
        self.fault = ""
        self._idle.clear()
        self._active.set()

    def deactivate(self) -> None:
        """Have the control loop end, by the stop behaviour."""
        self._active.clear()
        if not self._idle.wait(LOOP_END_S):
            raise TimeoutError(f"the control loop has not ended within {LOOP_END_S:g} s")

    def cleanup(self) -> None:
        """Leave the robot's topics and drop the policy."""
        node, self.node = self.node, None
        if node is not None:
            node.close()

    def reload(self) -> str:
        """Read the policy file again, without stopping."""
        if self.node is None:
            raise SpecError("no policy is loaded: configure first")
        return self.node.reload()

    def run(self, stop: Callable[[], bool], failed: Callable[[], None] = lambda: None) -> None:
        """Control whenever active, until `stop`. `failed` is called when there is a `fault`."""
        while not stop():
            if not self._active.wait(POLL_S):
                continue
            node = self.node
            assert node is not None
            try:
                fault = node.run(lambda: self._active.is_set() and not stop(), self._fade_s)
            except Exception as error:  # the robot has been stopped; the process tells, and waits for its operator
                fault = f"{type(error).__name__}: {error}"
            if fault:
                self.fault = fault
                self._active.clear()
                failed()
            self._idle.set()
        self._leaving.set()


class Desk:
    """What both backends put on the bus beside the control loop: services, diagnostics."""

    def __init__(self, bus: Bus, managed: ManagedPolicy, life: LifeCycle, go: Callable[[str], bool]) -> None:
        self._managed, self._life = managed, life
        self._operator, self._health = Operator(life, go), Health(bus)
        self.answers: Answers = {"~/start": self._operator.start, "~/stop": self._operator.stop,
                                 "~/reload": managed.reload, "~/status": self.status}

    def status(self) -> str:
        """State, policy and last error as JSON."""
        node, settings = self._managed.node, self._managed.settings()
        loaded = {} if node is None else {"sha256": node.policy.sha256, "task": node.spec.task,
                                          "rate_hz": node.spec.rate_hz, "ticks": node.ticker.ticks}
        return json.dumps({"state": self._life.state.value, "last_error": self._life.error or "none",
                           "policy": settings.policy_path, "robot": settings.robot} | loaded)

    def autostart(self) -> str:
        """Start, where the settings say so."""
        return self._operator.start() if self._managed.settings().autostart else ""

    def tend(self) -> str:
        """Where the control loop stopped the robot, see to the state; returns the reason, or ''."""
        fault, self._managed.fault = self._managed.fault, ""
        if fault:
            self._operator.fail(fault)
        return fault

    def tell(self) -> None:
        """Publish diagnostics."""
        active = self._life.state is State.ACTIVE
        self._health.tell(self._life.state.value, self._life.error, self._managed.node, active)


def serve(settings: Settings, where: BusOptions, stop: Callable[[], bool]) -> None:
    """Be the policy process until `stop`. With rclpy it is a managed node; see hardware/lifecycle_node.py."""
    if chosen(where.kind) == "ros":
        from hardware.lifecycle_node import serve as serve_ros
        serve_ros(settings, where, stop)
        return
    with replace(where, kind="dds").connect("policy") as bus:
        managed = ManagedPolicy(bus, lambda: settings)
        life = LifeCycle(managed)

        def go(transition: str) -> bool:
            done = life.go(transition)
            _say(life.state.value if done else life.error)
            return done
        desk = Desk(bus, managed, life, go)

        def tend() -> None:
            if fault := desk.tend():
                _say(f"stopped: {fault}")
        with Administration(bus, desk.answers, desk.tell, tend, desk.autostart):
            managed.run(stop)
        life.go("shutdown")


def _say(words: str) -> None:
    print(f"policy: {words}", file=sys.stderr, flush=True)
