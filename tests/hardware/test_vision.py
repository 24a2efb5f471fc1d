"""Policies that see, on a robot process with cameras: what they saw is what its log gives back."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

import sim
from hardware import messages
from hardware.robot_io import RobotIO, decode, encode
from robot_rl.finetune import bags_in
from robot_rl.policy import Policy, seal
from robot_rl.spec import PolicySpec, SpecError, Vision
from robot_rl.steplog import read_episode
from sim.offscreen import RenderError, backend
from tests.processes import figures, start
from tests.robots import CAMERAS, contract, robot

onnx = pytest.importorskip("onnx")


def brightness(spec: PolicySpec, path: Path, frames: Sequence[int] | None = None) -> Path:
    """A policy whose actions are the mean brightness of its first channels; `frames` is what its graph takes."""
    from onnx import TensorProto as Kind
    from onnx import helper
    shape = spec.vision.shape if frames is None and spec.vision else frames
    made = helper.make_tensor_value_info
    inputs = [made("obs", Kind.FLOAT, ["B", spec.observation_size]), made("noise", Kind.FLOAT, ["B", spec.action_size])]
    inputs += [made("frames", Kind.UINT8, ["B", *shape])] if shape else []
    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=Kind.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "axes"], ["means"], keepdims=0),
        helper.make_node("Slice", ["means", "first", "last", "second"], ["some"]),
        helper.make_node("Mul", ["some", "scale"], ["action"]),
    ] if shape else [helper.make_node("Identity", ["noise"], ["action"])]
    numbers = {"axes": [2, 3], "first": [0], "last": [spec.action_size], "second": [1]}
    constants = [helper.make_tensor(name, Kind.INT64, [len(v)], v) for name, v in numbers.items()]
    constants.append(helper.make_tensor("scale", Kind.FLOAT, [1], [0.001]))
    graph = helper.make_graph(nodes, "brightness", inputs, [made("action", Kind.FLOAT, ["B", spec.action_size])],
                              constants if shape else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(seal(model.SerializeToString(), spec.to_json()))
    return path


@pytest.fixture
def small() -> PolicySpec:
    return contract(body=robot(cameras=CAMERAS), vision=Vision(cameras=("front",), height=6, width=8))


def test_a_policy_is_fed_its_frames(small: PolicySpec, tmp_path: Path) -> None:
    policy = Policy(brightness(small, tmp_path / "p.onnx"))
    policy.warm_up(2)
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 8)).astype(np.uint8)
    action = policy({"state": np.zeros(small.observation_size, np.float32), "frames": frames})
    np.testing.assert_allclose(action, frames.mean((1, 2))[:2] * 0.001, rtol=1e-5)


@pytest.mark.parametrize("frames", [(), (3, 6, 9), (6, 6, 8)])
def test_a_graph_that_sees_otherwise_than_its_contract_is_refused(small, tmp_path, frames) -> None:
    with pytest.raises(SpecError, match=r"'frames' is .* in the network, .*3, 6, 8.* in its contract"):
        Policy(brightness(small, tmp_path / "p.onnx", frames))
    blind = msgspec.structs.replace(small, vision=None)
    with pytest.raises(SpecError, match=r"'frames' is .*3, 6, 8.* in the network, absent in its contract"):
        Policy(brightness(blind, tmp_path / "p.onnx", (3, 6, 8)))


class Wire:
    """A bus of which every topic says what it was last told, again and again while it is live."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}
        self.live = True

    def publisher(self, topic: str, *_: object) -> Any:
        return SimpleNamespace(publish=lambda data: None, matched=lambda: 1)

    def reader(self, topic: str, *_: object) -> Any:
        return SimpleNamespace(newest=lambda: self._newest(topic))

    def resolve(self, name: str) -> str:
        return name

    def _newest(self, topic: str) -> Any:
        said = self.said.get(topic)
        return SimpleNamespace(**vars(said)) if said is not None and self.live else said

    def say(self, topic: str, data: bytes, stamp_ns: int) -> None:
        self.said[topic] = SimpleNamespace(data=data, stamp_ns=stamp_ns, arrival_ns=0)


def test_images_are_read_once_with_stamp_and_age_and_silent_cameras_are_named(small: PolicySpec) -> None:
    wire, body = Wire(), small.robot
    assert body is not None
    io = RobotIO(body, wire, small.cameras)  # type: ignore[arg-type]
    values = {"joints.position": np.zeros(3), "joints.velocity": np.zeros(3), "joints.effort": np.zeros(3),
              "tip.position": np.zeros(3), "tip.orientation": np.array([0, 0, 0, 1.0])}
    for sensor in body.sensors:
        wire.say(sensor.topic, encode(sensor, values, 5, body), 5)
    with pytest.raises(TimeoutError, match=r"front on front/image_raw \(sensor_msgs/msg/Image\)$"):
        io.wait(0.0)  # the wrist camera is not in use, so nobody waits for it
    camera = small.cameras[0]
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    wire.say(camera.topic, encode(camera, {"front.image": picture}, 7, body), 7)
    io.wait(0.0)
    wire.live = False
    first, again = io.read(), io.read()
    np.testing.assert_array_equal(first.values["front.image"], picture)
    assert first.values["front.image"] is again.values["front.image"]
    assert first.stamps["front"] == 7 and first.ages["front"] > 0
    message = messages.image(8, "front", picture)
    message.encoding = "mono16"
    wire.say(camera.topic, messages.encode(message), 8)
    said = r"camera 'front' on front/image_raw: image encoding 'mono16'"
    assert "front.image" not in io.read().values and re.match(said, io.refused["front"])
    with pytest.raises(SpecError, match=said):
        io.wait(0.0)
    wire.say(camera.topic, encode(camera, {"front.image": picture}, 9, body), 9)
    assert io.read().stamps["front"] == 9 and not io.refused


def test_row_padding_and_order_of_colours_are_undone(small: PolicySpec) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    padded = np.zeros((6, 32), np.uint8)
    padded[:, :24] = picture[..., ::-1].reshape(6, 24)
    message = messages.image(1, "front", picture)
    message.encoding, message.step, message.data = "bgr8", 32, padded.reshape(-1)
    body = small.robot
    assert body is not None
    np.testing.assert_array_equal(decode(small.cameras[0], messages.encode(message), body)["front.image"], picture)
    message.step = 24
    with pytest.raises(SpecError, match=r"8x6 pixels in rows of 24 bytes has 192 bytes"):
        decode(small.cameras[0], messages.encode(message), body)


@pytest.fixture
def filmed(domain: int) -> Iterator[subprocess.Popen]:
    """The robot with the cube, its cameras on."""
    try:
        backend()
    except RenderError as error:
        pytest.skip(str(error))
    process = start("sim-robot", "so101-cube", "--bus", "dds", "--domain", domain)
    assert process.stdout is not None and "ready" in process.stdout.readline()
    yield process
    process.send_signal(signal.SIGCONT)
    process.terminate()
    assert process.wait(10) == 0


def test_what_a_policy_saw_on_the_robot_is_what_its_log_gives_back(filmed, domain, tmp_path) -> None:
    pytest.importorskip("cv2")
    spec, _ = sim.task_spec("so101-lift-camera")
    assert spec.vision is not None
    spec = msgspec.structs.replace(spec, vision=msgspec.structs.replace(spec.vision, stack=2), time_limit_s=2.0)
    file = brightness(spec, tmp_path / "p.onnx")
    where = ("--robot", "so101-cube", "--bus", "dds", "--domain", domain, "--record", tmp_path / "bags")
    refused = start("deploy", file, *where, "--no-cameras")
    assert refused.wait(60) == 2
    assert refused.stderr is not None
    said = refused.stderr.read()
    assert "--no-cameras" in said and "front, wrist" in said and "Traceback" not in said

    assert figures(start("deploy", file, *where, "--json"))["ticks"] == 41
    (bag,) = bags_in(tmp_path / "bags")
    log, policy, distinct = read_episode(bag), Policy(file), set()
    for (outcome, _), record in zip(log.replayed(), log.records, strict=True):
        observation = outcome.observation
        assert isinstance(observation, dict)
        np.testing.assert_array_equal(observation["state"], record.observation.astype(np.float32))
        distinct.add(observation["frames"].tobytes())
        if np.isfinite(record.asked).all():
            np.testing.assert_array_equal(policy(observation), record.asked.astype(np.float32))  # it saw these pixels
    assert len(distinct) > 8  # the cameras went on filming
    assert len({int(r.inputs.reshape(-1, 2)[-1, 1]) for r in log.records}) > 8
