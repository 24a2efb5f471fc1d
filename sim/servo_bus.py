"""An arm on serial servos that is not there: the bytes of its servos on a pseudo-terminal, MuJoCo behind them.

What a driver sees of an arm, it sees here: registers, torque on and off, an encoder that was mounted somehow, and what
goes wrong on real buses. Lines on stdin make it go wrong, or move the arm by hand; each is answered by one line.
"""

from __future__ import annotations

import os
import select
import sys
import time
import tty
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hardware import feetech
from hardware.arm import held
from hardware.calibration import RADIAN, Calibration, ServoCalibration
from hardware.feetech import TICKS, Packet, Parser, Register, number, octets, packet
from robot_rl.spec import RobotSpec, SpecError
from sim.robot import SimRobot

TURN_S = 0.002  # the longest that the bus is not looked at
HAND_STEP_S = 0.004
LONGEST_S = 0.1  # of physics at once: what a stalled machine missed is dropped
HAND_SPEED = 4.0  # rad/s of a hand that moves a joint
HAND_STILL = 0.02  # rad/s
HAND_KP, HAND_KD = 60.0, 2.5  # N·m/rad, N·m·s/rad
ROOM, COMFORT = 30, 120  # °C, 0.1 V

HELP = """hand JOINT RAD | release | heat ID CELSIUS | volt ID DECIVOLT | drop ID TIMES | corrupt ID TIMES | \
late ID MILLISECONDS | twin ID | pull | plug | power | heal | where"""


class Servo:
    """One servo's memory, and where its encoder and its gears stand to the joint."""

    def __init__(self, index: int, servo: int, rng: np.random.Generator, effort: float) -> None:
        self.joint, self.strongest = index, effort
        self.mounted, self.direction = int(rng.integers(TICKS)), int(rng.choice([-1, 1]))
        self.memory = bytearray(128)
        for register, value in (
                (feetech.MODEL, feetech.STS3215), (feetech.ID, servo), (feetech.MAX_POSITION, TICKS - 1),
                (feetech.MAX_TEMPERATURE, 70), (feetech.PHASE, 12), (feetech.SHUTDOWN, 44), (feetech.GAIN_P, 32),
                (feetech.GAIN_D, 32)):
            self.put(register, value)
        self.mend()
        self._kept = bytes(self.memory)
        self.power_up()

    def mend(self) -> None:
        """Nothing is wrong any more."""
        self.drop = self.corrupt = 0
        self.late_s, self.twin = 0.0, False
        self.put(feetech.VOLTAGE, COMFORT)
        self.put(feetech.TEMPERATURE, ROOM)

    def get(self, register: Register) -> int:
        """A register."""
        return number(register, bytes(self.memory[register.address:register.address + register.size]))

    def put(self, register: Register, value: int) -> None:
        """Set a register, as the servo itself does."""
        self.memory[register.address:register.address + register.size] = octets(register, value)

    def write(self, address: int, data: bytes) -> None:
        """Set what the bus asks for; what lies in EEPROM outlives the power only while it is not locked."""
        self.memory[address:address + len(data)] = data
        if address < feetech.EEPROM_END and not self.get(feetech.LOCK):
            self._kept = bytes(self.memory[:feetech.EEPROM_END])

    def power_up(self) -> None:
        """Memory as it is after power comes on."""
        volt, hot = self.get(feetech.VOLTAGE), self.get(feetech.TEMPERATURE)
        self.memory[:] = self._kept[:feetech.EEPROM_END] + bytes(128 - feetech.EEPROM_END)
        for register, value in ((feetech.TORQUE_LIMIT, 1000), (feetech.LOCK, 1), (feetech.VOLTAGE, volt),
                                (feetech.TEMPERATURE, hot)):
            self.put(register, value)

    def feel(self, position: float, velocity: float, effort: float) -> None:
        """Put what the joint does (rad, rad/s, N·m) into the registers."""
        ticks = self.mounted + self.direction * position * RADIAN - self.get(feetech.OFFSET)
        self.put(feetech.POSITION, round(ticks) % TICKS)
        self.put(feetech.SPEED, round(self.direction * velocity * RADIAN))
        load = round(self.direction * effort / self.strongest * 1000)
        self.put(feetech.LOAD, max(-1000, min(1000, load)) if self.get(feetech.TORQUE_ENABLE) else 0)
        hot = self.get(feetech.TEMPERATURE) >= self.get(feetech.MAX_TEMPERATURE)
        volt = not 40 <= self.get(feetech.VOLTAGE) <= 140
        status = 4 * hot + volt
        self.put(feetech.STATUS, status)
        if status & self.get(feetech.SHUTDOWN):
            self.put(feetech.TORQUE_ENABLE, 0)

    def wanted(self, position: float) -> float:
        """Where the joint is to go, rad, from where it is."""
        low, high = self.get(feetech.MIN_POSITION), self.get(feetech.MAX_POSITION)
        ticks = self.mounted + self.direction * position * RADIAN - self.get(feetech.OFFSET)
        goal = max(low, min(high, self.get(feetech.GOAL_POSITION)))
        return position + self.direction * (goal - ticks % TICKS) / RADIAN

    @property
    def torque(self) -> float:
        """The most that it may do, N·m."""
        share = self.get(feetech.TORQUE_LIMIT) / 1000
        return self.strongest * share if self.get(feetech.TORQUE_ENABLE) else 0.0


class ServoArm:
    """The servos of a simulated arm and the physics that they move. `seed` decides how they are mounted."""

    def __init__(self, robot: RobotSpec, sim: SimRobot, seed: int = 0) -> None:
        if robot.command.interface != "position":
            raise SpecError(f"robot '{robot.robot}': command.interface={robot.command.interface}; servos take position")
        rng = np.random.default_rng(seed)
        self.robot, self._sim = robot, sim
        self.servos = [Servo(i, i + 1, rng, joint.effort) for i, joint in enumerate(robot.actuated)]
        self._model, self._data = sim.model, sim.data
        self._actuator = [int(a) for a in sim.actuators]
        self._place = [int(sim.model.joint(joint.name).qposadr[0]) for joint in robot.actuated]
        self._dof = [int(sim.model.joint(joint.name).dofadr[0]) for joint in robot.actuated]
        self._hands: dict[int, tuple[float, float]] = {}  # joint → where the hand is, where it goes
        self._then, self._owed = time.monotonic(), 0.0
        self._parser = Parser()
        self.drive()
        self.feel()

    def catch_up(self) -> None:
        """Let as much physics pass as time has."""
        now = time.monotonic()
        self._owed = min(self._owed + now - self._then, LONGEST_S)
        self._then = now
        pace = HAND_STEP_S if self._hands else self._owed
        while self._owed >= HAND_STEP_S:
            for joint, (hand, goal) in self._hands.items():
                self._push(joint, hand, goal)
            self._sim.step(pace)
            self._owed -= pace

    def drive(self) -> None:
        """Let the motors do what the servos' registers say."""
        position = self.position()
        for servo, actuator in zip(self.servos, self._actuator, strict=True):
            self._model.actuator_forcerange[actuator] = -servo.torque, servo.torque
        self._sim.apply(np.array([s.wanted(float(at)) for s, at in zip(self.servos, position, strict=True)]))

    def feel(self) -> None:
        """Put what the joints do into the servos' registers; a servo may switch itself off."""
        held = [s.torque for s in self.servos]
        position = self.position()
        velocity, effort = self._data.qvel[self._dof], self._data.qfrc_actuator[self._dof]
        for servo, *felt in zip(self.servos, position, velocity, effort, strict=True):
            servo.feel(*(float(value) for value in felt))
        if held != [s.torque for s in self.servos]:
            self.drive()

    def position(self) -> np.ndarray:
        """(C,) rad, where the joints truly are."""
        return self._data.qpos[self._place]

    def _push(self, joint: int, hand: float, goal: float) -> None:
        """A hand on a joint moves on, and the joint after it."""
        hand += min(max(goal - hand, -HAND_SPEED * HAND_STEP_S), HAND_SPEED * HAND_STEP_S)
        self._hands[joint] = hand, goal
        at, speed = self._data.qpos[self._place[joint]], self._data.qvel[self._dof[joint]]
        self._data.qfrc_applied[self._dof[joint]] = HAND_KP * (hand - at) - HAND_KD * speed

    def hand(self, joint: str, goal: float) -> None:
        """A hand takes a joint and moves it somewhere, rad."""
        names = [j.name for j in self.robot.actuated]
        if joint not in names:
            raise ValueError(f"joint '{joint}': there are {', '.join(names)}")
        index = names.index(joint)
        self._hands[index] = float(self.position()[index]), goal

    def release(self) -> None:
        """Hands off."""
        self._hands.clear()
        self._data.qfrc_applied[:] = 0.0

    @property
    def moving(self) -> bool:
        """Whether a hand, or a joint in one, is on its way."""
        return any(hand != goal or abs(self._data.qvel[self._dof[joint]]) > HAND_STILL
                   for joint, (hand, goal) in self._hands.items())

    def answer(self, data: bytes) -> list[tuple[float, bytes]]:
        """Replies to bytes of the bus, each with how late it comes, s."""
        self.catch_up()
        self.feel()
        replies = []
        for request in self._parser.feed(data):
            replies += self._obey(request)
        return replies

    def _obey(self, request: Packet) -> list[tuple[float, bytes]]:
        data = request.parameters
        if request.code == feetech.SYNC_READ:
            return [r for i in data[2:] for r in self._reply(i, lambda s: bytes(s.memory[data[0]:data[0] + data[1]]))]
        if request.code == feetech.SYNC_WRITE:
            size = data[1] + 1
            for at in range(2, len(data), size):
                for told in self.called(data[at]):
                    told.write(data[0], data[at + 1:at + size])
            self.drive()
            return []
        if request.code == feetech.PING:
            return self._reply(request.servo, lambda s: b"")
        if request.code == feetech.READ:
            return self._reply(request.servo, lambda s: bytes(s.memory[data[0]:data[0] + data[1]]))
        if request.code == feetech.WRITE:
            called = self.called(request.servo)  # one that gets a new id answers by the old one
            for servo in called:
                servo.write(data[0], data[1:])
            self.drive()
            return self._reply(request.servo, lambda s: b"", called)
        return []

    def called(self, servo: int) -> list[Servo]:
        """The servos with an id."""
        return [s for s in self.servos if s.get(feetech.ID) == servo]

    def _reply(self, servo: int, content: Callable[[Servo], bytes], called: list[Servo] | None = None
               ) -> list[tuple[float, bytes]]:
        """What is heard of the servos with an id: several at once spoil each other's bytes where they differ."""
        called = self.called(servo) if called is None else called
        heard = []
        for one in called:
            if one.drop:
                one.drop -= 1
                continue
            said = packet(servo, one.get(feetech.STATUS), content(one))
            if one.twin:
                other = bytes(b ^ 0x15 for b in content(one))
                said = bytes(a & b for a, b in zip(said, packet(servo, one.get(feetech.STATUS), other), strict=True))
            if one.corrupt:
                one.corrupt -= 1
                said = said[:-2] + bytes([said[-2] ^ 0x40]) + said[-1:]
            heard.append((one.late_s, said))
            one.late_s = 0.0
        if len(heard) > 1:
            mixed = bytes(np.bitwise_and.reduce([np.frombuffer(said, np.uint8) for _, said in heard]))
            return [(heard[0][0], mixed)]
        return heard


class ServoProcess:
    """A simulated arm behind a pseudo-terminal, with a link of a fixed name to it."""

    def __init__(self, arm: ServoArm, link: Path | None) -> None:
        self.arm, self._link = arm, link
        self._ends: tuple[int, int] | None = None
        self._late: list[tuple[float, bytes]] = []
        self._typed = b""
        self._stdin = True
        self._waiting = False  # somebody is to be told when the hand has arrived

    def open(self) -> str:
        """Plug the cable in; returns the path of the port."""
        main, port = os.openpty()
        tty.setraw(port)
        os.set_blocking(main, False)
        self._ends = main, port
        path = os.ttyname(port)
        if self._link is None:
            return path
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(path)
        return str(self._link)

    def close(self) -> None:
        """Pull the cable."""
        if self._ends is not None:
            for end in self._ends:
                os.close(end)
            self._ends = None
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        self._late.clear()

    def run(self, stop: Callable[[], bool]) -> None:
        """Serve until `stop()`."""
        try:
            while not stop():
                self._turn()
        finally:
            self.close()

    def _turn(self) -> None:
        main = [self._ends[0]] if self._ends else []
        ready, _, _ = select.select(main + [0] * self._stdin, [], [], TURN_S)
        if self._ends and self._ends[0] in ready:
            now = time.monotonic()
            self._late += [(now + late, said) for late, said in self.arm.answer(os.read(self._ends[0], 4096))]
        if 0 in ready:
            self._read_stdin()
        self.arm.catch_up()
        now = time.monotonic()
        due, self._late = ([r for r in self._late if r[0] <= now], [r for r in self._late if r[0] > now])
        if due and self._ends:
            os.write(self._ends[0], b"".join(said for _, said in due))
        if self._waiting and not self.arm.moving:
            self._waiting = False
            self._say("ok")

    def _read_stdin(self) -> None:
        got = os.read(0, 4096)
        self._stdin = bool(got)
        *lines, self._typed = (self._typed + got).split(b"\n")
        for line in lines:
            if not line.strip():
                continue
            try:
                self._do(*line.decode().split())
            except (TypeError, ValueError, LookupError, UnicodeDecodeError) as error:
                self._say(f"{error or line!r}; known are {HELP}")

    def _do(self, word: str, *given: str) -> None:
        if word == "hand":
            self.arm.hand(given[0], float(given[1]))
            self._waiting = True
            return
        if word == "release":
            self.arm.release()
        elif word in ("pull", "plug"):
            self.close()
            if word == "plug":
                self.open()
        elif word in ("power", "heal"):  # off and on again; heal mends everything before
            for servo in self.arm.servos:
                if word == "heal":
                    servo.mend()
                servo.power_up()
            self.arm.drive()
            if word == "heal":
                self.arm.release()
                if self._ends is None:
                    self.open()
        elif word == "where":
            self._say(" ".join(f"{at:.4f}" for at in self.arm.position()))
            return
        else:
            (servo,) = self.arm.called(int(given[0]))
            if word in ("heat", "volt"):
                servo.put(feetech.TEMPERATURE if word == "heat" else feetech.VOLTAGE, int(given[1]))
                self.arm.feel()
            elif word in ("drop", "corrupt"):
                setattr(servo, word, int(given[1]))
            elif word == "late":
                servo.late_s = float(given[1]) / 1000
            elif word == "twin":
                servo.twin = True
            else:
                raise ValueError(f"'{word}'")
        self._say("ok")

    def _say(self, text: str) -> None:
        print(text, file=sys.stdout, flush=True)


def fit(arm: ServoArm, calibration: Calibration) -> None:
    """Make the arm the one that a calibration is of."""
    for joint, servo in zip(arm.robot.actuated, arm.servos, strict=True):
        wanted = calibration.joints[joint.name]
        servo.direction, servo.mounted = wanted.direction, wanted.zero + wanted.offset
        servo.put(feetech.LOCK, 0)
        servo.write(feetech.ID.address, octets(feetech.ID, wanted.id))
        for _, value, register in held(wanted):
            servo.write(register.address, octets(register, value))
        servo.put(feetech.LOCK, 1)
    arm.feel()


def calibration_of(arm: ServoArm, name: str) -> Calibration:
    """The calibration that the arm would be given: middle of each range at half a turn, rest at the default pose."""
    joints = {}
    for joint, servo in zip(arm.robot.actuated, arm.servos, strict=True):
        low, high = joint.lower, joint.upper
        if low is None or high is None:
            raise SpecError(f"joint '{joint.name}': lower: {low}, upper: {high}; a servo in position mode has ends")
        zero = round(TICKS / 2 - servo.direction * (low + high) / 2 * RADIAN)
        offset = (servo.mounted - zero + TICKS // 2) % TICKS - TICKS // 2
        ends = sorted(zero + round(servo.direction * end * RADIAN) for end in (low, high))
        joints[joint.name] = ServoCalibration(
            id=servo.get(feetech.ID), direction=1 if servo.direction > 0 else -1, zero=zero, lower=ends[0],
            upper=ends[1], offset=max(offset, -TICKS // 2 + 1), gains=(32, 0, 32),
            rest=zero + round(servo.direction * joint.default * RADIAN))
    return Calibration(robot=arm.robot.robot, arm=name, joints=joints)
