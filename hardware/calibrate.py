"""Bring-up of an arm on serial servos without code: offsets, directions and ranges, from the arm itself.

Nothing is driven: the operator moves the arm. The file is written at the end, once all of it makes sense and the servos
hold what it says.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serial.tools import list_ports

from hardware import feetech
from hardware.arm import held
from hardware.calibration import RADIAN, SLACK, Calibration, ServoCalibration, contradiction, save_calibration
from hardware.feetech import MAX_POSITION, MIN_POSITION, OFFSET, POSITION, TICKS, BusError, NoAnswer, PortLost, ServoBus
from hardware.operator import Operator, say
from robot_rl.spec import Joint, RobotSpec, SpecError

MIDDLE = TICKS // 2
LARGEST_OFFSET = (1 << 11) - 1  # that the register holds
PROBES = 5  # reads that tell two servos of one id from one
AT_END = 0.1  # share of the range that counts as its end
LOPSIDED = 0.35  # rad: how far the middle that was shown may lie from that of the range
ATTEMPTS = 3  # of each joint
SAMPLE_S = 0.01


@dataclass(frozen=True)
class Sweep:
    """What a joint's servo said while the joint was moved through its range, ticks."""

    lower: int
    upper: int
    last: int


def calibrate(robot: RobotSpec, port: str, out: Path, *, arm: str = "", ids: Sequence[int] = (),
              torque: Mapping[str, float] | None = None, gains: tuple[int, int, int] | None = None) -> Calibration:
    """Ask the operator through it and write the file. Raises SpecError naming joint and values; then there is none."""
    ids, torque = list(ids) or list(range(1, len(robot.joints) + 1)), torque or {}
    if len(set(ids)) != len(ids) or len(ids) != len(robot.joints):
        raise SpecError(f"--ids {ids}: robot '{robot.robot}' needs {len(robot.joints)} different ones, for "
                        f"{', '.join(robot.names)}")
    if strange := sorted(set(torque) - set(robot.names)):
        raise SpecError(f"--torque-limit {strange[0]}={torque[strange[0]]}: robot '{robot.robot}' has the joints "
                        f"{', '.join(robot.names)}")
    try:
        bus = ServoBus(port)
    except BusError as error:
        raise SpecError(str(error)) from error
    operator = Operator()
    try:
        joints = _joints(robot, bus, operator, dict(zip(robot.names, ids, strict=True)), torque, gains)
        made = Calibration(robot=robot.robot, arm=arm or _adapter(port), joints=joints).on(robot, "calibrate")
        for servo in joints.values():
            _store(bus, servo)
    except BusError as error:
        raise SpecError(f"calibrate: {error}") from error
    except ValueError as error:
        raise error if isinstance(error, SpecError) else SpecError(f"calibrate: {error}") from error
    finally:
        bus.close()
    save_calibration(made, out)
    return made


def give_id(port: str, new: int) -> int:
    """Give the only servo on the bus an id; returns the one that it had. Raises SpecError for none or several."""
    try:
        bus = ServoBus(port)
    except BusError as error:
        raise SpecError(str(error)) from error
    try:
        found = bus.present(range(feetech.LARGEST_ID + 1))
        if len(found) != 1:
            raise SpecError(f"--new-id {new}: connect one servo alone; the ids that answer on {port} are {found}")
        _probe(bus, "the servo", found[0])
        bus.write(found[0], feetech.LOCK, 0)
        bus.change_id(found[0], new)
        bus.write(new, feetech.LOCK, 1)
        return found[0]
    except BusError as error:
        raise SpecError(f"--new-id {new}: {error}") from error
    finally:
        bus.close()


def _joints(robot: RobotSpec, bus: ServoBus, operator: Operator, ids: Mapping[str, int], torque: Mapping[str, float],
            gains: tuple[int, int, int] | None) -> dict[str, ServoCalibration]:
    missing = []
    for name, servo in ids.items():
        try:
            _probe(bus, f"joint '{name}'", servo)
        except NoAnswer:
            missing.append(f"joint '{name}': id {servo} does not answer")
    if missing:
        raise SpecError(f"port {bus.path}: {'; '.join(missing)}; the ids that do are {bus.present()}")
    for servo in ids.values():
        bus.write(servo, feetech.TORQUE_ENABLE, 0)

    _wait(operator, f"calibrate: {robot.robot}: torque is off. Put every joint at the middle of its range, hold it "
                    "there and press Enter.")
    offsets = {name: _centre(bus, servo) for name, servo in ids.items()}
    sweeps = {joint.name: _ranged(bus, operator, joint, ids[joint.name]) for joint in robot.joints}
    _wait(operator, "calibrate: lay the arm where it may rest without torque and press Enter.")
    joints = {}
    for joint in robot.joints:
        servo, (sweep, direction, zero) = ids[joint.name], sweeps[joint.name]
        rest = max(sweep.lower, min(sweep.upper, bus.read(servo, POSITION)))
        own = tuple(bus.read(servo, g) for g in (feetech.GAIN_P, feetech.GAIN_I, feetech.GAIN_D))
        joints[joint.name] = ServoCalibration(
            id=servo, direction=1 if direction > 0 else -1, zero=zero, lower=sweep.lower, upper=sweep.upper,
            offset=offsets[joint.name], rest=rest, gains=gains or own,  # type: ignore[arg-type]  # three of them
            torque_limit=torque.get(joint.name, 1.0))
    return joints


def _probe(bus: ServoBus, what: str, servo: int) -> None:
    """One servo of the right kind has this id. Two that share one talk at once, which garbles what differs."""
    bad = 0
    for _ in range(PROBES):
        try:
            bus.sync_read([servo], feetech.FEEDBACK)
        except (NoAnswer, PortLost):
            bus.tried(lambda: bus.ping(servo))
        except BusError:
            bad += 1
    if bad > PROBES // 2:
        raise SpecError(f"{what}: {bad} of {PROBES} answers of id {servo} are garbled: do two servos have that id? "
                        "New ones all have 1; give each its own with --new-id")
    model = bus.read(servo, feetech.MODEL)
    if model != feetech.STS3215:
        raise SpecError(f"{what}: servo {servo} is of model {model}, not {feetech.STS3215} (STS3215)")


def _centre(bus: ServoBus, servo: int) -> int:
    """Make where the servo is the middle of its turn; returns the offset that does."""
    bus.write(servo, feetech.LOCK, 0)
    for register, value in ((OFFSET, 0), (MIN_POSITION, 0), (MAX_POSITION, TICKS - 1), (feetech.MODE, 0)):
        bus.write(servo, register, value)
    offset = max(-LARGEST_OFFSET, min(LARGEST_OFFSET, bus.read(servo, POSITION) - MIDDLE))
    bus.write(servo, OFFSET, offset)
    return offset


def _ranged(bus: ServoBus, operator: Operator, joint: Joint, servo: int) -> tuple[Sweep, int, int]:
    """Sweep, direction and zero of a joint; a sweep that makes no sense is asked for again."""
    way = f" ({joint.positive})" if joint.positive else ""
    for attempt in range(ATTEMPTS):
        ticks = list(_watch(bus, operator, servo, f"calibrate: move {joint.name} to its positive end{way}, then to its "
                                                  "negative end, leave it there and press Enter."))
        try:
            return understand(joint, ticks)
        except SpecError as error:
            if attempt == ATTEMPTS - 1:
                raise
            say(f"{error}. Once more:")
    raise AssertionError


def understand(joint: Joint, ticks: Sequence[int]) -> tuple[Sweep, int, int]:
    """Sweep, direction and zero of a joint from the ticks of its sweep, which began at the middle of a turn.

    Raises SpecError naming the joint and both values for a sweep that cannot be right.
    """
    name = f"joint '{joint.name}'"
    if joint.lower is None or joint.upper is None:
        raise SpecError(f"{name}: {contradiction((0.0, 0.0), joint.lower, joint.upper)}")
    for a, b in itertools.pairwise(ticks):
        if abs(a - b) > MIDDLE:
            raise SpecError(f"{name}: it went over the end of the servo's turn, from {a} to {b} ticks: put it at the "
                            "middle first, then turn it less than half a turn to either side")
    sweep = Sweep(min(ticks), max(ticks), ticks[-1])
    span, wanted = (sweep.upper - sweep.lower) / RADIAN, joint.upper - joint.lower
    if span < wanted - 2 * SLACK:
        raise SpecError(f"{name}: it was moved over {span:.3f} rad, the robot file says lower: {joint.lower}, upper: "
                        f"{joint.upper}, which is {wanted:.3f}")
    share = (sweep.last - sweep.lower) / (sweep.upper - sweep.lower)
    if AT_END < share < 1 - AT_END:
        raise SpecError(f"{name}: it was left {share:.0%} into its range, not at its negative end")
    direction = 1 if share <= AT_END else -1
    middle = MIDDLE
    if span < wanted + LOPSIDED:  # it has stops: they say better than the eye where its middle is
        middle = round((sweep.lower + sweep.upper) / 2)
        if abs(middle - MIDDLE) > LOPSIDED * RADIAN:
            raise SpecError(f"{name}: the middle that was shown is {(middle - MIDDLE) / RADIAN:.3f} rad from that of "
                            "its range")
    zero = round(middle - direction * (joint.lower + joint.upper) / 2 * RADIAN)
    reached = sorted(direction * (end - zero) / RADIAN for end in (sweep.lower, sweep.upper))
    if fault := contradiction((reached[0], reached[1]), joint.lower, joint.upper):
        raise SpecError(f"{name}: {fault}")
    return sweep, direction, zero


def _watch(bus: ServoBus, operator: Operator, servo: int, text: str) -> Iterator[int]:
    """The servo's ticks until the operator presses Enter."""
    operator.ask(text)
    while True:
        yield bus.read(servo, POSITION)
        if operator.entered():
            return
        if operator.gone:
            raise SpecError("calibrate: stopped: the input has ended")
        time.sleep(SAMPLE_S)


def _wait(operator: Operator, text: str) -> None:
    operator.ask(text)
    while not operator.entered():
        if operator.gone:
            raise SpecError("calibrate: stopped: the input has ended")
        time.sleep(SAMPLE_S)


def _store(bus: ServoBus, servo: ServoCalibration) -> None:
    """Put into the servo what it is to keep of its calibration."""
    for _, value, register in held(servo):
        bus.write(servo.id, register, value)
    bus.write(servo.id, feetech.LOCK, 1)


def _adapter(port: str) -> str:
    """A name for the arm: the serial number of its USB adapter."""
    known = {Path(p.device).resolve(): p.serial_number for p in list_ports.comports()}
    return known.get(Path(port).resolve()) or "unnamed"
