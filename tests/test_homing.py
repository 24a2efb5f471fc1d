"""Joint paths are checked before they are driven, and kinematics agree with MuJoCo's."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest

from robot_rl.homing import Homing, plan
from robot_rl.kinematics import Chain, chains, guarded
from robot_rl.spec import SpecError, load_robot, mjcf_file
from tests.robots import robot


def test_a_path_is_straight_at_the_speed_of_its_fastest_joint() -> None:
    homing = Homing(robot(), np.array([-0.9, 0.5, 3.0]), now=10.0, speed=0.5)
    still = np.zeros(3)
    np.testing.assert_allclose(homing.command(still, still, 10.0), [-0.9, 0.5])
    np.testing.assert_allclose(homing.command(still, still, 11.0), [-0.4, 0.25])
    np.testing.assert_allclose(homing.command(still, still, 99.0), [0.1, 0.0])
    assert homing.path_s == pytest.approx(2.0)


def test_no_joint_goes_faster_than_it_may() -> None:
    homing = Homing(robot(), np.array([0.1, 0.8, 0.0]), now=0.0, speed=5.0)  # b: 0.8 rad at 1 rad/s
    assert homing.path_s == pytest.approx(0.8)


@pytest.mark.parametrize("goal, words", [
    ([1.2, 0.0], "joint 'a' should go to 1.2, its limits are -1.0 and 1.0"),
    ([np.nan, 0.0], "joint 'a' is at 0 and should go to nan"),
])
def test_a_goal_that_no_joint_may_reach_is_refused(goal: list[float], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        plan(robot(), np.zeros(3), np.array(goal), None)


def test_a_joint_outside_its_limits_comes_back() -> None:
    points = plan(robot(), np.array([1.4, 0.0, 0.0]), np.array([0.5, 0.0]), None)
    np.testing.assert_array_equal(points, [[1.4, 0.0], [0.5, 0.0]])


@pytest.fixture(scope="module")
def arm() -> tuple:
    spec = load_robot("so101")
    return spec, guarded(spec, mjcf_file("so101"))


def heights(chain: Chain, points: np.ndarray) -> np.ndarray:
    legs = [np.linspace(a, b, 80) for a, b in itertools.pairwise(points)]
    return np.array([chain.pose(pose)[0] for pose in np.concatenate(legs)])[:, 2]


def test_a_path_through_the_table_is_driven_another_way(arm: tuple) -> None:
    spec, chain = arm
    start = np.array([1.2, 0.1, 0.5, 1.2, 0.0, 0.0])
    goal = np.array([-0.7, 0.5, 1.1, -1.5, 0.0, 0.0])
    assert heights(chain, np.stack([start, goal])).min() < -0.02  # the straight way is not free
    points = plan(spec, start, goal, chain)
    assert len(points) == 3
    assert heights(chain, points).min() > -0.011
    np.testing.assert_array_equal(points[[0, -1]], [start, goal])


def test_a_goal_below_the_table_is_refused_with_box_and_depth(arm: tuple) -> None:
    spec, chain = arm
    with pytest.raises(SpecError, match=r"tip would end 0\.\d+ m outside its workspace \(-0.3, -0.45, 0.0\)"):
        plan(spec, np.zeros(6), np.array([0.0, 1.7, 0.0, 0.0, 0.0, 0.0]), chain)


def test_kinematics_are_mujocos(arm: tuple) -> None:
    mujoco = pytest.importorskip("mujoco")
    from hardware.messages import xyzw
    for name in ("so101", "so101-cube"):
        spec, file = load_robot(name), mjcf_file(name)
        model = mujoco.MjModel.from_xml_path(str(file))
        data, found = mujoco.MjData(model), chains(spec, file)
        assert list(found) == ["tip"]  # the cube's pose is not told by joints
        rng = np.random.default_rng(0)
        for _ in range(20):
            joints = rng.uniform(-1.5, 1.5, len(spec.joints))
            for joint, value in zip(spec.names, joints, strict=True):
                data.joint(joint).qpos = value
            mujoco.mj_kinematics(model, data)
            place, turn = found["tip"].pose(joints)
            np.testing.assert_allclose(place, data.site("tip").xpos, atol=1e-9)
            theirs = np.empty(4)
            mujoco.mju_mat2Quat(theirs, data.site("tip").xmat)
            assert abs(xyzw(theirs) @ turn) == pytest.approx(1.0, abs=1e-9)


MODEL = """<mujoco>
  <compiler eulerseq="XYZ"/>
  <default>
    <joint axis="0 0 2"/>
    <default class="bent"><joint axis="1 1 0" pos="0.1 0 0" ref="20"/></default>
  </default>
  <worldbody>
    <body name="base" pos="1 2 3" quat="0.5 0.5 0.5 0.5">
      <frame pos="0.3 0 0" axisangle="0 1 0 40">
        <body name="one" euler="10 20 30" childclass="bent">
          <joint name="a"/>
          <joint name="b" type="slide" axis="0 0 1" class="main"/>
          <geom size="0.1"/>
          <body name="two" pos="0 0.2 0">
            <joint name="c" axis="0 1 0"/><geom size="0.1"/><site name="end" pos="0.1 0 0"/>
          </body>
        </body>
      </frame>
    </body>
  </worldbody>
</mujoco>"""


def test_frames_defaults_angles_and_slides_are_mujocos(tmp_path: Path) -> None:
    mujoco = pytest.importorskip("mujoco")
    file = tmp_path / "model.xml"
    file.write_text(MODEL)
    model = mujoco.MjModel.from_xml_path(str(file))
    data, chain = mujoco.MjData(model), Chain(file, "end", "base", ["a", "b", "c"])
    data.qpos[:] = 0.7, -0.2, 1.1
    mujoco.mj_kinematics(model, data)
    place, _ = chain.pose(np.array([0.7, -0.2, 1.1]))
    base = data.body("base")
    np.testing.assert_allclose(place, base.xmat.reshape(3, 3).T @ (data.site("end").xpos - base.xpos), atol=1e-9)


@pytest.mark.parametrize("old, new, words", [
    ('euler="10 20 30"', 'zaxis="0 1 0"', "body 'one' zaxis: write it as quat"),
    ('type="slide"', 'type="ball"', "joint 'b' is a ball"),
    ('name="end"', 'name="start"', "no site 'end'"),
    ('name="c"', 'name="d"', "joint 'd' is on the way, the robot has a, b, c"),
    ("</mujoco>", "", "model.xml"),
])
def test_a_model_that_is_not_understood_is_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "model.xml"
    file.write_text(MODEL.replace(old, new))
    with pytest.raises(SpecError, match=words):
        Chain(file, "end", "base", ["a", "b", "c"])


def test_robots_without_a_guarded_frame_have_no_chain() -> None:
    assert guarded(load_robot("furuta"), mjcf_file("furuta")) is None
    spec = load_robot("so101")
    blind = msgspec.structs.replace(spec, sensors=tuple(
        msgspec.structs.replace(s, site=None) for s in spec.sensors))
    assert guarded(blind, mjcf_file("so101")) is None  # somebody looks from outside

