"""The contract: round trip, names checked, errors that name both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.spec import Goal, PolicySpec, SpecError, Vision, load_robot, mjcf_file
from tests.robots import CAMERAS, contract, robot


def test_round_trip_is_exact() -> None:
    spec = contract()
    assert PolicySpec.from_json(spec.to_json()) == spec


@given(st.floats(min_value=1e-300, max_value=1e300, allow_nan=False))
def test_floats_survive_json_in_full(value: float) -> None:
    spec = msgspec.structs.replace(contract(), rate_hz=value)
    assert PolicySpec.from_json(spec.to_json()).rate_hz == value


def test_sizes_are_filled_in() -> None:
    spec = contract()
    assert [t.size for t in spec.observations] == [3, 2, 2, 6, 2, 1, 1]
    assert spec.observation_size == 17
    assert spec.action_size == 2


def test_robot_with_joints_in_another_order_fits() -> None:
    spec, body = contract(), robot()
    swapped = msgspec.structs.replace(body, joints=body.joints[::-1])
    assert spec.on(swapped).robot.names == ("a", "b", "c")


@pytest.mark.parametrize(("change", "words"), [
    (lambda r: {"joints": r.joints[1:]}, ["joint 'a'", "the robot has b, c"]),
    (lambda r: {"command": msgspec.structs.replace(r.command, interface="velocity"), "stop": "zero"},
     ["command.interface", "policy position", "robot velocity"]),
    (lambda r: {"joints": (msgspec.structs.replace(r.joints[0], upper=0.9), *r.joints[1:])},
     ["joint 'a' upper", "1.0", "0.9"]),
    (lambda r: {"sensors": r.sensors[:1], "workspace": None}, ["sensor 'tip'", "has none"]),
])
def test_a_robot_that_does_not_fit_is_refused_with_both_sides(change, words) -> None:
    body = robot()
    with pytest.raises(SpecError) as refused:
        contract().on(msgspec.structs.replace(body, **change(body)), "policy p.onnx")
    for word in ["p.onnx", *words]:
        assert word in str(refused.value)


def test_a_suite_policy_has_no_robot_to_run_on() -> None:
    spec = PolicySpec(task="dmc:cheetah-run", rate_hz=1, time_limit_s=1, observation_size=17, action_size=6)
    with pytest.raises(SpecError, match="declares no robot"):
        spec.on(robot())


@pytest.mark.parametrize(("key", "value", "words"), [
    ("stop", "fly", ["stop", "fly"]),
    ("speed", 3, ["speed"]),
    ("joints", [{"name": "a", "lower": 1.0, "upper": -1.0, "velocity": 1, "effort": 1}], ["lower=1.0", "upper=-1.0"]),
    ("joints", [{"name": "a", "lower": -1.0, "upper": 1.0, "velocity": 0, "effort": 1}], ["velocity=0"]),
    ("joints", [{"name": "a", "velocity": 1, "effort": 1}] * 2, ["named twice: a"]),
    ("watchdog", {"kind": "driver"}, ["watchdog.kind=driver", "timeout_s=None"]),
    ("watchdog", {"kind": "none", "timeout_s": 1.0}, ["watchdog.kind=none", "timeout_s=1.0"]),
    ("watchdog", {"kind": "controller", "timeout_s": -1.0}, ["watchdog.kind=controller", "timeout_s=-1.0"]),
    ("supervisor", {"heartbeat_s": 0.0}, ["supervisor.heartbeat_s=0.0", "above 0"]),
    ("supervisor", {"margin": -0.1}, ["supervisor.margin=-0.1", "at least 0"]),
    ("supervisor", {"actions": {"sensors": "warn"}}, ["supervisor.actions.sensors=warn", "looser than stop"]),
    ("supervisor", {"actions": {"senors": "stop"}}, ["'senors'", "sensors"]),
    ("workspace", {"sensor": "hand", "lower": [0, 0, 0], "upper": [1, 1, 1]}, ["hand", "tip"]),
])
def test_a_bad_robot_file_names_file_key_and_value(tmp_path: Path, key: str, value: object, words: list[str]) -> None:
    data = msgspec.to_builtins(robot()) | {key: value}
    path = tmp_path / "robot.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(SpecError) as refused:
        load_robot(str(path))
    for word in [str(path), *words]:
        assert word in str(refused.value)


def test_unknown_robot_lists_the_known() -> None:
    with pytest.raises(SpecError, match="furuta, quadruped, so101"):
        load_robot("so100")


@pytest.mark.parametrize("name", ["so101", "furuta"])
def test_packaged_robots_load(name: str) -> None:
    assert load_robot(name).robot == name
    assert mjcf_file(name).is_file()


def test_unknown_source_lists_what_there_is() -> None:
    from robot_rl.spec import Term
    with pytest.raises(SpecError, match=r"joints\.torque.*joints\.effort"):
        contract(observations=(Term(name="x", source="joints.torque"),))


def test_goals_lie_in_the_cylinder_and_repeat_under_a_seed() -> None:
    goal = contract().goal
    points = np.array([goal.sample(np.random.default_rng(s)) for s in range(200)])
    radius = np.hypot(points[:, 0], points[:, 1])
    assert radius.min() >= 0.1
    assert radius.max() <= 0.3
    assert np.array_equal(goal.sample(np.random.default_rng(3)), points[3])


def seeing(**vision: Any) -> PolicySpec:
    return contract(body=robot(cameras=CAMERAS), vision=Vision(**({"cameras": ("wrist", "front"), "height": 3,
                                                                  "width": 4} | vision)))


def test_vision_is_part_of_the_contract() -> None:
    spec = seeing(stack=2)
    assert PolicySpec.from_json(spec.to_json()) == spec
    assert spec.vision is not None and spec.robot is not None
    assert (spec.vision.frame, spec.vision.shape) == ((6, 3, 4), (12, 3, 4))
    assert [camera.name for camera in spec.cameras] == ["wrist", "front"]
    assert [part.name for part in spec.inputs] == ["joints", "tip", "wrist", "front"]
    assert spec.observation_size == contract().observation_size


def test_a_contract_from_before_there_was_vision_reads_as_it_did() -> None:
    old = msgspec.json.decode(contract().to_json())
    del old["vision"]
    assert PolicySpec.from_json(msgspec.json.encode(old)) == contract()


@pytest.mark.parametrize(("vision", "words"), [
    ({"cameras": ("front", "top")}, ["camera 'top'", "triple has front, wrist"]),
    ({"cameras": ("front", "front")}, ["named twice: front"]),
    ({"cameras": ()}, ["at least one camera"]),
    ({"stack": 0}, ["stack=0"]),
    ({"width": 0}, ["width=0"]),
    ({"height": 7, "width": 7}, ["camera 'wrist'", "8x6", "7x7"]),
    ({"height": 3, "width": 5}, ["camera 'wrist'", "8x6", "5x3"]),  # wider than what the camera films
])
def test_vision_that_the_cameras_do_not_offer_is_refused(vision, words) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the words are checked)
        seeing(**vision)
    for word in words:
        assert word in str(refused.value)


def test_a_robot_without_the_cameras_in_use_is_refused_with_both_sides() -> None:
    spec, blind = seeing(cameras=("front",)), robot(cameras=CAMERAS[1:])
    with pytest.raises(SpecError, match=r"camera 'front': the policy sees through it, triple has wrist"):
        spec.on(blind)
    with pytest.raises(SpecError, match=r"camera 'front'.*triple has none"):
        spec.on(robot())
    assert spec.on(robot(cameras=CAMERAS[:1])).cameras == spec.cameras  # what it does not use may be missing


@pytest.mark.parametrize(("place", "frame", "words"), [
    ((0.0, 0.2, 0.1), "base_link", None), ((-0.2, -1e-9, 0.1), "base_link", None),
    ((0.2, -0.01, 0.1), "base_link", "azimuth"), ((0.5, 0.0, 0.1), "base_link", "radius"),
    ((0.2, 0.0, 0.3), "base_link", "height"), ((np.nan, 0.0, 0.1), "base_link", "nan"),
    ((0.0, 0.2, 0.1), "map", "'map', the policy's are in 'base_link'")])
def test_a_goal_that_the_policy_does_not_know_is_refused(place, frame, words) -> None:
    goal = Goal(lower=(0.1, 0.0, 0.0), upper=(0.3, np.pi, 0.2))
    if words is None:
        goal.check(np.array(place), frame)
    else:
        with pytest.raises(SpecError, match=words):
            goal.check(np.array(place), frame)
