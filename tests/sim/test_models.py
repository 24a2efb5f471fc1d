"""The robots' models against public figures and textbook formulas."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from robot_rl.spec import load_robot, mjcf_file
from sim.robot import SimRobot

JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
ZERO, BENT, TURNED = [0] * 6, [0.5, -0.6, 0.8, 0.7, -0.4, 0.3], [-1.2, 0.9, -1.1, -0.5, 1.7, 0]

# computed from so101_new_calib.xml of the SO-ARM100 repository:
# joint angles, position (m) and orientation (w, x, y, z) of its gripper frame
KINEMATICS = [
    (ZERO, [0.391362, -0.000011, 0.226469], [0.999704, 0.024337, 0.0, 0.0]),
    (BENT, [0.230311, -0.101126, 0.074403], [0.826652, 0.299004, 0.361324, -0.310947]),
    (TURNED, [0.187062, 0.359089, 0.299768], [0.668014, -0.438556, -0.581747, 0.151648]),
    ([1.9, -1.7, 1.6, 1.6, -2.7, 1.7], [0.019954, -0.064697, -0.009814], [-0.460713, 0.525651, -0.506324, -0.505045]),
    ([0.1, 1.2, -0.3, -1.4, 2.2, -0.1], [0.407281, -0.043665, 0.109155], [-0.448925, 0.857360, 0.074798, 0.240429]),
]
# joint angles, torques against gravity (N·m), diagonal of the mass matrix without rotors (1e-3 kg·m²)
DYNAMICS = [
    (ZERO, [0, -0.5386, -0.45267, -0.11705, -0.00004, 0.00353],
     [15.28563, 16.30983, 8.60923, 0.99674, 0.04057, 0.01613]),
    (BENT, [0, -0.25044, -0.40662, -0.07523, 0.00084, 0.0026],
     [6.19082, 6.05347, 7.82575, 0.99499, 0.04576, 0.01613]),
    (TURNED, [0, -0.78463, -0.41616, -0.0897, -0.0018, -0.0001],
     [25.3443, 23.49926, 8.25675, 0.97823, 0.04057, 0.01613]),
]
MASSES = {"base_link": 0.147, "shoulder": 0.100006, "upper_arm": 0.103, "lower_arm": 0.104, "wrist": 0.079,
          "gripper": 0.087, "jaw": 0.012}
LIMITS = [(-1.91986, 1.91986), (-1.74533, 1.74533), (-1.69, 1.69), (-1.65806, 1.65806), (-2.74385, 2.84121),
          (-0.17453, 1.74533)]


def load(robot: str) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_path(str(mjcf_file(robot)))
    return model, mujoco.MjData(model)


def name(model: mujoco.MjModel, kind: mujoco.mjtObj, count: int) -> list[str | None]:
    return [mujoco.mj_id2name(model, kind, i) for i in range(count)]


@pytest.mark.parametrize("robot", ["so101", "furuta"])
def test_everything_is_named_and_the_robot_file_finds_it(robot: str) -> None:
    model, _ = load(robot)
    obj = mujoco.mjtObj
    for kind, count in ((obj.mjOBJ_BODY, model.nbody), (obj.mjOBJ_JOINT, model.njnt), (obj.mjOBJ_GEOM, model.ngeom),
                        (obj.mjOBJ_SITE, model.nsite), (obj.mjOBJ_ACTUATOR, model.nu), (obj.mjOBJ_CAMERA, model.ncam),
                        (obj.mjOBJ_LIGHT, model.nlight)):
        assert None not in name(model, kind, count)
    spec = load_robot(robot)
    assert name(model, obj.mjOBJ_JOINT, model.njnt) == list(spec.names)
    assert name(model, obj.mjOBJ_ACTUATOR, model.nu) == [j.name for j in spec.actuated]
    assert {c.name for c in spec.cameras} <= set(name(model, obj.mjOBJ_CAMERA, model.ncam))
    assert "tip" in name(model, obj.mjOBJ_SITE, model.nsite)


@pytest.mark.parametrize("robot", ["so101", "furuta"])
def test_what_is_seen_and_what_collides_are_apart(robot: str) -> None:
    model, _ = load(robot)
    collides = (model.geom_contype | model.geom_conaffinity) != 0
    seen = model.geom_group == 2
    assert not (seen & collides).any()
    assert ((model.geom_group == 3) == (collides & (np.arange(model.ngeom) != model.geom("table").id))).all()


def test_so101_names() -> None:
    model, _ = load("so101")
    assert name(model, mujoco.mjtObj.mjOBJ_JOINT, model.njnt) == JOINTS
    assert name(model, mujoco.mjtObj.mjOBJ_CAMERA, model.ncam) == ["front", "wrist"]
    assert model.body_mocapid[model.body("goal").id] == 0
    assert model.site_bodyid[model.site("tip").id] == model.body("gripper").id
    assert model.cam_bodyid[model.camera("wrist").id] == model.body("gripper").id
    assert model.cam_bodyid[model.camera("front").id] == 0


@pytest.mark.parametrize(("angles", "position", "orientation"), KINEMATICS)
def test_so101_kinematics_are_the_public_ones(angles: list, position: list, orientation: list) -> None:
    model, data = load("so101")
    data.qpos[:] = angles
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(data.site("tip").xpos, position, atol=2e-6)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, data.site("tip").xmat)
    np.testing.assert_allclose(quaternion * np.sign(quaternion @ orientation), orientation, atol=2e-6)


@pytest.mark.parametrize(("angles", "gravity", "inertia"), DYNAMICS)
def test_so101_gravity_and_inertia_are_the_public_ones(angles: list, gravity: list, inertia: list) -> None:
    model, data = load("so101")
    model.dof_armature[:] = 0
    data.qpos[:] = angles
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.qfrc_bias, gravity, atol=1e-5)
    for joint in range(6):  # what M does to a unit acceleration of one joint is a column of M
        unit, column = np.eye(6)[joint], np.empty(6)
        mujoco.mj_mulM(model, data, column, unit)
        assert column[joint] * 1e3 == pytest.approx(inertia[joint], abs=2e-5)


def test_so101_masses_and_limits_are_the_public_ones() -> None:
    model, _ = load("so101")
    assert {body: model.body_mass[model.body(body).id] for body in MASSES} == pytest.approx(MASSES, abs=1e-9)
    assert model.body_mass.sum() == pytest.approx(sum(MASSES.values()))
    np.testing.assert_allclose(model.jnt_range, LIMITS)
    np.testing.assert_allclose(model.actuator_ctrlrange, LIMITS)
    np.testing.assert_allclose(model.actuator_forcerange, [[-2.94, 2.94]] * 6)
    np.testing.assert_allclose(-model.actuator_biasprm[:, 1], 17.8)


@pytest.mark.parametrize("pose", [[0, -0.6, 0.6, 0.7, 0, 0], ZERO, [0.3, 0.6, -0.5, 0.4, 0.5, 0.2],
                                  [0, 1.4, -1.4, 0, 0, 0]])
def test_so101_servos_reach_their_targets_but_for_the_droop_of_their_gain(pose: list) -> None:
    model, data = load("so101")
    data.ctrl[:] = pose
    mujoco.mj_step(model, data, 1500)
    error = data.qpos - data.ctrl
    assert np.abs(data.qvel).max() < 1e-3
    assert np.abs(error).max() < 0.052
    # kp times the droop carries gravity, up to what dry friction holds
    assert np.abs(17.8 * error + data.qfrc_bias).max() < 0.0521
    assert data.ncon == 0


def test_so101_servos_settle() -> None:
    model, data = load("so101")
    data.qpos[:] = data.ctrl[:] = [0, 1.2, -1.1, 0, 0, 0]
    mujoco.mj_step(model, data, 1000)
    data.ctrl[0] = 0.3
    path = []
    for _ in range(500):
        mujoco.mj_step(model, data)
        path.append(data.qpos[0])
    assert max(path) / 0.3 < 1.15
    assert np.abs(np.array(path[250:]) / path[-1] - 1).max() < 0.05


def test_so101_lies_on_the_table_and_not_in_it() -> None:
    model, data = load("so101")
    data.ctrl[:] = [0, 1.7, 0.6, 0.5, 0, 0]
    mujoco.mj_step(model, data, 2500)
    touching = {model.geom(g).name for c in data.contact for g in (c.geom1, c.geom2)}
    assert "table" in touching
    assert min(c.dist for c in data.contact) > -0.003
    assert data.site("tip").xpos[2] > -0.0024 - 0.005


def test_so101_random_commands_stay_finite_and_within_limits() -> None:
    model, data = load("so101")
    rng = np.random.default_rng(0)
    for _ in range(400):
        data.ctrl[:] = rng.uniform(*model.jnt_range.T)
        mujoco.mj_step(model, data, 25)
        assert np.isfinite(data.qpos).all()
        assert (data.qpos > model.jnt_range[:, 0] - 0.1).all()
        assert (data.qpos < model.jnt_range[:, 1] + 0.1).all()
        assert np.abs(data.qvel).max() < 20


M, LENGTH, ARM, G = 0.024, 0.129, 0.085, 9.81
SWING = M * LENGTH**2 / 3  # the rod about its pivot
ABOUT_Z = 5.72e-5 + 4.6e-6 + M * ARM**2 + 1e-7  # arm, rotor and the hanging rod about the motor
COUPLING = M * ARM * LENGTH / 2


@pytest.mark.parametrize(("locked", "expected"), [
    (True, 2 * np.pi * np.sqrt(SWING / (M * G * LENGTH / 2))),
    (False, 2 * np.pi * np.sqrt((ABOUT_Z * SWING - COUPLING**2) / (ABOUT_Z * M * G * LENGTH / 2))),
])
def test_furuta_small_swings_take_the_time_that_theory_says(locked: bool, expected: float) -> None:
    model, data = load("furuta")
    model.dof_damping[:] = 0
    if locked:
        model.dof_armature[0] = 1e3
    data.qpos[:] = 0, np.pi + 0.02
    crossings, before = [], 0.02
    while len(crossings) < 6:
        mujoco.mj_step(model, data)
        now = data.qpos[1] - np.pi
        if before < 0 <= now:
            crossings.append(data.time - now / (now - before) * model.opt.timestep)
        before = now
    assert np.diff(crossings).mean() == pytest.approx(expected, rel=1e-3)


def test_furuta_keeps_its_energy_without_friction() -> None:
    model, data = load("furuta")
    model.dof_damping[:] = 0
    model.jnt_limited[:] = 0
    model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_ENERGY.value
    data.qpos[:] = 0, 2.0
    mujoco.mj_forward(model, data)
    before = data.energy.sum()
    mujoco.mj_step(model, data, 5000)
    mujoco.mj_forward(model, data)
    assert data.energy.sum() == pytest.approx(before, abs=1e-4 * M * G * LENGTH)


def test_furuta_stands_at_zero_and_hangs_at_pi() -> None:
    model, data = load("furuta")
    heights = []
    for angle in (0.0, np.pi, np.pi / 2):
        data.qpos[:] = 0, angle
        mujoco.mj_forward(model, data)
        heights.append(data.site("tip").xpos - data.body("pendulum").xpos)
    np.testing.assert_allclose(heights, [[0, 0, LENGTH], [0, 0, -LENGTH], [0, -LENGTH, 0]], atol=1e-9)
    assert not model.jnt_limited[1]
    np.testing.assert_allclose(data.body("pendulum").xpos[:2], [ARM, 0], atol=1e-9)


def test_furuta_motor_is_limited_and_the_cable_stops_the_arm() -> None:
    model, data = load("furuta")
    data.qpos[:] = 0, np.pi
    data.ctrl[0] = 5.0
    farthest = 0.0
    for _ in range(2000):
        mujoco.mj_step(model, data)
        assert data.qfrc_actuator[0] == pytest.approx(0.05)
        farthest = max(farthest, data.qpos[0])
    assert 2.3 < farthest < 2.6
    np.testing.assert_allclose(model.jnt_range[0], [-2.3, 2.3])


def test_furuta_friction_lets_a_swing_die_slowly() -> None:
    """Half of the amplitude is gone after 0.7 * 2 J / b, with the arm held: 3.7 s."""
    model, data = load("furuta")
    model.dof_armature[0] = 1e3
    data.qpos[:] = 0, np.pi + 0.1
    last = 0.0
    for _ in range(int(2 * np.log(2) * SWING / 5e-5 / 0.002) + 150):
        mujoco.mj_step(model, data)
        last = abs(data.qpos[1] - np.pi) if data.time > 3.5 and abs(data.qpos[1] - np.pi) > last else last
    assert last == pytest.approx(0.05, rel=0.05)


# Universal Robots' and Franka's own tables of link lengths: a, alpha, d by joint
UR5E = [(0, np.pi / 2, 0.1625), (-0.425, 0, 0), (-0.3922, 0, 0), (0, np.pi / 2, 0.1333), (0, -np.pi / 2, 0.0997),
        (0, 0, 0.0996)]
FR3 = [(0, 0, 0.333), (0, -np.pi / 2, 0), (0, np.pi / 2, 0.316), (0.0825, np.pi / 2, 0), (-0.0825, -np.pi / 2, 0.384),
       (0, np.pi / 2, 0), (0.088, np.pi / 2, 0), (0, 0, 0.107)]


def turn(angle: float, axis: int) -> np.ndarray:
    """(4, 4) rotation about x (0) or z (2)."""
    frame, rest = np.eye(4), [i for i in range(3) if i != axis]
    frame[np.ix_(rest, rest)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return frame


def shift(a: float, d: float) -> np.ndarray:
    frame = np.eye(4)
    frame[0, 3], frame[2, 3] = a, d
    return frame


@pytest.mark.parametrize(("robot", "site", "base", "table", "joints"), [
    ("ur5e", "tip", "base", UR5E, [0.3, -1.1, 1.4, -0.7, 0.9, 0.5]),
    ("ur5e", "tip", "base", UR5E, [0.0] * 6),
    ("fr3", "flange", "fr3_link0", FR3, [0.3, -0.6, 0.4, -1.7, 0.9, 1.5, 0.5]),
])
def test_arms_reach_where_their_makers_tables_say(robot: str, site: str, base: str, table: list, joints: list) -> None:
    model, data = load(robot)
    data.qpos[:len(joints)] = joints
    mujoco.mj_kinematics(model, data)
    frame = np.eye(4)
    for (a, alpha, d), angle in zip(table, [*joints, 0.0], strict=False):
        if robot == "ur5e":  # classic: about z first
            frame = frame @ turn(angle, 2) @ shift(a, d) @ turn(alpha, 0)
        else:  # modified: along and about x first
            frame = frame @ turn(alpha, 0) @ shift(a, 0) @ turn(angle, 2) @ shift(0, d)
    axes = data.body(base).xmat.reshape(3, 3)
    np.testing.assert_allclose(axes.T @ (data.site(site).xpos - data.body(base).xpos), frame[:3, 3], atol=1e-9)
    np.testing.assert_allclose(axes.T @ data.site(site).xmat.reshape(3, 3), frame[:3, :3], atol=1e-8)


def test_quadruped_weighs_and_stands_as_published() -> None:
    spec = load_robot("quadruped")
    sim = SimRobot(spec, mjcf_file("quadruped"))
    assert sim.model.body_mass.sum() == pytest.approx(6.923 + 4 * (0.678 + 1.152 + 0.154 + 0.04))
    sim.step(2.0)
    readings = sim.readings()
    assert 0.25 < sim.data.qpos[2] < 0.32
    assert sim.data.ncon == 4
    up = readings["imu.linear_acceleration"]  # at rest an accelerometer reads +g upwards
    np.testing.assert_allclose(up, [0, 0, 9.81], atol=0.4)
    touching = {sim.model.geom(g).name for c in sim.data.contact for g in c.geom}
    assert touching == {"table", *(f"{leg}_foot_hit" for leg in ("FL", "FR", "RL", "RR"))}


def test_an_imu_and_an_odometry_tell_of_motion_in_their_own_axes() -> None:
    sim = SimRobot(load_robot("quadruped"), mjcf_file("quadruped"))
    mujoco.mju_axisAngle2Quat(sim.data.qpos[3:7], np.array([0.0, 0.0, 1.0]), np.pi / 2)  # it looks along y
    sim.data.qpos[2] = 5.0
    sim.data.qvel[:6] = [0.0, 1.0, 0.0, 0.0, 0.2, 0.0]  # and flies that way, nodding
    sim.step(0.004)
    readings = sim.readings()
    np.testing.assert_allclose(readings["imu.angular_velocity"], [0, 0.2, 0], atol=0.02)
    np.testing.assert_allclose(readings["odometry.linear_velocity"], [1.0, 0, -9.81 * 0.004], atol=0.02)
    np.testing.assert_allclose(readings["odometry.angular_velocity"], [0, 0.2, 0], atol=0.02)
    np.testing.assert_allclose(readings["odometry.position"], [0, 0.004, 5.0], atol=1e-3)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(readings["imu.orientation"], [0, 0, half, half], atol=0.01)  # x, y, z, w
    np.testing.assert_array_equal(readings["odometry.orientation"], readings["imu.orientation"])
