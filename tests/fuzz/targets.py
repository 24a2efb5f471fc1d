"""Every parser of bytes from outside: real inputs to begin with, the parser, and the one error that it may raise."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np

from hardware import calibration, camera_calibration, feetech, messages, robot_io
from hardware.bus import EVENTS, SENSOR
from robot_rl import bag, image, latency, policy, spec, steplog
from robot_rl.bag_info import describe
from tests.robots import CAMERAS, robot

MODELS = Path(spec.__file__).parents[1] / "models"
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir=tempfile.tempdir or next(filter(os.path.isdir, ["/dev/shm"]), None)))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
MATRIX = "{rows: 3, cols: %d, data: [500, 0, 320, %s0, 500, 240, %s0, 0, 1%s]}"
CAMERA = f"""image_width: 640
image_height: 480
camera_name: front
camera_matrix: {MATRIX % (3, "", "", "")}
distortion_model: plumb_bob
distortion_coefficients: {{rows: 1, cols: 5, data: [0.1, -0.2, 0, 0, 0]}}
rectification_matrix: {MATRIX % (3, "", "", "")}
projection_matrix: {MATRIX % (4, "0, ", "0, ", ", 0")}
"""


@dataclass(frozen=True)
class Target:
    """A parser under test."""

    parse: Callable[[bytes], None]
    raises: type[Exception]
    """What it may raise, and nothing else."""
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()
    """Pieces that its inputs are made of, to try."""


YAML_WORDS = (b".nan", b".inf", b"1e999", b"-", b"[", b"{", b"&a", b"*a", b"<<: ", b"!!python/none", b"!!timestamp x",
              b"!!binary x", b"!!bool x", b"2001-13-99", b"0x", b"0b", b"? ", b"null", b"9" * 400, b"\xff", b"\t", b"|",
              b"1:2:3", b"~", b"'", b'"')
JSON_WORDS = (b"NaN", b"1e999", b"[", b"{", b"null", b"true", b'""', b"9" * 400, b"\\ud800", b"\xff", b"-1", b"0.5")
LENGTHS = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\1\0\0\0", b"\xff" * 8, b"\0" * 8)


def _at(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- files of settings

def _robot(data: bytes) -> None:
    spec.load_robot(str(_at("robot.yaml", data)))


def _camera(data: bytes) -> None:
    camera = msgspec.convert(CAMERAS[0] | {"width": 640, "height": 480}, spec.Camera)
    camera_calibration.load_calibration(_at("camera.yaml", data), camera)


_SO101 = spec.load_robot("so101")


def _arm(data: bytes) -> None:
    calibration.load_calibration(_at("arm.yaml", data), _SO101)


def _arms() -> list[bytes]:
    servos = {name: calibration.ServoCalibration(
        id=i, direction=1, zero=2048, lower=0, upper=4095, offset=7, rest=2000, gains=(16, 0, 32))
        for i, name in enumerate(_SO101.names, 1)}
    calibration.save_calibration(calibration.Calibration(robot="so101", arm="left", joints=servos), FOLDER / "arm.yaml")
    return [(FOLDER / "arm.yaml").read_bytes()]


def _latency(data: bytes) -> None:
    latency.load_latency(_at("latency.json", data), robot())


def _latencies() -> list[bytes]:
    late = latency.Late(driver_s=(0.001, 0.002), age_s=(0.01,))
    found = latency.Latency(robot="triple", policies=("ab",), ticks=2, command_s=(0.005, 0.006),
                            inputs=dict.fromkeys(("joints", "tip"), late))
    return [msgspec.json.encode(found)]


# --- policies

def _contract(data: bytes) -> None:
    made = spec.PolicySpec.from_json(data, "contract")
    if made.robot is not None:
        made.on(made.robot)


def _contracts() -> list[bytes]:
    return [policy.Policy(path).spec.to_json().encode() for path in sorted((MODELS / "policies").glob("*.onnx"))]


def _onnx(data: bytes) -> None:
    """A file as it is, and one whose digest is right: that of somebody who means ill."""
    policy.Policy(_at("policy.onnx", data))


def _onnxes() -> list[bytes]:
    files = [path.read_bytes() for path in sorted((MODELS / "policies").glob("*.onnx"))]
    return [*files, *(policy.seal(data[:-400], "{}") for data in files)]


# --- bags

def _mcap(data: bytes) -> None:
    folder, out = FOLDER / "bag", FOLDER / "out"
    shutil.rmtree(out, ignore_errors=True)
    file = _at("bag/bag_0.mcap", data)
    got = list(bag.read(file))
    bag.info(folder)
    recovered = bag.recover(folder, out)
    assert recovered.closed and recovered.messages == len(got)
    assert list(bag.read(out)) == got, "what was read is what is saved"


def _mcaps() -> list[bytes]:
    made = []
    for i, options in enumerate(({}, {"compression": "zstd"}, {"compression": "lz4"}, {"killed": True})):
        folder = FOLDER / f"seed{i}"
        shutil.rmtree(folder, ignore_errors=True)
        writer = bag.BagWriter(folder, flush_s=1e9, compression=str(options.get("compression", "")))
        writer.add_topic("/a", "std_msgs/msg/Bool", SENSOR)
        writer.add_topic("/b", "std_msgs/msg/String", EVENTS)
        for n in range(6):
            writer.write("/ab"[::2][:1] + "ab"[n % 2], messages.encode(
                messages.string(f"number {n}") if n % 2 else messages.boolean(True)), 10 + n, 5 + n)
            if n == 3:
                writer.flush()
        writer.flush()
        if "killed" in options:
            writer._file.abandon()
        else:
            writer.close()
        made.append((folder / f"seed{i}_0.mcap").read_bytes())
    return made


def _metadata(data: bytes) -> None:
    if not (FOLDER / "described").exists():
        (FOLDER / "described").mkdir()
        _at("described/described_0.mcap", _mcaps()[0])
    _at("described/metadata.yaml", data)
    describe(FOLDER / "described")


def _metadatas() -> list[bytes]:
    _mcaps()
    return [(FOLDER / "seed0" / "metadata.yaml").read_bytes()]


# --- messages

TYPES = sorted({
    spec.POSE, spec.JOINT_STATE, spec.IMU, spec.ODOMETRY, spec.IMAGE, spec.COMPRESSED, *spec.TWISTS,
    *spec.COMMAND_TYPES, "std_msgs/msg/String", "std_msgs/msg/Bool", "sensor_msgs/msg/CameraInfo",
    "diagnostic_msgs/msg/DiagnosticArray", *messages.LAYOUTS, *messages.SERVICE_LAYOUTS})


def _cdr(data: bytes) -> None:
    """The first byte chooses the type."""
    if data:
        messages.decode(data[1:], TYPES[data[0] % len(TYPES)])


def _typed(type: str, data: bytes) -> bytes:
    return bytes([TYPES.index(type)]) + data


def _examples() -> dict[str, bytes]:
    eye = np.eye(3)
    made = [messages.joint_state(7, ["a", "b", "c"], [0.1, 0.2, 0.3], [1, 2, 3], [4, 5, 6]),
            messages.pose_stamped(7, "base_link", [1, 2, 3], [0, 0, 0, 1]),
            messages.imu(7, "imu", [0, 0, 0, 1], [1, 2, 3], [4, 5, 6]),
            messages.odometry(7, "base_link", [1, 2, 3], [0, 0, 0, 1], [4, 5, 6], [7, 8, 9]),
            messages.image(7, "front", np.zeros((6, 8, 3), np.uint8)),
            messages.compressed_image(7, "front", image.to_jpeg(np.zeros((6, 8, 3), np.uint8), 90)),
            messages.twist([1, 2, 3]), messages.twist([1, 2, 3], 7), messages.float64s([1, 2, 3], [("a", 2), ("b", 1)]),
            messages.joint_trajectory(["a", "b"], [0.1, 0.2]), messages.string("text"), messages.boolean(True),
            messages.joint_interfaces(7, ["a", "b"], ["position", "kp", "kd"], np.ones((2, 3))),
            messages.camera_info(7, "front", 8, 6, eye)]
    return {message.__msgtype__: messages.encode(message) for message in made}


def _cdrs() -> list[bytes]:
    return [_typed(type, data) for type, data in _examples().items()]


def _readings(data: bytes) -> None:
    """The first byte chooses the sensor, the camera or the command."""
    if not data:
        return
    made = robot(cameras=CAMERAS, command={"interface": "position", "topic": "commands", "type": spec.COMMAND_TYPES[
        data[0] // 8 % len(spec.COMMAND_TYPES)]}, joints=[
        {"name": n, "velocity": 1.0, "effort": 1.0, "kp": 1.0, "kd": 1.0, "lower": -1, "upper": 1} for n in "abc"])
    camera = made.cameras[0]
    imu, odometry = (spec.Sensor(name=name, topic=name, type=type, rate_hz=100, stale_after_s=0.1)
                     for name, type in (("imu", spec.IMU), ("odometry", spec.ODOMETRY)))
    jpeg = msgspec.structs.replace(camera, transport="compressed")
    inputs: list[Any] = [*made.sensors, imu, odometry, camera, jpeg]
    place = data[0] % 8
    if place < len(inputs):
        for name, value in robot_io.decode(inputs[place], data[1:], made).items():
            assert value.dtype in (np.float64, np.uint8), name
    else:
        order = robot_io.decode_command(made, made.command_topics[0], data[1:])
        assert order.target.shape == (3,)


def _readables() -> list[bytes]:
    found, kinds = _examples(), [
        spec.JOINT_STATE, spec.POSE, spec.IMU, spec.ODOMETRY, spec.IMAGE, spec.COMPRESSED]
    commands = {
        0: messages.float64s([1, 2, 3]), 1: messages.joint_state(1, list("abc"), [1, 2, 3]),
        2: messages.joint_trajectory(list("cab"), [1, 2, 3]),
        3: messages.joint_interfaces(1, list("abc"), ["position", "kp", "kd"], np.ones((3, 3)))}
    return [*(bytes([i]) + found[kind] for i, kind in enumerate(kinds)),
            *(bytes([8 * i + 7]) + messages.encode(message) for i, message in commands.items())]


def _steps(data: bytes) -> None:
    """The first byte chooses the record or the event."""
    parsers: tuple[Callable[[bytes], Any], ...] = (
        steplog.StepRecord.decode, steplog.SentRecord.decode, steplog.read_event, steplog.read_info)
    if data:
        parsers[data[0] % 4](data[1:])


def _records() -> dict[int, bytes]:
    one, two = np.ones(1), np.ones(2)
    step = steplog.StepRecord(one, one, two, two, np.ones(7), one, np.zeros(4), one, two, two, two, one, one, one)
    event = {"event": "start", "episode": 1, "goal": [0.1, 0.2, 0.3], "continuous": False}
    contract = json.loads(_contracts()[0])
    contract["robot"]["supervised"] = True
    info = {"policy": "p.onnx", "sha256": "ab", "contract": contract}
    return {0: step.encode(), 1: steplog.SentRecord(two, two, two, two, one).encode(),
            2: messages.encode(messages.string(json.dumps(event))),
            3: messages.encode(messages.string(json.dumps(info)))}


def _stepped() -> list[bytes]:
    return [bytes([i]) + data for i, data in _records().items()]


def _episode(data: bytes) -> None:
    """A bag in which the message that the first byte chooses is replaced by the rest, looked at as a report does."""
    folder = FOLDER / "episode"
    shutil.rmtree(folder, ignore_errors=True)
    writer = bag.BagWriter(folder, flush_s=1e9)
    topics = [steplog.STEP_TOPIC, steplog.SENT_TOPIC, steplog.EPISODE_TOPIC, steplog.INFO_TOPIC]
    for topic in topics:
        writer.add_topic(f"/{topic}", "std_msgs/msg/String")
    payloads = dict(_RECORDS or _RECORDS.update(_records()) or _RECORDS)
    if data:
        payloads[data[0] % 4] = data[1:]
    for i, payload in payloads.items():
        writer.write(f"/{topics[i]}", payload, 1 + i, 1 + i)
    writer.close()
    log = steplog.read_episode(folder)
    steplog.outcome(log.end)


_RECORDS: dict[int, bytes] = {}


# --- servos

class _Line:
    """A serial line on which these bytes come in, and then the cable is pulled."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = 1) -> bytes:
        if not self._data:
            raise OSError("gone")
        got, self._data = self._data[:size], self._data[size:]
        return got

    def write(self, b: bytes, /) -> int:
        return len(b)

    def reset_input_buffer(self) -> None: ...

    def close(self) -> None: ...


def _servo(data: bytes) -> None:
    whole, pieces = feetech.Parser(), feetech.Parser()
    found = whole.feed(data)
    assert found == [one for i in range(len(data)) for one in pieces.feed(data[i:i + 1])]
    assert whole.bad == pieces.bad
    for one in found:
        assert feetech.packet(*one) in data
        feetech.faults(one.code)
    with mock.patch("hardware.feetech.serial.Serial", return_value=_Line(data)):
        bus = feetech.ServoBus("line")
    for part in bus.sync_read([1, 2], feetech.FEEDBACK).values():
        assert len(part) == feetech.FEEDBACK.size
        feetech.number(feetech.POSITION, part[:2])


def _servos() -> list[bytes]:
    state = bytes(range(feetech.FEEDBACK.size))
    return [feetech.packet(1, 0, state) + feetech.packet(2, 32, state), feetech.packet(1, 0),
            b"\xff\xff\xff\xff\1\2\0\xfc"]


def _jpeg(data: bytes) -> None:
    picture = image.from_jpeg(np.frombuffer(data, np.uint8))
    assert picture.ndim == 3 and picture.shape[2] == 3


def _jpegs() -> list[bytes]:
    picture = np.random.default_rng(0).integers(0, 255, (16, 24, 3)).astype(np.uint8)
    return [image.to_jpeg(picture, quality).tobytes() for quality in (20, 90)]


TARGETS = {
    "robot": Target(_robot, spec.SpecError, lambda: [p.read_bytes() for p in sorted(MODELS.glob("*/robot.yaml"))],
                    YAML_WORDS),
    "camera": Target(_camera, spec.SpecError, lambda: [CAMERA.encode()], YAML_WORDS),
    "arm": Target(_arm, spec.SpecError, _arms, YAML_WORDS),
    "latency": Target(_latency, spec.SpecError, _latencies, JSON_WORDS),
    "contract": Target(_contract, spec.SpecError, _contracts, JSON_WORDS),
    "onnx": Target(_onnx, spec.SpecError, _onnxes, LENGTHS),
    "mcap": Target(_mcap, bag.BagError, _mcaps, LENGTHS),
    "metadata": Target(_metadata, bag.BagError, _metadatas, YAML_WORDS),
    "cdr": Target(_cdr, ValueError, _cdrs, LENGTHS),
    "readings": Target(_readings, ValueError, _readables, LENGTHS),
    "steps": Target(_steps, ValueError, _stepped, LENGTHS + JSON_WORDS),
    "episode": Target(_episode, spec.SpecError, _stepped, LENGTHS + JSON_WORDS),
    "servo": Target(_servo, feetech.BusError, _servos, (b"\xff\xff", b"\xff\xff\xff")),
    "jpeg": Target(_jpeg, ValueError, _jpegs, (b"\xff\xc0", b"\xff\xd8", b"\xff\xd9", b"\xff\xff")),
}
