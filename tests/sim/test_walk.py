"""Steering, falls and odometry: by the walking task, in simulation and between processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import sim
from hardware import messages
from hardware.bus import COMMAND, connect
from hardware.robot_io import decode, encode
from robot_rl.episode import Episode
from robot_rl.evaluate import evaluate
from robot_rl.finetune import bags_in, fill
from robot_rl.observe import Quantity, Readings
from robot_rl.replay import Replay
from robot_rl.spec import (
    ActionSpec,
    Failure,
    PolicySpec,
    Reward,
    SpecError,
    Steering,
    Term,
    load_robot,
    mjcf_file,
    policy_spec,
)
from robot_rl.steplog import read_episode
from sim.demos import run_episode
from sim.env import RobotEnv
from sim.randomize import Gap
from sim.walk import Trotter
from sim.wiring import compile_model

STANDING = np.zeros(12, np.float32)
SEEDS = 1, 2  # episodes in which little is to stand


def made() -> RobotEnv:
    env = sim.make("quadruped-walk")
    assert isinstance(env, RobotEnv)
    return env


def upright_readings(gravity: float = -1.0) -> dict[str, np.ndarray]:
    """What the robot says when the trunk's z axis makes this cosine with gravity."""
    half = math.acos(-gravity) / 2
    joints = np.array([j.default for j in load_robot("quadruped").joints])
    return {"joints.position": joints, "joints.velocity": np.zeros(12), "joints.effort": np.zeros(12),
            "imu.orientation": np.array([math.sin(half), 0.0, 0.0, math.cos(half)]),
            "imu.angular_velocity": np.zeros(3), "imu.linear_acceleration": np.zeros(3),
            "odometry.position": np.zeros(3), "odometry.orientation": np.array([0.0, 0.0, 0.0, 1.0]),
            "odometry.linear_velocity": np.zeros(3), "odometry.angular_velocity": np.zeros(3)}


def test_the_velocity_asked_for_changes_within_an_episode_and_is_seen_and_rewarded() -> None:
    env = made()
    steering = env.contract.steering
    assert steering is not None
    observation, _ = env.reset(seed=3)
    drawn, rewards = [], []
    for _ in range(520):
        np.testing.assert_allclose(observation[:3], env.steering, atol=1e-6)
        drawn.append(tuple(env.steering))  # type: ignore[arg-type]
        observation, reward, _, _, _ = env.step(STANDING)
        rewards.append((np.linalg.norm(drawn[-1][:2]), reward))
    assert [drawn[i] != drawn[i - 1] for i in range(1, len(drawn))].count(True) == 2  # every 5 s at 50 Hz
    for asked in set(drawn):
        assert (np.array(asked) >= steering.lower).all() and (np.array(asked) <= steering.upper).all()
    speeds, paid = np.array(rewards)[50:].T
    assert paid[speeds == speeds.min()].mean() > paid[speeds == speeds.max()].mean() + 0.1  # standing suits the slower


def test_some_of_what_is_drawn_is_to_stand() -> None:
    steering = Steering(lower=(-1, -1, -1), upper=(1, 1, 1), still=0.25)
    rng = np.random.default_rng(0)
    still = np.mean([not steering.sample(rng).any() for _ in range(2000)])
    assert 0.2 < still < 0.3


def test_what_is_asked_for_on_the_robot_is_cut_to_what_training_met() -> None:
    steering = Steering(lower=(-0.4, 0, 0), upper=(0.8, 0, 1))
    np.testing.assert_array_equal(steering.within(np.array([2.0, 1.0, -1.0])), [0.8, 0, 0])
    np.testing.assert_array_equal(steering.within(np.array([np.nan, 0.0, 0.0])), [0, 0, 0])


@pytest.mark.parametrize("type", ["geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped"])
def test_steering_survives_the_wire(type: str) -> None:
    steering, robot = Steering(type=type, lower=(-1, -1, -1), upper=(1, 1, 1)), load_robot("quadruped")
    data = encode(steering, {"steering": np.array([0.5, -0.25, 0.75])}, 7, robot)
    twist = messages.decode(data, type)
    twist = getattr(twist, "twist", twist)
    assert (twist.linear.x, twist.linear.y, twist.angular.z) == (0.5, -0.25, 0.75)
    np.testing.assert_array_equal(decode(steering, data, robot)["steering"], [0.5, -0.25, 0.75])


@pytest.mark.parametrize(("change", "words"), [
    ({"type": "geometry_msgs/msg/Pose"}, "known are geometry_msgs/msg/Twist"),
    ({"lower": (2, 0, 0)}, "is above upper"), ({"redraw_s": 0}, "redraw_s=0"), ({"still": 1.5}, "still=1.5")])
def test_steering_that_makes_no_sense_is_refused(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Steering(**({"lower": (-1, -1, -1), "upper": (1, 1, 1)} | change))


def test_gravity_is_told_in_the_trunks_own_frame() -> None:
    env = made()
    observation, _ = env.reset(seed=0)
    np.testing.assert_allclose(observation[3:6], [0, 0, -1], atol=0.1)
    term = Term(name="d", source="imu.orientation", transform="down")
    half = np.sqrt(0.5)
    for quaternion, down in (([0, 0, 0, 1], [0, 0, -1]), ([half, 0, 0, half], [0, -1, 0]),  # rolled to its right side
                             ([0, half, 0, half], [1, 0, 0]), ([1, 0, 0, 0], [0, 0, 1])):  # nose down; on its back
        got = Quantity(term, env.contract)({"imu.orientation": np.array(quaternion, float)})
        np.testing.assert_allclose(got, down, atol=1e-12)


def test_a_gaits_clock_turns_once_in_its_period_and_starts_with_the_episode() -> None:
    robot = load_robot("quadruped")
    clock = Term(name="stride", source="clock", period_s=0.08, transform="sin_cos")
    spec = policy_spec(robot, task="x", rate_hz=50, time_limit_s=1, rewards=(),
                       observations=(clock, Term(name="seconds", source="clock")),
                       action=ActionSpec(kind="absolute", joints=("FL_hip_joint",), scale=(0.1,)))
    episode = Episode(spec)
    for _ in range(2):
        episode.begin()
        seen = []
        for _ in range(6):
            seen.append(episode.observe(Readings(upright_readings())).observation)
            episode.act(np.zeros(1))
        quarter = [[0, 1], [1, 0], [0, -1], [-1, 0], [0, 1], [1, 0]]  # four decisions are a turn
        np.testing.assert_allclose(np.array(seen), np.c_[quarter, np.arange(6) / 50], atol=1e-6)


def test_a_fall_terminates_and_is_no_success() -> None:
    spec, _ = sim.task_spec("quadruped-walk")
    episode = Episode(spec)
    episode.begin()
    outcome = episode.observe(Readings(upright_readings()))
    assert not outcome.done
    episode.act(STANDING)
    outcome = episode.observe(Readings(upright_readings(-0.3)))
    assert outcome.terminated and not outcome.truncated and outcome.success is None and outcome.valid
    again = PolicySpec.from_json(spec.to_json())
    assert (again.failure, again.steering) == (spec.failure, spec.steering)


def test_a_trunk_thrown_on_its_back_ends_the_episode() -> None:
    env = made()
    env.reset(seed=0)
    env._robot.data.qpos[3:7] = [0, 1, 0, 0]
    _, _, terminated, truncated, _ = env.step(STANDING)
    assert terminated and not truncated


def test_the_script_follows_what_is_asked_for_better_than_standing() -> None:
    env = made()
    script = Trotter(env.contract, compile_model(mjcf_file("quadruped")))
    shown = [run_episode(env, script, seed) for seed in SEEDS]
    assert env.episode.steps == 1000  # it did not fall
    for seed, total in zip(SEEDS, shown, strict=True):
        env.reset(seed=seed)
        stood = 0.0
        while not env.outcome.done:
            stood += env.step(STANDING)[1]
        assert total > stood + 50


class Stand:
    def reset(self) -> None:
        pass

    def __call__(self, observation: Any) -> np.ndarray:
        return STANDING


@pytest.mark.parametrize("falls", [False, True])
def test_an_evaluation_says_who_fell_and_what_each_reward_term_gave(falls: bool) -> None:
    spec, robot = sim.task_spec("quadruped-walk")
    assert spec.failure is not None
    always = msgspec.structs.replace(spec.failure, above=-2.0)
    short = msgspec.structs.replace(spec, time_limit_s=0.2, failure=always if falls else spec.failure)
    figures = evaluate(RobotEnv(short, mjcf_file(robot)), Stand(), 2, seed=0, show=False)
    steps = 1 if falls else 10
    assert figures["failure_rate"] == falls
    assert figures["rewards"].keys() == {reward.term.name for reward in spec.rewards}
    assert sum(figures["rewards"].values()) * steps == pytest.approx(figures["return_mean"])
    assert figures["rewards"]["upright"] > 0.5 > 0 > figures["rewards"]["velocity"]


@pytest.mark.parametrize(("part", "words"), [
    ({"failure": Failure(term=Term(name="d", source="imu.orientation", transform="down"), above=1.0)}, "has 3 numbers"),
    ({"rewards": (Reward(term=Term(name="v", source="imu.linear_velocity"), weight=1.0),)}, "not offered"),
    ({"observations": (Term(name="d", source="odometry.orientation", axes=("x",)),)}, "choose among coordinates"),
    ({"observations": (Term(name="s", source="steering"),)}, "not offered"),
    ({"observations": (Term(name="d", source="imu.angular_velocity", transform="down"),)}, "of an orientation alone"),
    ({"observations": (Term(name="j", source="joints.position", period_s=0.5),)}, "period_s=0.5; it is of clock"),
    ({"observations": (Term(name="c", source="clock", period_s=-0.5),)}, "at least 0"),
])
def test_terms_that_cannot_be_are_refused_by_name(part: dict, words: str) -> None:
    robot = load_robot("quadruped")
    given: dict[str, Any] = {"observations": (Term(name="j", source="joints.position"),), "rewards": ()}
    with pytest.raises(SpecError, match=words):
        policy_spec(robot, task="x", rate_hz=50, time_limit_s=1, **(given | part),
                    action=ActionSpec(kind="absolute", joints=("FL_hip_joint",), scale=(0.1,)))


def test_a_gap_makes_another_robot_of_it() -> None:
    def after(gap: str) -> np.ndarray:
        env = sim.make("quadruped-walk", gap=Gap.parse(gap))
        env.reset(seed=1)
        for _ in range(25):
            observation = env.step(np.full(12, 0.2, np.float32))[0]
        return observation
    plain = after("")
    for gap in ("payload=3", "friction=1", "motor_strength=0.7", "command_delay=0.02", "sensor_delay=0.02",
                "noise=0.01", "imu_noise=0.2", "odometry_noise=0.1"):
        assert np.abs(after(gap) - plain).max() > 1e-3, gap


# between processes

@pytest.fixture
def robot(domain: int) -> Iterator[subprocess.Popen]:
    process = run("sim-robot", "quadruped", "--bus", "dds", "--domain", domain, "--no-cameras")
    assert process.stdout is not None and "ready" in process.stdout.readline()
    yield process
    process.terminate()
    assert process.wait(20) == 0


def run(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "robot_rl.cli", *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_it_is_steered_by_its_topic_and_its_bag_can_be_learned_from(robot: Any, domain: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from robot_rl.learn.export import export

    class Stand(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, obs: Any, noise: Any) -> Any:
            return self.gain * (obs[:, :12] + noise)

    spec, _ = sim.task_spec("quadruped-walk")
    assert spec.robot is not None
    slow = tuple(msgspec.structs.replace(s, stale_after_s=5.0) for s in spec.robot.sensors)  # this machine may be busy
    body = msgspec.structs.replace(spec.robot, sensors=slow, mjcf="none.xml")
    (tmp_path / "robot.yaml").write_bytes(msgspec.yaml.encode(body))
    short = msgspec.structs.replace(spec, time_limit_s=3.0)
    export(Stand(), spec.observation_size, spec.action_size, short.to_json(), tmp_path / "stand.onnx")
    deploy = run("deploy", tmp_path / "stand.onnx", "--robot", tmp_path / "robot.yaml", "--bus", "dds", "--domain",
                 domain, "--no-cameras", "--json", "--record", tmp_path / "bags")
    with connect("dds", "operator", "", domain) as bus:
        steering = bus.publisher("cmd_vel", "geometry_msgs/msg/Twist", COMMAND)
        while deploy.poll() is None:
            steering.publish(messages.encode(messages.twist([0.5, 9.0, -0.25])))
            time.sleep(0.05)
    out, err = deploy.communicate()
    assert deploy.returncode == 0, err
    told = json.loads(out.splitlines()[-1])
    assert (told["episodes"], told["success_rate"]) == (1, None) and "return" in err and "success" not in err
    bag, = bags_in(tmp_path / "bags")
    log = read_episode(bag)
    pairs = list(zip(log.replayed(), log.records, strict=True))
    assert len(pairs) == 151 and log.end["faults"] == "none"
    for (outcome, _), record in pairs:
        np.testing.assert_array_equal(outcome.observation, record.observation.astype(np.float32))
    asked = np.array([o.observation[:3] for (o, _), _ in pairs])
    np.testing.assert_allclose(asked[len(asked) // 2:], np.tile([0.5, 0.3, -0.25], (len(asked) - len(asked) // 2, 1)),
                               atol=1e-6)  # cut to what it was trained for
    assert np.isfinite([o.reward for (o, _), _ in pairs[1:]]).all()
    steps, refused = fill(Replay(200, spec.observation_size, spec.action_size), [bag], log.spec)
    assert (steps, refused) == (150, [])
