"""Every robot that comes with the package: its file, its model, and the two of them as a process that stops safely."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import msgspec
import mujoco
import numpy as np
import pytest

from hardware.bus import connect
from hardware.robot_io import RobotIO
from robot_rl.episode import Episode
from robot_rl.observe import Readings
from robot_rl.safety import Reason
from robot_rl.spec import PD, ActionSpec, PolicySpec, RobotSpec, Term, load_robot, mjcf_file, policy_spec
from sim.robot import SimRobot
from sim.wiring import TOLERANCE

ROBOTS = sorted(p.parent.name for p in Path(str(files("models"))).glob("*/robot.yaml"))


def moving(robot: RobotSpec) -> PolicySpec:
    """Every actuated joint a little about its default."""
    joints = tuple(j.name for j in robot.actuated)
    pushes = robot.command.interface == "effort"
    scale = tuple(0.05 * j.effort if pushes else 0.005 if j.velocity < 1 else 0.1 for j in robot.actuated)
    offset = tuple(0.0 if pushes else np.clip(j.default, (j.lower or -9) + s, (j.upper or 9) - s)
                   for j, s in zip(robot.actuated, scale, strict=True))
    return policy_spec(robot, task="move", rate_hz=20, time_limit_s=60.0, rewards=(),
                       observations=(Term(name="joints", source="joints.position"),),
                       action=ActionSpec(kind="absolute", joints=joints, scale=scale, offset=offset))


@pytest.mark.parametrize("name", ROBOTS)
def test_a_robot_file_fits_its_model_by_name_and_in_its_limits(name: str) -> None:
    spec = load_robot(name)
    assert spec.robot == name
    assert (Path(str(mjcf_file(name))).parent / "README.md").is_file()
    sim = SimRobot(spec, mjcf_file(name))  # joints, actuators, sensors and cameras are there, or it is refused
    for joint in spec.joints:
        lower, upper = sim.model.joint(joint.name).range
        if sim.model.joint(joint.name).limited[0]:
            assert joint.lower is not None and joint.upper is not None
            assert lower - TOLERANCE <= joint.lower < joint.upper <= upper + TOLERANCE
    for joint in spec.actuated:
        strongest = np.abs(sim.model.actuator(joint.name).forcerange).max()
        assert joint.effort <= strongest + TOLERANCE
    if spec.workspace:
        position = sim.readings()[f"{spec.workspace.sensor}.position"]
        assert (position > spec.workspace.lower).all() and (position < spec.workspace.upper).all()


@pytest.mark.parametrize("name", ROBOTS)
def test_everything_in_a_model_has_a_name_and_no_mesh_is_in_it(name: str) -> None:
    model = SimRobot(load_robot(name), mjcf_file(name)).model
    assert model.nmesh == 0
    kinds = {mujoco.mjtObj.mjOBJ_BODY: model.nbody, mujoco.mjtObj.mjOBJ_JOINT: model.njnt,
             mujoco.mjtObj.mjOBJ_GEOM: model.ngeom, mujoco.mjtObj.mjOBJ_ACTUATOR: model.nu}
    assert not [(kind, i) for kind, count in kinds.items() for i in range(count)
                if mujoco.mj_id2name(model, kind, i) is None]
    collides = (model.geom_contype | model.geom_conaffinity) != 0
    assert not (collides & (model.geom_group == 2)).any()


@pytest.fixture
def running(request: pytest.FixtureRequest, domain: int) -> Iterator[tuple[RobotSpec, RobotIO]]:
    """A robot as a process of its own, and its topics."""
    process = subprocess.Popen([sys.executable, "-m", "robot_rl.cli", "sim-robot", request.param, "--bus", "dds",
                                "--domain", str(domain), "--no-cameras"], stdout=subprocess.PIPE, text=True)
    spec = load_robot(request.param)
    patient = tuple(msgspec.structs.replace(s, stale_after_s=5.0) for s in spec.sensors)  # this machine may be busy
    spec = msgspec.structs.replace(spec, sensors=patient)
    try:
        assert process.stdout is not None and "ready" in process.stdout.readline()
        with connect("dds", "policy", "", domain) as bus:
            io = RobotIO(spec, bus)
            io.wait(30.0)
            yield spec, io
    finally:
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("running", ROBOTS, indirect=True)
def test_a_robot_moves_by_its_topics_and_stops_safely(running: tuple[RobotSpec, RobotIO]) -> None:
    spec, io = running
    episode = Episode(moving(spec))
    episode.begin()
    rows = []
    for tick in range(20):
        readings = io.read()
        outcome = episode.observe(readings)
        assert not outcome.faults
        rows.append(readings.values["joints.position"][spec.actuated_index])
        io.send(episode.act(np.full(len(spec.actuated), np.sign(np.sin(tick / 3.0)))).sent)
        time.sleep(0.05)
    moved = np.ptp(rows, axis=0)
    assert (moved > np.where([j.velocity < 1 for j in spec.actuated], 0.002, 0.01)).all(), moved
    episode.halt(Reason.STOP)
    readings = io.read()
    assert episode.observe(readings).done
    command = episode.stop(readings)
    assert command is not None
    io.stop(command)
    rest(spec, io)
    joints = io.read().values["joints.position"][spec.actuated_index]
    if spec.stop == "hold":
        np.testing.assert_allclose(joints, command, atol=0.1)


def rest(spec: RobotSpec, io: RobotIO) -> None:
    """Wait until every actuated joint has stopped, inside its limits.

    What lets go coasts into the ends of its travel, which give, and may come to rest against them.
    """
    end, holds = time.monotonic() + 20.0, spec.stop == "hold"
    beyond = 0.2 if holds else 0.22
    while True:
        time.sleep(0.05)
        seen = io.read()
        before, after = seen.values["joints.position"], _later(io, 0.2).values["joints.position"]
        slow = (np.abs(after - before)[spec.actuated_index] < 0.01).all()
        for joint, position in zip(spec.joints, after, strict=True):
            if (holds or slow) and joint.lower is not None and joint.upper is not None:
                assert joint.lower - beyond < position < joint.upper + beyond, joint.name
        if slow:
            return
        assert time.monotonic() < end, (before, after)


def _later(io: RobotIO, seconds: float) -> Readings:
    time.sleep(seconds)
    return io.read()


@pytest.mark.parametrize("running", [name for name in ROBOTS if load_robot(name).stop != "hold"], indirect=True)
def test_a_robot_that_does_not_hold_lets_go_when_commands_cease(running: tuple[RobotSpec, RobotIO]) -> None:
    spec, io = running
    episode = Episode(moving(spec))
    episode.begin()
    for tick in range(5):
        episode.observe(io.read())
        io.send(episode.act(np.full(len(spec.actuated), (-1.0) ** tick)).sent)
        time.sleep(0.05)
    rest(spec, io)  # nobody said stop: the robot's own watchdog did
    if all(to.type == PD for to in spec.command_topics):
        assert np.abs(io.read().values["joints.effort"]).max() < 0.5 * max(j.effort for j in spec.joints)
