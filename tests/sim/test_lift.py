"""The cube: where it is put, that a grasp holds it, a script that lifts it, and bags of what the script did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import mujoco
import numpy as np
import pytest

import sim
from hardware.robot_io import decode, encode_command
from robot_rl.bag import info
from robot_rl.finetune import add_episode, fill
from robot_rl.replay import Replay
from robot_rl.safety import Reason
from robot_rl.spec import PolicySpec, RobotSpec, SpecError, Term, load_robot, mjcf_file, policy_spec
from robot_rl.steplog import read_episode
from sim import lift
from sim.demos import EpisodeWriter, demonstrate, run_episode
from sim.env import RobotEnv
from sim.kinematics import Kinematics
from sim.offscreen import RenderError, backend
from sim.process import RobotProcess
from sim.robot import SimRobot
from sim.wiring import compile_model

ROBOT = "so101-cube"
START_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return compile_model(mjcf_file(ROBOT))


@pytest.fixture(scope="module")
def env() -> RobotEnv:
    made = sim.make("so101-lift")
    assert isinstance(made, RobotEnv)
    return made


def held(env: RobotEnv) -> np.ndarray:
    """(3,) the cube's centre seen from the tip, m."""
    values = env.readings.values
    axes = np.empty(9)
    mujoco.mju_quat2Mat(axes, values["tip.orientation"][[3, 0, 1, 2]])
    return axes.reshape(3, 3).T @ (values["cube.position"] - values["tip.position"])


@pytest.fixture(scope="module")
def seeing() -> Iterator[RobotEnv]:
    """The task through cameras."""
    try:
        backend()
    except RenderError as error:
        pytest.skip(str(error))
    made = sim.make("so101-lift-camera")
    assert isinstance(made, RobotEnv)
    yield made
    made.close()


def test_the_arm_is_the_one_without_a_cube(model: mujoco.MjModel) -> None:
    alone = compile_model(mjcf_file("so101"))
    bodies, joints, geoms = alone.nbody, alone.njnt, alone.ngeom
    for field in ("body_pos", "body_quat", "body_mass", "body_inertia", "body_ipos"):
        np.testing.assert_array_equal(getattr(model, field)[:bodies], getattr(alone, field))
    for field in ("jnt_range", "jnt_axis", "jnt_pos"):
        np.testing.assert_array_equal(getattr(model, field)[:joints], getattr(alone, field))
    np.testing.assert_array_equal(model.geom_size[:geoms], alone.geom_size)
    np.testing.assert_array_equal(model.dof_damping[:alone.nv], alone.dof_damping)
    np.testing.assert_array_equal(model.actuator_forcerange, alone.actuator_forcerange)
    limits = [(j.name, j.lower, j.upper, j.velocity, j.effort, j.kp) for j in load_robot(ROBOT).joints]
    assert limits == [(j.name, j.lower, j.upper, j.velocity, j.effort, j.kp) for j in load_robot("so101").joints]


def test_the_reset_puts_the_cube_where_the_robot_file_says() -> None:
    spec = load_robot(ROBOT)
    robot, rng, seen = SimRobot(spec, mjcf_file(ROBOT)), np.random.default_rng(0), []
    for _ in range(200):
        robot.reset(rng, 0.05)
        values = robot.readings()
        x, y, z = values["cube.position"]
        seen.append([np.hypot(x, y), np.arctan2(y, x), 2 * np.arcsin(values["cube.orientation"][2])])
        assert z == pytest.approx(lift.RESTING_M)
    (placed,) = spec.objects
    lower, upper = np.array([[*placed.lower[:2], placed.yaw[0]], [*placed.upper[:2], placed.yaw[1]]])
    assert (np.array(seen) > lower - 1e-9).all() and (np.array(seen) < upper + 1e-9).all()
    np.testing.assert_allclose(np.mean(seen, axis=0), (lower + upper) / 2, atol=0.1)


def test_the_cube_lies_still_until_it_is_touched(env: RobotEnv) -> None:
    env.reset(seed=3)
    before = env.readings.values["cube.position"]
    for _ in range(40):
        env.step(np.zeros(6))
    np.testing.assert_allclose(env.readings.values["cube.position"], before, atol=1e-4)


class Wire:
    """A bus of one robot process: what it publishes, and a request to reset."""

    def __init__(self) -> None:
        self.said: dict[str, bytes] = {}
        self.asked, self.told = False, ""
        self._command: SimpleNamespace | None = None

    def command(self, robot: RobotSpec, command: np.ndarray) -> None:
        self._command = SimpleNamespace(data=encode_command(robot, command)[0][1], arrival_ns=0)

    def publisher(self, topic: str, *_: object) -> Any:
        return SimpleNamespace(publish=lambda data: self.said.update({topic: data}))

    def reader(self, topic: str, *_: object) -> Any:
        return SimpleNamespace(newest=self._newest if topic.endswith("commands") else lambda: None, take=list)

    def resolve(self, name: str) -> str:
        return name

    def service(self, _: str) -> Any:
        return SimpleNamespace(take=self._request)

    def _newest(self) -> Any:
        if self._command is not None:  # as on a bus, it arrives when it is first taken
            self._command.arrival_ns = self._command.arrival_ns or time.monotonic_ns()
        return self._command

    def _request(self) -> Any:
        if not self.asked:
            return None
        self.asked = False
        return SimpleNamespace(reply=lambda done, words: setattr(self, "told", words))


def test_the_robot_process_puts_the_cube_back_before_it_answers_a_reset() -> None:
    spec, wire = load_robot(ROBOT), Wire()
    process = RobotProcess(spec, SimRobot(spec, mjcf_file(ROBOT)), wire, cameras=False, seed=4)  # type: ignore[arg-type]
    rng = np.random.default_rng(4)
    first = SimRobot(spec, mjcf_file(ROBOT))
    first.reset(rng)  # the same generator places the same cubes, here and there
    sensor = next(s for s in spec.sensors if s.name == "cube")
    process.tick(1)
    seen = decode(sensor, wire.said[sensor.topic], spec)["cube.position"]
    np.testing.assert_allclose(seen, first.readings()["cube.position"], atol=1e-4)
    away = np.array([0.3, -0.2, 0.1, 1.6, 0.0, 0.0])
    wire.command(spec, away)
    process.tick(30)
    wire.command(spec, away)  # the last word of an episode, still on its way when the reset is asked for
    wire.asked, end = True, time.monotonic() + 20
    while not wire.told:
        assert time.monotonic() < end
        before = decode(sensor, wire.said[sensor.topic], spec)["cube.position"]
        process.tick(1)
    np.testing.assert_allclose(before, seen, atol=1e-4)  # until then it lay where it was
    first.place(rng)
    first.step(0.01)
    now = decode(sensor, wire.said[sensor.topic], spec)["cube.position"]
    np.testing.assert_allclose(now, first.readings()["cube.position"], atol=1e-4)
    assert np.linalg.norm(now - seen) > 0.01
    process.tick(50)
    joints = decode(spec.joint_sensor, wire.said[spec.joint_sensor.topic], spec)["joints.position"]
    np.testing.assert_allclose(joints, [j.default for j in spec.joints], atol=0.06)  # nor does it go back there


def test_an_object_without_a_free_joint_is_named() -> None:
    spec = load_robot(ROBOT)
    wrong = msgspec.structs.replace(spec, objects=(msgspec.structs.replace(spec.objects[0], object="jaw"),))
    with pytest.raises(SpecError, match=r"object 'jaw'.*free joint.*cube"):
        SimRobot(wrong, mjcf_file(ROBOT))
    with pytest.raises(ValueError, match=r"object cube: lower=.*at most the upper"):
        msgspec.structs.replace(spec.objects[0], yaw=(0.1, -0.1)).__post_init__()


def test_axes_choose_coordinates_of_positions_only() -> None:
    robot = load_robot(ROBOT)

    def with_term(robot: RobotSpec, **term: object) -> PolicySpec:
        body = lift.sparse(robot)
        assert body.action is not None
        return policy_spec(robot, task="x", rate_hz=20, time_limit_s=1, rewards=(), action=body.action,
                           observations=(Term(name="t", **term),))  # type: ignore[arg-type]
    assert with_term(robot, source="cube.position", minus="tip.position", axes=("z", "x")).observation_size == 2
    for source in ("cube.orientation", "joints.position", "action"):
        with pytest.raises(SpecError, match=rf"term t: axes=.*{source}"):
            with_term(robot, source=source, axes=("z",))


def test_joints_are_found_for_poses_that_the_arm_can_take(model: mujoco.MjModel) -> None:
    arm, rng = Kinematics(model, "tip", lift.ARM), np.random.default_rng(1)
    start = np.array([j.default for j in load_robot(ROBOT).joints[:5]])
    for _ in range(20):
        there = start + rng.uniform(-0.4, 0.4, 5) * (1, 1, 1, 0.1, 1)
        position, axes = arm.pose(there)
        found, turned = arm.pose(arm.solve(start, position, axes))
        np.testing.assert_allclose(found, position, atol=1e-4)
        np.testing.assert_allclose(turned, axes, atol=0.01)


def test_gravity_is_what_the_servos_carry(model: mujoco.MjModel) -> None:
    arm, data = Kinematics(model, "tip", lift.ARM), mujoco.MjData(model)
    data.qpos[:5] = 0.1, -0.5, 0.7, 0.9, 0.3
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(arm.gravity(data.qpos[:5]), data.qfrc_bias[:5], atol=1e-12)


def test_the_script_lifts_the_cube(env: RobotEnv, model: mujoco.MjModel) -> None:
    script = lift.Lifter(env.contract, model)
    for seed in range(5):
        total = run_episode(env, script, seed)
        assert env.outcome.success and env.outcome.terminated, f"seed {seed}"
        assert env.outcome.faults == Reason.NONE
        assert total == 10.0


def test_a_grasp_holds_while_the_arm_lifts_turns_and_waits(env: RobotEnv, model: mujoco.MjModel) -> None:
    success = env.contract.success
    assert success is not None
    endless = msgspec.structs.replace(env.contract, time_limit_s=20.0,
                                      success=msgspec.structs.replace(success, ends_episode=False))
    other = RobotEnv(endless, str(mjcf_file(ROBOT)))
    script = lift.Lifter(endless, model)
    other.reset(seed=2)
    script.begin(other.readings.values, np.random.default_rng(2))
    while other.readings.values["cube.position"][2] < lift.LIFTED_M:
        assert other.episode.last is not None and other.episode.steps < 60
        other.step(script.act(other.readings.values, other.episode.last))
    before = held(other)
    for k in range(100):  # 5 s: pan and roll to and fro at up to 2 rad/s, the jaw closing on
        other.step(np.array([0.8 * np.cos(k / 4), 0.0, 0.0, 0.0, 0.8 * np.sin(k / 4), -1.0]))
    assert other.readings.values["cube.position"][2] > lift.LIFTED_M - 0.01
    np.testing.assert_allclose(held(other), before, atol=0.003)
    data = other._robot.data  # from outside: the fingers do not sink into the cube
    assert min(contact.dist for contact in data.contact) > -0.001


def test_bags_of_a_demonstration_read_back_as_what_was_seen(env: RobotEnv, model: mujoco.MjModel,
                                                            tmp_path: Path) -> None:
    script, told = lift.Lifter(env.contract, model), []
    env.reset(seed=7)
    writer = EpisodeWriter(tmp_path / "bag", env, 4, START_NS)

    def tick(readings, outcome, command):
        told.append((outcome, command))
        writer.tick(readings, outcome, command)
    run_episode(env, script, 7, tick)
    log = read_episode(tmp_path / "bag")
    assert log.spec == env.contract
    assert log.start["episode"] == 4 and log.end["success"] and log.end["steps"] == len(told) - 1
    replayed = list(log.replayed())
    assert len(replayed) == len(told)
    for (outcome, action), (seen, command) in zip(replayed, told, strict=True):
        np.testing.assert_array_equal(outcome.observation, seen.observation)
        assert (outcome.reward, outcome.terminated, outcome.truncated, outcome.success) == (
            seen.reward, seen.terminated, seen.truncated, seen.success)
        assert (action is None) == (command is None)
        if action is not None and command is not None:
            np.testing.assert_array_equal(action, command.action)
    replay = Replay(1000, env.contract.observation_size, env.contract.action_size)
    assert add_episode(replay, log) == len(told) - 1
    found = info(tmp_path / "bag")
    assert found.closed and found.custom["success"] == "true" and found.custom["recorder_end"] == "episode end"
    assert found.topics["/cube_pose"].count == len(told)
    assert found.topics["/forward_position_controller/commands"].count == len(told) - 1


def test_demonstrations_differ_by_seed_and_teach_the_other_reward_too(tmp_path: Path) -> None:
    figures = demonstrate("so101-lift", None, 2, tmp_path / "a", seed=0)
    assert figures["episodes"] == 2 and figures["success_rate"] == 1.0
    first, second = (read_episode(tmp_path / "a" / f"episode_{k:04d}") for k in range(2))
    assert first.records[-1].stamp[0] < second.records[0].stamp[0]  # one after the other
    assert not np.array_equal(first.records[0].observation, second.records[0].observation)
    dense = sim.env_spec(sim.make("so101-lift-dense"), "so101-lift-dense")
    replay = Replay(1000, dense.observation_size, dense.action_size)
    steps, refused = fill(replay, [tmp_path / "a" / "episode_0000"], dense)
    assert steps == len(first.records) - 1 and not refused
    assert (replay.sample(200)["reward"] != 0).all()


def test_a_task_that_nobody_shows_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'so101-reach'.*so101-lift"):
        demonstrate("so101-reach", None, 1, tmp_path, seed=0)


def frames_of(observation: Any) -> np.ndarray:
    """(2, H, W, 3) int: what the front and the wrist camera show."""
    return observation["frames"].reshape(2, 3, 64, 64).transpose(0, 2, 3, 1).astype(int)


def cube_pixels(picture: np.ndarray) -> int:
    red, green, blue = (picture[..., i] for i in range(3))
    return int(((blue > 90) & (blue > 1.6 * red) & (blue > 1.3 * green)).sum())


def test_the_policy_is_told_of_itself_and_sees_the_cube(seeing: RobotEnv) -> None:
    sources = [t.source for t in seeing.contract.observations] + [t.minus for t in seeing.contract.observations]
    assert not any(source and source.startswith("cube") for source in sources)
    for seed in range(20):
        observation, _ = seeing.reset(seed=seed)
        assert cube_pixels(frames_of(observation)[0]) >= 25, f"seed {seed}"


def test_both_cameras_see_the_grasp(seeing: RobotEnv, model: mujoco.MjModel) -> None:
    seen: list[list[int]] = []
    run_episode(seeing, lift.Lifter(seeing.contract, model), 3, lambda readings, outcome, command: seen.append(
        [cube_pixels(picture) for picture in frames_of(outcome.observation)]))
    assert seeing.outcome.success
    held = np.array(seen[-5:])
    assert (held[:, 0] >= 5).all() and (held[:, 1] >= 300).all()


def test_cameras_keep_their_rate_and_show_the_present_state(seeing: RobotEnv) -> None:
    seeing.reset(seed=1)
    ages, pictures = [], []
    for _ in range(6):
        seeing.step(np.full(6, 0.3))
        ages.append(seeing.readings.ages["front"])
        pictures.append(seeing.readings.values["wrist.image"])
    np.testing.assert_allclose(ages, [0.05, 0.0] * 3, atol=1e-9)  # 10 Hz against 20 decisions a second
    for k in (0, 2):
        assert (pictures[k] != pictures[k + 1]).any()
        np.testing.assert_array_equal(pictures[k + 1], pictures[k + 2])
    fast = msgspec.structs.replace(seeing.contract.robot, cameras=tuple(
        msgspec.structs.replace(c, rate_hz=30) for c in seeing.contract.robot.cameras))
    other = RobotEnv(msgspec.structs.replace(seeing.contract, robot=fast), str(mjcf_file(ROBOT)))
    other.reset(seed=1)
    for k in range(6):
        other.step(np.full(6, 0.3))
        assert other.readings.ages == {"front": 0.0, "wrist": 0.0}
        if k % 2:
            np.testing.assert_array_equal(other.readings.values["wrist.image"], pictures[k])
    other.close()


def test_bags_of_a_demonstration_give_back_every_pixel_that_was_seen(seeing: RobotEnv, model: mujoco.MjModel,
                                                                     tmp_path: Path) -> None:
    stacked = msgspec.structs.replace(seeing.contract, vision=msgspec.structs.replace(lift.EYES, stack=3))
    filmed, told = RobotEnv(stacked, str(mjcf_file(ROBOT))), []
    filmed.reset(seed=7)
    writer = EpisodeWriter(tmp_path / "bag", filmed, 0, START_NS)

    def tick(readings, outcome, command):
        told.append(outcome)
        writer.tick(readings, outcome, command)
    run_episode(filmed, lift.Lifter(stacked, model), 7, tick)
    filmed.close()
    log = read_episode(tmp_path / "bag")
    assert log.spec == stacked
    for (outcome, _), was in zip(log.replayed(), told, strict=True):
        assert outcome.observation.keys() == was.observation.keys()
        for key, seen in was.observation.items():
            np.testing.assert_array_equal(outcome.observation[key], seen)
        assert outcome.reward == was.reward
    assert log.records[0].observation.shape == (stacked.observation_size,)  # the frames are not written twice
    topics = info(tmp_path / "bag").topics
    assert topics["/front/image_raw"].count == topics["/wrist/image_raw"].count == len(told) // 2 + len(told) % 2

    plain = sim.env_spec(sim.make("so101-lift"), "so101-lift")  # told of the cube, it learns from the same episode
    replay = Replay(1000, plain.observation_size, plain.action_size)
    assert add_episode(replay, log, plain) == len(told) - 1


def test_an_episode_without_images_cannot_be_seen(env: RobotEnv, model: mujoco.MjModel, tmp_path: Path) -> None:
    env.reset(seed=7)
    writer = EpisodeWriter(tmp_path / "bag", env, 0, START_NS)
    run_episode(env, lift.Lifter(env.contract, model), 7, writer.tick)
    spec, _ = sim.task_spec("so101-lift-camera")
    steps, refused = fill(Replay(1000, 1, 6), [tmp_path / "bag"], spec)
    assert steps == 0
    assert "so101-lift-camera sees through camera" in refused[0] and "so101-lift ran with none" in refused[0]
