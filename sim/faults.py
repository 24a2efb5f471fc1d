"""Faults of sensors and cameras, injected into a simulated robot while it runs, as `robot-rl fault` asks for them.

An order is a std_msgs/String on `robot/fault` with JSON, {"name": "joints", "fault": "silent"}; what is wrong since
when, and why the newest order was refused, is told on `robot/faults` (latched). No driver of a real robot listens.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from hardware import messages
from hardware.bus import EVENTS, LATCHED, Bus, Publisher, Qos
from hardware.robot_io import encode, heard_on
from robot_rl.observe import Values
from robot_rl.spec import JOINT_STATE, Camera, RobotSpec, Sensor, SpecError
from robot_rl.steplog import TEXT_TYPE, read_info

ORDERS, TOLD = "robot/fault", "robot/faults"
OK = "ok"
FAULTS = {
    "silent": "says nothing, as one that is unplugged",
    "frozen": "tells what it last saw, with new stamps",
    "jumping": "every other message is 1 rad (m) off; of a camera it is noise",
    "nonfinite": "its first number is NaN",
    "reordered": "lists its joints in reverse",
    "missing": "lacks its first joint",
    "clock": "stamps are 10 s ahead",
    "delayed": "each message comes 0.1 s late",
    "duplicated": "each message comes twice",
    "lossy": "30% of its messages are lost",
    "mistyped": "a std_msgs/String is on its topic instead",
}
JOINTS_ONLY, NUMBERS_ONLY = ("reordered", "missing"), ("nonfinite",)
AHEAD_NS, LATE_NS, LOST = 10_000_000_000, 100_000_000, 0.3
JUMP = 1.0  # rad or m

Input = Sensor | Camera


def choices(of: Input) -> tuple[str, ...]:
    """The faults that a sensor or camera can have."""
    barred = (JOINTS_ONLY if of.type != JOINT_STATE else ()) + (NUMBERS_ONLY if isinstance(of, Camera) else ())
    return tuple(fault for fault in FAULTS if fault not in barred)


def check(inputs: Sequence[Input], robot: RobotSpec, name: str, fault: str) -> Input:
    """The sensor or camera of a name, if it can have the fault or is to be well. Raises SpecError with the choices."""
    known = {one.name: one for one in inputs}
    if name not in known:
        raise SpecError(f"fault of '{name}': robot '{robot.robot}' has {', '.join(known)}")
    if fault != OK and fault not in choices(known[name]):
        raise SpecError(f"fault '{fault}' of '{name}': it can be {', '.join((*choices(known[name]), OK))}")
    return known[name]


class Faults:
    """What is wrong with a simulated robot's sensors and cameras."""

    def __init__(self, robot: RobotSpec, inputs: Sequence[Input], bus: Bus, seed: int = 0) -> None:
        """`inputs` are those that it publishes."""
        self._robot, self._inputs, self._bus = robot, inputs, bus
        self._orders, self._told = bus.reader(ORDERS, TEXT_TYPE, EVENTS), bus.publisher(TOLD, TEXT_TYPE, LATCHED)
        self._now: dict[str, tuple[str, int]] = {}  # by name: fault, and since when, ns since the Unix epoch
        self._held: dict[str, Values] = {}
        self._late: dict[str, deque[tuple[int, bytes]]] = {}
        self._wrong: dict[str, Publisher] = {}
        self._count, self._rng = dict.fromkeys((one.name for one in inputs), 0), np.random.default_rng([seed, 2])
        print(f"sim-robot: SIMULATED: it takes injected faults on {bus.resolve(ORDERS)} (robot-rl fault)",
              file=sys.stderr, flush=True)
        self._tell(0, "")

    def obey(self) -> None:
        """Do what was ordered since the last call."""
        for sample in self._orders.take():
            refused = ""
            try:
                order = read_info(sample.data)
                self._set(check(self._inputs, self._robot, order["name"], order["fault"]), order["fault"])
            except Exception as error:  # outside bytes, whatever the decoders make of them
                refused = str(error) if isinstance(error, SpecError) else f"no order: {error!r}"
                print(f"sim-robot: {refused}", file=sys.stderr, flush=True)
            self._tell(sample.stamp_ns, refused)

    def publish(self, of: Input, publisher: Publisher, values: Values, stamp_ns: int) -> None:
        """Send what a sensor or camera saw at a time, spoilt by its fault; each is called for from one thread."""
        name, fault = of.name, self._now.get(of.name, (OK, 0))[0]
        self._count[name] += 1
        if fault == "frozen":
            values = self._held.setdefault(name, values)
        else:
            self._held.pop(name, None)
        if fault == "silent" or (fault == "lossy" and self._rng.random() < LOST):
            return
        if fault == "mistyped":
            self._wrong[name].publish(messages.encode(messages.string("not what you expect")))
            return
        data = self._spoilt(of, fault, values, stamp_ns)
        if fault == "delayed":
            queue = self._late.setdefault(name, deque())
            queue.append((time.monotonic_ns() + LATE_NS, data))
            while queue and queue[0][0] <= time.monotonic_ns():
                publisher.publish(queue.popleft()[1])
            return
        for _ in range(2 if fault == "duplicated" else 1):
            publisher.publish(data)

    def _spoilt(self, of: Input, fault: str, values: Values, stamp_ns: int) -> bytes:
        """The message, with what the fault does to it."""
        first = next(iter(values))
        if fault == "nonfinite":
            values = values | {first: np.concatenate([[np.nan], values[first][1:]])}
        elif fault == "jumping" and self._count[of.name] % 2:
            seen = values[first]
            noise = self._rng.integers(0, 256, seen.shape, np.uint8) if isinstance(of, Camera) else seen + JUMP
            values = values | {first: noise}
        data = encode(of, values, stamp_ns + (AHEAD_NS if fault == "clock" else 0), self._robot)
        if fault not in JOINTS_ONLY:
            return data
        told: Any = messages.decode(data, of.type)
        kept = slice(None, None, -1) if fault == "reordered" else slice(1, None)
        return messages.encode(messages.joint_state(
            stamp_ns, told.name[kept], told.position[kept], told.velocity[kept], told.effort[kept]))

    def _set(self, of: Input, fault: str) -> None:
        self._late.pop(of.name, None)
        if fault == "mistyped" and of.name not in self._wrong:
            self._wrong[of.name] = self._bus.publisher(heard_on(of)[0], TEXT_TYPE, Qos(reliable=True))
        self._now.pop(of.name, None)
        if fault != OK:
            self._now[of.name] = fault, time.time_ns()
        words = "works again" if fault == OK else f"INJECTED FAULT: {FAULTS[fault]}"
        print(f"sim-robot: {of.name}: {words}", file=sys.stderr, flush=True)

    def _tell(self, order_ns: int, refused: str) -> None:
        """Say what is wrong, and what became of the order with this source stamp."""
        wrong = {name: {"fault": fault, "since_ns": since} for name, (fault, since) in self._now.items()}
        told = {"faults": wrong, "order_ns": order_ns, "told_ns": time.time_ns(), "refused": refused}
        self._told.publish(messages.encode(messages.string(json.dumps(told))))


class Injector:
    """Gives a simulated robot on a bus its faults."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._orders, self._told = bus.publisher(ORDERS, TEXT_TYPE, EVENTS), bus.reader(TOLD, TEXT_TYPE, LATCHED)

    def inject(self, name: str, fault: str, timeout_s: float = 10.0) -> dict[str, Any]:
        """Give a sensor or camera a fault, or make it well; returns {"faults": {name: {"fault", "since_ns"}}, …}.

        Raises SpecError for what the robot refuses, TimeoutError where no simulated robot answers.
        """
        end = time.monotonic() + timeout_s
        while not (self._orders.matched() and self._told.matched()) and time.monotonic() < end:
            time.sleep(0.01)
        sent = self._orders.publish(messages.encode(messages.string(json.dumps({"name": name, "fault": fault}))))
        while time.monotonic() < end:
            newest = self._told.newest()
            told = read_info(newest.data) if newest else {"order_ns": 0}
            if told["order_ns"] >= sent:
                if told["refused"]:
                    raise SpecError(told["refused"])
                return told
            time.sleep(0.005)
        raise TimeoutError(f"nobody takes injected faults on {self._bus.resolve(ORDERS)}: only sim-robot does, no "
                           "driver of a real robot")
