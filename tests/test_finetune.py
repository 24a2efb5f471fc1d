"""Recorded episodes judged by other goals, against the rules by hand; and learning on a robot that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware import messages
from robot_rl import session
from robot_rl.episode import Episode
from robot_rl.finetune import add_episode, bags_in, hindsight
from robot_rl.log import read_lines
from robot_rl.observe import Readings
from robot_rl.policy import Policy
from robot_rl.replay import Replay
from robot_rl.run import Run, RunConfig
from robot_rl.safety import Reason
from robot_rl.spec import POSE, PolicySpec, SpecError
from robot_rl.steplog import EpisodeLog, step_record
from sim import env_spec, make

STEPS = 12
GOAL = np.array([0.25, 0.1, 0.2])
STAMP = 1_000_000_000_000_000_000


@pytest.fixture(scope="module")
def spec() -> PolicySpec:
    return env_spec(make("so101-reach"), "so101-reach")


@pytest.fixture
def log(spec: PolicySpec) -> EpisodeLog:
    """A tip that moves 5 mm a step along x, away from the goal; the arm's own joints are at rest."""
    robot = spec.robot
    assert robot is not None
    episode, records = Episode(spec), []
    raw: dict[str, dict[int, bytes]] = {s.name: {} for s in robot.sensors}
    episode.begin(GOAL)
    for step in range(STEPS + 1):
        stamp = STAMP + step * 50_000_000
        rest = np.array([joint.default for joint in robot.joints])
        tip = (0.2 + 0.005 * step, 0.0, 0.2)
        for sensor in robot.sensors:
            raw[sensor.name][stamp] = messages.encode(
                messages.pose_stamped(stamp, sensor.frame, tip, (0.0, 0.0, 0.0, 1.0)) if sensor.type == POSE
                else messages.joint_state(stamp, robot.names, rest, 0 * rest, 0 * rest))
        readings = Readings({"joints.position": rest, "joints.velocity": 0 * rest, "joints.effort": 0 * rest,
                             "tip.position": np.array(tip), "tip.orientation": np.array([0.0, 0, 0, 1])})
        outcome = episode.observe(readings)
        last = step == STEPS
        command = None if last else episode.act(np.full(spec.action_size, 0.1))
        nothing = np.full(spec.action_size, np.nan)
        records.append(step_record(
            spec, tick=step, episode=3, stamp_ns=stamp, stamps={s.name: stamp for s in robot.sensors}, outcome=outcome,
            asked=nothing if command is None else command.asked, action=nothing if command is None else command.action,
            sent=np.full(len(robot.actuated), np.nan) if command is None else command.sent, reasons=Reason.NONE,
            lateness_s=0.0, latency_s=0.0))
    return EpisodeLog("bag", spec, {}, {"goal": list(GOAL), "episode": 3}, {}, records, raw)


def test_reached_is_the_tip(log: EpisodeLog) -> None:
    np.testing.assert_allclose(log.reached()[:, 0], 0.2 + 0.005 * np.arange(STEPS + 1))


def test_another_goal_changes_reward_and_what_is_seen_of_it(log: EpisodeLog) -> None:
    goal = log.reached()[-1]
    own, other = [o for o, _ in log.replayed()], [o for o, _ in log.replayed(goal=goal)]
    assert len(own) == len(other) == STEPS + 1
    assert [o.reward for o in other[2:]] > [o.reward for o in own[2:]]  # it comes closer to that one, not to its own
    changed = np.flatnonzero(own[3].observation != other[3].observation)
    np.testing.assert_allclose((other[3].observation - own[3].observation)[changed], 10 * (goal - GOAL)[:len(changed)],
                               atol=1e-5)


def test_a_goal_come_by_and_held_ends_the_episode(log: EpisodeLog) -> None:
    """Passed in 0.25 s it is no success; 1 cm near it for 0.5 s it is, one step before the recording ends."""
    goal = log.reached()[3]
    passed = [o for o, _ in log.replayed(goal=goal)]
    assert len(passed) == STEPS + 1 and not any(o.success for o in passed)
    for record in log.records[4:]:  # from here on the tip stays there
        record.inputs = log.records[3].inputs
    held = [o for o, _ in log.replayed(goal=goal)]
    assert held[-1].success and held[-1].terminated and len(held) == STEPS


def test_transitions_of_other_goals_are_learned_from_and_not_counted(log: EpisodeLog) -> None:
    goals = hindsight(log, 3, np.random.default_rng(0))
    assert goals.shape == (3, 3) and all(any(np.allclose(g, r) for r in log.reached()) for g in goals)
    replay = Replay(1000, log.spec.observation_size, log.spec.action_size)
    assert add_episode(replay, log, None, goals) == STEPS
    assert len(replay) == 4 * STEPS


def test_bags_are_found_where_links_lead(tmp_path: Path) -> None:
    for name in ("day1/b", "day2/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a_0.mcap").touch()
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "1").symlink_to(tmp_path / "day2" / "a")
    (chosen / "2").symlink_to(tmp_path / "day1")
    assert bags_in(chosen) == [chosen / "1", chosen / "2" / "b"]
    assert bags_in(tmp_path / "day1" / "b") == [tmp_path / "day1" / "b"]
    with pytest.raises(SpecError, match="nothing: holds no bag"):
        bags_in(tmp_path / "nothing")


def test_a_task_without_a_goal_has_no_other_goals(log: EpisodeLog) -> None:
    furuta = env_spec(make("furuta-swingup"), "furuta-swingup")
    assert log.reached(furuta).shape == (0, 3)
    assert hindsight(log, 4, np.random.default_rng(0), furuta).shape == (0, 3)


@pytest.fixture
def robot(domain: int) -> Iterator[None]:
    command = [sys.executable, "-m", "robot_rl.cli", "sim-robot", "so101", "--no-cameras"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and "ready" in process.stdout.readline()
            yield
        finally:
            process.terminate()


def finetuned(run: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "robot_rl.cli", "finetune", run, "--robot", "so101", "--out", out, "--repeats", 1,
               "--hindsight", 0, "--threads", 1, "--json", *more]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("recipe, chosen, plans", [
    ("sac", {}, False),
    ("tdmpc2_small", {"width": 32, "samples": 24, "proposals": 4, "elites": 4, "iterations": 2}, True)])
def test_a_run_goes_on_learning_on_a_robot(recipe: str, chosen: dict[str, Any], plans: bool, robot: None,
                                           tmp_path: Path) -> None:
    """From its own episodes alone, then from its bags; what plans in simulation plans on the robot."""
    pytest.importorskip("torch")
    options = {"hidden": [32, 32], "batch": 32, "compile": False} | chosen
    config = RunConfig(task="so101-reach", recipe=recipe, options=options, steps=80, learn_after=60, evaluate_every=0,
                       evaluation_episodes=1, checkpoint_every=60)
    session.train(Run(tmp_path / "run"), config, "cpu", 1, False)
    first = finetuned(tmp_path / "run", tmp_path / "first", "--episodes", 1)
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout.splitlines()[-1])
    assert told["episodes"] == 1 and told["transitions"] > 0 and told["prior_transitions"] == 0
    (line,) = read_lines(tmp_path / "first" / "metrics.jsonl")
    assert line["robot/safety_events"] == told["safety_events"] >= 0
    assert line["robot/peak_effort"] == told["peak_effort"] > 0
    policy = Policy(tmp_path / "first" / "policy.onnx")
    assert policy.plans == plans and policy.spec.trained["steps"] == 1
    again = finetuned(tmp_path / "run", tmp_path / "second", "--episodes", 1, "--data", tmp_path / "first" / "bags",
                      "--warm-updates", 3)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["prior_transitions"] == told["transitions"]
    tuned = Run(tmp_path / "first")
    with pytest.raises(SpecError, match=r"first: it was fine-tuned; robot-rl finetune with --out .*first goes on"):
        session.train(tuned, tuned.config, "cpu", 1, resume=True)


def weights(policy: Path) -> str:
    """What an exported file says of its weights."""
    onnx = pytest.importorskip("onnx")
    (said,) = [one.value for one in onnx.load(policy).metadata_props if one.key == "weights_sha256"]
    return str(said)


def test_a_planner_takes_over_on_the_robot_from_what_was_cloned(robot: None, tmp_path: Path) -> None:
    """The clone acts while steps are collected, and later by the guide's share; what was learned is beside it."""
    torch = pytest.importorskip("torch")
    options = {"hidden": [32, 32], "batch": 32, "compile": False, "width": 32, "critics": 2, "proposals": 12,
               "elites": 4, "handover_from": 10**6, "handover_to": 10**6 + 1}
    config = RunConfig(task="so101-reach", recipe="modem_v2", options=options, steps=0, learn_after=60,
                       evaluate_every=0, evaluation_episodes=1, checkpoint_every=40)
    session.train(Run(tmp_path / "run"), config, "cpu", 1, False)
    new = finetuned(tmp_path / "run", tmp_path / "new", "--episodes", 1, "--learn-after", 10**6)
    assert new.returncode == 0, new.stderr
    assert Policy(tmp_path / "new" / "acting.onnx").plans  # nothing was cloned

    def state() -> dict[str, Any]:
        agent: dict[str, Any] = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=False)["agent"]
        return agent

    cloned = finetuned(tmp_path / "run", tmp_path / "out", "--episodes", 1, "--learn-after", 10**6, "--data",
                       tmp_path / "new" / "bags", "--warm-updates", 3)
    assert cloned.returncode == 0, cloned.stderr
    assert state()["updates"] == state()["prepared"] == 3
    assert not any(Policy(tmp_path / "out" / name).plans for name in ("policy.onnx", "acting.onnx"))
    before = weights(tmp_path / "out" / "acting.onnx")
    later = finetuned(tmp_path / "run", tmp_path / "out", "--episodes", 2, "--learn-after", 1)
    assert later.returncode == 0, later.stderr
    steps = json.loads(later.stdout.splitlines()[-1])["transitions"]
    assert state()["prepared"] == 3 and state()["updates"] == 3 + steps
    guide, policy = (Policy(tmp_path / "out" / name) for name in ("acting.onnx", "policy.onnx"))
    assert policy.plans and not guide.plans and weights(tmp_path / "out" / "acting.onnx") == before


def test_bags_that_teach_nothing_are_refused_before_anything_moves(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    config = RunConfig(task="so101-reach", recipe="sac", options={"hidden": [8], "batch": 8, "compile": False},
                       steps=20, learn_after=10, evaluate_every=0, evaluation_episodes=1, checkpoint_every=10)
    session.train(Run(tmp_path / "run"), config, "cpu", 1, False)
    (tmp_path / "bags" / "broken").mkdir(parents=True)
    (tmp_path / "bags" / "broken" / "broken.mcap").write_bytes(b"none")
    said = finetuned(tmp_path / "run", tmp_path / "out", "--data", tmp_path / "bags")
    assert said.returncode == 2 and "none of its bags gave a transition to so101-reach" in said.stderr
    assert not (tmp_path / "out").exists()
