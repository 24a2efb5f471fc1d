"""Training from bags beside what is collected: the share of each batch, and a run that continues exactly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.collect import Collector
from robot_rl.log import Log, read_lines
from robot_rl.replay import ONLINE, PRIOR, Ratio, Replay
from robot_rl.run import Run, RunConfig
from robot_rl.spec import SpecError
from robot_rl.train import Plan, Training
from tests.test_train import LENGTH, Counting


class Watching:
    """Remembers where its batches came from."""

    def __init__(self) -> None:
        self.batches: list[dict[str, np.ndarray]] = []
        self.offline = 0

    def act(self, obs: np.ndarray, carry: Any = None, explore: bool = True):
        return np.zeros((1, 1), np.float32), carry

    def update(self, data: Any, offline: bool = False) -> dict[str, float]:
        self.batches.append(data.sample(8))
        self.offline += offline
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def training(folder: Path, agent: Any, steps: int, filled: bool = True, ratio: float | Ratio = 0.25, offline: int = 0
             ) -> Training:
    prior = Replay(100, 2, 1, seed=5)
    if filled:
        prior.begin(np.array([-1, 0]))
        for k in range(20):
            prior.step(np.zeros(1), 0.0, np.array([-1, k + 1]), False, k == 19)
    collector = Collector(Counting(), agent, Replay(200, 2, 1), seed=3, random_steps=0)
    plan = Plan(steps, learn_after=LENGTH, evaluate_every=1000, evaluation_episodes=1, log_every=4,
                offline_updates=offline)
    return Training(collector, agent, Counting(), plan, Log(folder), lambda state: None, prior, ratio)


def test_the_asked_share_of_every_batch_is_prior(tmp_path: Path) -> None:
    agent = Watching()
    training(tmp_path, agent, 5 * LENGTH).run()
    for batch in agent.batches:
        assert (batch["source"] == [PRIOR] * 2 + [ONLINE] * 6).all()
        assert ((batch["obs"][:, 0] == -1) == (batch["source"] == PRIOR)).all()


def test_updates_before_the_first_step_are_of_the_prior_alone(tmp_path: Path) -> None:
    agent = Watching()
    training(tmp_path, agent, 2 * LENGTH, offline=10).run()
    alone = [bool((batch["obs"][:, 0] == -1).all()) for batch in agent.batches]
    assert alone == [True] * 10 + [False] * (len(alone) - 10) and agent.offline == 10
    assert len(alone) == 10 + 2 * LENGTH  # those of the seed are made up for
    steps = [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert steps == [-6, -2, 0, 4, 8, 12, 14]  # at 0 and 14 evaluations


def test_the_prior_continues_with_the_run(tmp_path: Path) -> None:
    whole, first, second = Watching(), Watching(), Watching()
    ratio = Ratio(0.5, 0.0, 5 * LENGTH)
    training(tmp_path / "a", whole, 6 * LENGTH, ratio=ratio).run()
    broken = training(tmp_path / "b", first, 3 * LENGTH, ratio=ratio)
    broken.run()
    resumed = training(tmp_path / "c", second, 6 * LENGTH, filled=False, ratio=ratio)
    resumed.collector.env.episode = 2  # type: ignore[attr-defined]  # it counts its own episodes
    resumed.load_state_dict(broken.state_dict())
    resumed.run()
    assert len(whole.batches) == len(first.batches) + len(second.batches)
    shares = [round(8 * ratio.at(LENGTH + k)) for k in range(len(whole.batches))]
    assert [(batch["source"] == PRIOR).sum() for batch in whole.batches] == shares and {0, 3} <= set(shares)
    for ours, theirs in zip(whole.batches, first.batches + second.batches, strict=True):
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key], key)


@pytest.mark.parametrize("recipe, offline", [("rlpd", 0), ("fowm", 40), ("modem", 40), ("modem_v2", 40), ("bmpc", 0)])
def test_a_run_with_a_prior_continues_bit_for_bit_without_its_bags(recipe: str, offline: int, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from robot_rl import session
    from robot_rl.learn import checkpoint
    from sim.demos import demonstrate
    bags = tmp_path / "bags"
    demonstrate("so101-lift", None, 1, bags, seed=0)
    options = {"hidden": [16], "critics": 2, "batch": 16, "updates_per_step": 1, "compile": False}
    if recipe != "rlpd":
        options |= {"width": 16, "samples": 8, "elites": 2, "proposals": 2, "iterations": 1, "horizon": 2}
    if recipe == "bmpc":
        options |= {"replan_rows": 4}

    def config(prior: Path) -> RunConfig:
        return RunConfig(task="so101-lift", recipe=recipe, options=options, steps=300, learn_after=60, prior=str(prior),
                         evaluate_every=1000, evaluation_episodes=1, checkpoint_every=20 if offline else 100,
                         offline_updates=offline)
    session.train(Run(tmp_path / "whole"), config(bags), "cpu", 1, False)
    save = checkpoint.save

    def save_and_die(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        raise KeyboardInterrupt
    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        session.train(Run(tmp_path / "broken"), config(bags), "cpu", 1, False)
    monkeypatch.setattr(checkpoint, "save", save)
    shutil.rmtree(bags)
    run = Run(tmp_path / "broken")
    session.train(run, run.config, "cpu", 1, True)
    states = [checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "broken")]
    for key, value in states[0]["agent"]["modules"].items():
        assert torch.equal(value, states[1]["agent"]["modules"][key]), key
    for memory in ("prior", "replay"):
        np.testing.assert_array_equal(states[0][memory]["rows"], states[1][memory]["rows"])
    if recipe == "bmpc":
        assert (states[0]["prior"]["rows"][:, -1] > 0).any() and (states[0]["replay"]["rows"][:, -1] > 0).any()  # plans


def test_demonstrations_in_three_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from robot_rl import session
    from robot_rl.learn import checkpoint
    from robot_rl.learn.agent import Agent
    from sim.demos import demonstrate
    demonstrate("so101-lift", None, 1, tmp_path / "bags", seed=0)
    did, sent, act, update = list[str](), list[np.ndarray](), Agent.act, Agent.update

    def acts(agent: Agent, obs: Any, carry: Any = None, explore: bool = True) -> tuple[np.ndarray, Any]:
        action, carry = act(agent, obs, carry, explore)
        if explore:
            did.append("plan" if carry is not None else "act")
            sent.append(action[0])
        return action, carry

    def updates(agent: Agent, data: Any, offline: bool = False) -> dict[str, Any]:
        metrics = update(agent, data, offline)
        did.append("model" if "model/consistency" in metrics else "clone")
        return metrics

    monkeypatch.setattr(Agent, "act", acts)
    monkeypatch.setattr(Agent, "update", updates)
    options = {"hidden": [16], "critics": 2, "batch": 16, "width": 16, "samples": 8, "elites": 2, "proposals": 2,
               "iterations": 1, "horizon": 2, "compile": False}
    config = RunConfig(task="so101-lift", recipe="modem", options=options, steps=90, learn_after=60, seed=1,
                       prior=str(tmp_path / "bags"), prior_ratio="0.75:0.25:90", evaluate_every=1000,
                       evaluation_episodes=1, checkpoint_every=1000, offline_updates=40)
    session.train(Run(tmp_path / "run"), config, "cpu", 1, False)
    assert did[:161] == ["clone"] * 40 + ["act"] * 60 + ["model"] * 60 + ["plan"]
    assert did[160:] == ["plan", "model"] * (len(did[160:]) // 2)
    rows = checkpoint.load(tmp_path / "run" / "checkpoint.pt")["replay"]["rows"]
    size = Run(tmp_path / "run").contract.observation_size
    kept = rows[rows[:, -1] > 0, size:-3]
    assert np.isclose(kept[:60], np.array(sent[:60]), atol=1e-6).mean() > 0.8  # safety limits change some


def test_a_prior_that_gives_nothing_is_an_error_and_makes_no_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from robot_rl import session
    from sim.demos import demonstrate
    demonstrate("so101-lift", None, 1, tmp_path / "bags", seed=0)
    config = RunConfig(task="furuta-swingup", recipe="sac", steps=10, learn_after=5, evaluate_every=10,
                       evaluation_episodes=1, checkpoint_every=10, prior=str(tmp_path / "bags"))
    with pytest.raises(SpecError, match=r"--prior .*bags: none of its bags.*furuta-swingup"):
        session.train(Run(tmp_path / "run"), config, "cpu", 1, False)
    assert not (tmp_path / "run").exists()


def test_sequences_longer_than_an_episode_or_than_the_bags_are_an_error_and_make_no_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from robot_rl import session
    from sim.demos import demonstrate
    demonstrate("so101-lift", None, 1, tmp_path / "bags", seed=0)

    def config(horizon: int, prior: Path | None) -> RunConfig:
        return RunConfig(task="so101-lift", recipe="tcrl", steps=10, learn_after=5, evaluate_every=10,
                         evaluation_episodes=1, checkpoint_every=10, options={"horizon": horizon},
                         prior=str(prior) if prior else None)

    with pytest.raises(SpecError, match=r"horizon: .* have 5000 steps, an episode of so101-lift at most \d+"):
        session.train(Run(tmp_path / "run"), config(5000, None), "cpu", 1, False)
    with pytest.raises(SpecError, match=r"bags: the longest unbroken run .* has \d+ steps, .* have 99"):
        session.train(Run(tmp_path / "run"), config(99, tmp_path / "bags"), "cpu", 1, False)
    assert not (tmp_path / "run").exists()


def test_offline_updates_without_enough_to_learn_from_are_an_error_and_make_no_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from robot_rl import session
    from sim.demos import demonstrate
    demonstrate("so101-lift", None, 1, tmp_path / "bags", seed=0)

    def config(updates: int, prior: Path | None) -> RunConfig:
        return RunConfig(task="so101-lift", recipe="fowm", steps=10, learn_after=5, evaluate_every=10,
                         evaluation_episodes=1, checkpoint_every=10, options={"batch": 4096, "compile": False},
                         prior=str(prior) if prior else None, offline_updates=updates)

    for updates, prior, said in ((5, None, r"--offline-updates 5: .*--prior, which is not given"),
                                 (-1, tmp_path / "bags", r"--offline-updates -1: at least 0"),
                                 (5, tmp_path / "bags", r"bags: its bags gave \d+ transitions, .* 4096")):
        with pytest.raises(SpecError, match=said):
            session.train(Run(tmp_path / "run"), config(updates, prior), "cpu", 1, False)
    assert not (tmp_path / "run").exists()


def test_a_ratio_that_makes_no_sense_is_an_error_and_makes_no_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from robot_rl import session
    config = RunConfig(task="furuta-swingup", recipe="sac", steps=10, learn_after=5, evaluate_every=10,
                       evaluation_episodes=1, checkpoint_every=10, prior=str(tmp_path), prior_ratio="0.5:0")
    with pytest.raises(SpecError, match=r"--prior-ratio 0\.5:0: .*FROM:TO:STEPS"):
        session.train(Run(tmp_path / "run"), config, "cpu", 1, False)
    assert not (tmp_path / "run").exists()
