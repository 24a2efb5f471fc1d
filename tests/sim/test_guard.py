"""The guard by kinematics, held against MuJoCo, and what it lets a command do."""

from __future__ import annotations

from pathlib import Path

import msgspec
import mujoco
import numpy as np
import pytest

from robot_rl.guard import Guard, Links
from robot_rl.safety import Reason
from robot_rl.spec import RobotSpec, SpecError, Supervision, load_robot, mjcf_file
from robot_rl.stop import Flag

ARMS = ("so101", "so101-cube")
BOX_GRAIN_M = 0.0015  # a box is measured at points along the capsule


def poses(robot: RobotSpec, count: int) -> np.ndarray:
    """(N, J) anywhere in the joints' ranges."""
    rng = np.random.default_rng(0)
    lower, upper = ([getattr(joint, key) for joint in robot.joints] for key in ("lower", "upper"))
    return rng.uniform(lower, upper, (count, len(robot.joints)))


def guarded(**told: object) -> tuple[RobotSpec, Guard]:
    robot = msgspec.structs.replace(load_robot("so101"), supervisor=Supervision(**told))  # type: ignore[arg-type]
    return robot, Guard(robot, mjcf_file("so101"))


@pytest.mark.parametrize("name", ARMS)
def test_links_are_where_mujoco_has_them_and_as_far_apart(name: str) -> None:
    robot, file = load_robot(name), mjcf_file(name)
    links, model = Links(file, robot.names), mujoco.MjModel.from_xml_path(str(file))
    data, spots = mujoco.MjData(model), poses(robot, 40)
    ours = links.distances(spots)
    assert len(links.pairs) >= 8
    for joints, found in zip(spots, ours, strict=True):
        for joint, value in zip(robot.names, joints, strict=True):
            data.joint(joint).qpos = value
        mujoco.mj_kinematics(model, data)
        for (a, b), distance in zip(links.pairs, found, strict=True):
            one, other = links.hulls[a], links.hulls[b]
            theirs = mujoco.mj_geomDistance(model, data, model.geom(one.name).id, model.geom(other.name).id, 10.0, None)
            near = 1e-6 if one.half is None and other.half is None else BOX_GRAIN_M
            if theirs > 0:  # where they overlap, how deep is a matter of definition
                assert theirs - 1e-6 <= distance <= theirs + near, (one.name, other.name)
            else:
                assert distance <= near, (one.name, other.name)


@pytest.mark.parametrize("name", ARMS)
def test_pairs_are_those_that_mujoco_brings_into_contact(name: str) -> None:
    robot, file = load_robot(name), mjcf_file(name)
    links, model = Links(file, robot.names), mujoco.MjModel.from_xml_path(str(file))
    data, known = mujoco.MjData(model), {h.name for h in links.hulls}
    ours = {frozenset((links.hulls[a].name, links.hulls[b].name)) for a, b in links.pairs}
    met = set()
    for joints in poses(robot, 400):
        for joint, value in zip(robot.names, joints, strict=True):
            data.joint(joint).qpos = value
        mujoco.mj_kinematics(model, data)
        mujoco.mj_collision(model, data)
        met |= {frozenset(model.geom(int(g)).name for g in contact.geom) for contact in data.contact}
    met = {pair for pair in met if pair <= known}
    assert len(met) >= 4
    assert met <= ours


def test_a_command_into_the_base_is_held_back() -> None:
    robot, guard = guarded(margin=0.005)
    links = Links(mjcf_file("so101"), robot.names)
    spots = poses(robot, 400)
    near = links.distances(spots).min(axis=1)
    free, hit = spots[near > 0.03], spots[near < -0.002]
    assert len(free) > 20
    assert len(hit) > 20
    assert guard.check(free[0]) is Flag.NONE
    assert guard.check(hit[0]) == Flag.COLLISION
    held = 0
    for start, goal in zip(free[:20], hit[:20], strict=True):
        command, reasons = guard.limit(goal, start, start, 0.05)
        share = (command - start)[0] / (goal - start)[0]
        assert 0.0 <= share < 1.0
        assert reasons == Reason.TOOL
        assert links.distances(command[None]).min() >= 0.005 - 1e-6
        held += 1
        same, reasons = guard.limit(start, start, start, 0.05)
        np.testing.assert_array_equal(same, start)
        assert not reasons
    assert held == 20


def test_links_that_are_too_near_may_get_away_from_each_other() -> None:
    robot, guard = guarded(margin=0.005)
    links = Links(mjcf_file("so101"), robot.names)
    spots = poses(robot, 400)
    near = links.distances(spots).min(axis=1)
    start, goal = spots[near < -0.002][0], spots[near > 0.03][0]
    command, reasons = guard.limit(goal, start, start, 0.05)
    np.testing.assert_array_equal(command, goal)
    assert not reasons


def test_the_tool_stays_in_its_box_and_under_its_speed() -> None:
    robot, guard = guarded(tool_speed=0.5)
    start = np.array([j.default for j in robot.joints])
    low = start + np.array([0.0, 1.2, 0.6, 0.0, 0.0, 0.0])  # the tip would go through the table
    command, reasons = guard.limit(low, start, start, 100.0)
    assert reasons == Reason.TOOL
    assert not np.array_equal(command, low)
    turn = start + np.array([0.4, 0.0, 0.0, 0.0, 0.0, 0.0])
    slow, reasons = guard.limit(turn, start, start, 0.05)
    assert reasons == Reason.TOOL
    assert 0 < slow[0] < 0.4
    whole, reasons = guard.limit(turn, start, start, 1.0)
    np.testing.assert_array_equal(whole, turn)
    assert not reasons


def test_a_speed_without_a_tool_is_refused() -> None:
    robot = msgspec.structs.replace(load_robot("furuta"), supervisor=Supervision(tool_speed=1.0))
    with pytest.raises(SpecError, match=r"furuta.xml: supervisor.tool_speed=1.0 needs a workspace"):
        Guard(robot, mjcf_file("furuta"))


def test_a_geom_it_cannot_measure_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "egg.xml"
    file.write_text("<mujoco><worldbody><body name='a'><joint name='j'/><geom name='egg' type='ellipsoid' "
                    "size='1 1 2'/></body></worldbody></mujoco>")
    with pytest.raises(SpecError, match=r"egg.xml: geom 'egg' type=ellipsoid"):
        Links(file, ["j"])
