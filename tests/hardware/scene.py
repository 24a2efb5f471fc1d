"""A supervised robot between processes: the robot, its supervisor as the command line starts it, and a commander."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from hardware import messages
from hardware.bus import EVENTS, Bus, Qos, connect
from hardware.robot_io import RobotIO, decode_command, encode_command
from robot_rl.spec import SUPERVISOR_STATE, RobotSpec
from robot_rl.steplog import SENT_TOPIC, STEP_TYPE, TEXT_TYPE, SentRecord, join_ns
from tests.processes import start
from tests.robots import robot

PATIENCE_S, FEW_S = 60.0, 8.0
SILENT_S = 3.0  # that a sensor may be: a busy machine is no fault


def follower(spec: bytes, domain: int, pipe: Connection) -> None:
    """A robot whose joints are where they were told at once. Orders: 'nan' and 'far' change what its sensors say."""
    body = msgspec.json.decode(spec, type=RobotSpec)
    with connect("dds", "robot", "", domain) as bus:
        joints, tip = (bus.publisher(s.topic, s.type, Qos(reliable=True)) for s in body.sensors)
        commands = [(to, bus.reader(to.topic, to.type, Qos(reliable=True, depth=1000)),
                     [body.names.index(name) for name in to.joints]) for to in body.command_topics]
        position, place, pause = np.zeros(3), [0.0, 0.0, 0.0], 0.01
        pipe.send(time.time_ns())
        while True:
            if pipe.poll():
                order = pipe.recv()
                if order == "stop":
                    return
                position = np.full(3, np.nan) if order == "nan" else np.zeros(3)
                place = [5.0 if order == "far" else 0.0, 0.0, 0.0]
            before = position.copy()
            for to, reader, index in commands:
                for sample in reader.take():
                    if body.command.interface == "position" and np.isfinite(position).all():
                        position[index] = decode_command(body, to, sample.data).target
            stamp = time.time_ns()
            joints.publish(messages.encode(messages.joint_state(
                stamp, body.names, position, (position - before) / pause, np.zeros(3))))
            tip.publish(messages.encode(messages.pose_stamped(stamp, "base_link", place, [0, 0, 0, 1])))
            time.sleep(pause)


def commander(spec: bytes, domain: int, pipe: Connection) -> None:
    """Sends commands at 50 Hz to where the spec says. Orders: 'flood', 'slow', 'nan', 'short'… change what comes."""
    body = msgspec.json.decode(spec, type=RobotSpec)
    with connect("dds", "policy", "", domain) as bus:
        born = time.time_ns()
        io = RobotIO(body, bus)
        pipe.send(born)
        target, pause, order, send = np.array([0.05, 0.05]), 0.02, "calm", io.send
        while True:
            if pipe.poll():
                order = pipe.recv()
                if order == "stop":
                    return
                pause = {"flood": 0.0, "slow": 0.3}.get(order, 0.02)
                send = io.stop if order == "brake" else io.send
                target = {
                    "apart": np.array([0.05, -0.05]), "nan": np.array([np.nan, 0.0]), "far": np.array([9.0, 0.0]),
                }.get(order, np.array([0.05, 0.05]))
            if order in ("one", "short"):  # one of its topics; a number that is missing
                topic, data = encode_command(body, target)[0]
                io._commands[topic].publish(messages.encode(messages.float64s([0.0])) if order == "short" else data)
            else:
                send(target)
            if pause:
                time.sleep(pause)


class Process:
    """A function of this module in a process of its own, with orders over a pipe."""

    def __init__(self, work: Any, spec: RobotSpec, domain: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(msgspec.json.encode(spec), domain, theirs), daemon=True)
        self._process.start()
        assert self.pipe.poll(PATIENCE_S)
        self.born_ns: int = self.pipe.recv()
        """When it came onto the bus, ns since the Unix epoch."""

    def signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.join(PATIENCE_S)


class Supervised:
    """An operator's view of a supervisor, whose process is `process`: what it tells, and what is asked of it."""

    process: subprocess.Popen

    def __init__(self, domain: int) -> None:
        self.domain = domain
        self.said: list[dict[str, Any]] = []
        self.sent: list[SentRecord] = []
        self._mark = -1

    def connect(self) -> None:
        self.bus: Bus = connect("dds", "operator", "", self.domain)
        self._states = self.bus.reader(SUPERVISOR_STATE, TEXT_TYPE, Qos(reliable=True, latched=True, depth=100))
        self._sents = self.bus.reader(SENT_TOPIC, STEP_TYPE, EVENTS)

    def call(self, name: str) -> tuple[bool, str]:
        return self.bus.call(f"supervisor/{name}", PATIENCE_S)

    def look(self) -> None:
        """Take what the supervisor told."""
        self.said += [json.loads(messages.decode(s.data, TEXT_TYPE).data) for s in self._states.take()]
        self.sent += [SentRecord.decode(s.data) for s in self._sents.take()]

    def until(self, state: str, seconds: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for a state that was not waited for yet, or is the one now; returns what was said of it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            for place, said in enumerate(self.said):
                if said["state"] == state and (place > self._mark or place == len(self.said) - 1):
                    self._mark = place
                    return said
            time.sleep(0.005)
        raise AssertionError(f"not {state} after {seconds} s: {self.said[-3:]}")

    def arm(self) -> None:
        """Arm it, from wherever it stands; a machine that starves its processes may take some tries."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self.look()
            state = self.said[-1]["state"]
            if state == "armed":
                return
            if state == "stopped":
                self.call("reset")
            elif state == "inactive" and self.call("arm")[0]:
                self.until("armed")
                return
            time.sleep(0.05)
        raise AssertionError(f"it cannot be armed: {self.call('arm')}")

    def forwarding(self, commands: int = 10) -> None:
        """Arm it and wait until so many commands of a policy have gone through since."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self.arm()
            self.sent.clear()
            self._mark = len(self.said) - 1
            soon = min(end, time.monotonic() + FEW_S)
            while self.said[-1]["state"] == "armed" and time.monotonic() < soon:
                self.look()
                if len(self.theirs()) >= commands:
                    return
                time.sleep(0.005)
        raise AssertionError(f"no {commands} commands went through: {self.said[-3:]}")

    def theirs(self) -> list[SentRecord]:
        """What was sent for a policy's commands."""
        return [record for record in self.sent if record.command.any()]

    def stopped_after_ms(self) -> float:
        """From the last command of a policy, as it was heard, to the first of the stop behaviour, as it was sent."""
        last = max(join_ns(*r.heard) for r in self.theirs())
        return (self.stopped_ns(last) - last) * 1e-6

    def stopped_ns(self, after_ns: int) -> int:
        """When the first command of the stop behaviour after a time was sent, ns since the Unix epoch."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self.look()
            sent = [at for r in self.sent if not r.command.any() and (at := join_ns(*r.stamp)) > after_ns]
            if sent:
                return min(sent)
            time.sleep(0.005)
        raise AssertionError(f"no stop behaviour was sent for {PATIENCE_S} s: {self.said[-3:]}")


class Scene(Supervised):
    """A robot that follows at once, and its supervisor. A context manager."""

    def __init__(self, folder: Path, domain: int, *arguments: str, interface: str = "position", **changes: Any) -> None:
        super().__init__(domain)
        patient = [one | {"stale_after_s": SILENT_S} for one in msgspec.to_builtins(robot(interface).sensors)]
        data = {"watchdog": {"kind": "driver", "timeout_s": 0.5}, "sensors": patient} | changes
        self.spec = robot(interface, **data)
        self.supervised = msgspec.structs.replace(self.spec, supervised=True)
        self._file = folder / "robot.yaml"
        self._file.write_text(yaml.safe_dump(msgspec.to_builtins(self.spec)))
        self._arguments = arguments

    def __enter__(self) -> Scene:
        self.connect()
        self.robot = Process(follower, self.spec, self.domain)
        self.process = start("supervisor", self._file, "--bus", "dds", "--domain", self.domain, *self._arguments)
        try:
            assert self.process.stdout is not None
            assert "ready" in self.process.stdout.readline()
            self.until("inactive")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.robot.end()
        self.bus.close()

    def commander(self, direct: bool = False) -> Process:
        """Somebody who sends commands, to the supervisor or past it."""
        return Process(commander, self.spec if direct else self.supervised, self.domain)
