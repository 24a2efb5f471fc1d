"""The training loop: a counting environment proves that loop, replay and resets line up; a run continues exactly."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import msgspec
import numpy as np
import pytest

from robot_rl.collect import Collector
from robot_rl.evaluate import evaluate, summary, wilson
from robot_rl.finite import rescue
from robot_rl.log import Log, read_lines
from robot_rl.replay import NotFinite, Replay
from robot_rl.run import Run, RunConfig
from robot_rl.session import fitting, suited
from robot_rl.spec import PolicySpec, SpecError
from robot_rl.train import Plan, Training, discount_for

LENGTH = 7


class Counting(gymnasium.Env):
    """Observation (episode seed, step); every third episode terminates, the others are cut off."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        assert seed is not None
        self.episode, self.count = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        last = self.count == LENGTH
        ends = last and self.episode % 3 == 0
        info = {"action": np.array([self.count / 100]), "success": ends}
        return self._observation(), 10.0 * self.episode + self.count, ends, last and not ends, info

    def _observation(self):
        return np.array([self.episode, self.count], np.float32)


class CheckingAgent:
    """Acts with the count it should see, and checks every batch it is given."""

    def __init__(self) -> None:
        self.acted = self.learned = 0

    def act(self, obs: np.ndarray, carry: Any = None, explore: bool = True):
        assert obs.shape == (1, 2)
        assert obs[0, 1] == self.acted % LENGTH or not explore
        assert carry is None if obs[0, 1] == 0 else carry[0, 0] == obs[0, 1]  # what this episode's last step handed on
        self.acted += explore
        return np.zeros((1, 1), np.float32), obs[:, 1:] + 1

    def update(self, data: Any) -> dict[str, float]:
        batch = data.sample(32, discount=0.9)
        episode, step = batch["obs"].T
        np.testing.assert_array_equal(batch["next_obs"], np.stack([episode, step + 1], 1))
        np.testing.assert_allclose(batch["action"][:, 0], (step + 1) / 100, rtol=1e-6)  # the sent action, not the asked
        np.testing.assert_allclose(batch["reward"], 10 * episode + step + 1)
        np.testing.assert_array_equal(batch["plan"][:, 0], step + 1)  # what was carried on from there
        ended = (step == LENGTH - 1) & (episode % 3 == 0)
        np.testing.assert_allclose(batch["discount"], np.where(ended, 0.0, 0.9), rtol=1e-6)
        self.learned += 1
        return {"learned": float(self.learned)}

    def state_dict(self):
        return {"acted": self.acted, "learned": self.learned}

    def load_state_dict(self, state):
        self.acted, self.learned = state["acted"], state["learned"]


class Idle:
    """Does nothing."""

    def reset(self) -> None:
        pass

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        return np.zeros(1)


def training(folder: Path, agent: Any, steps: int = 200, save: Any = lambda state: None) -> Training:
    replay = Replay(80, 2, 1, plan_size=1)  # smaller than the run: the ring goes round
    collector = Collector(Counting(), agent, replay, seed=3, random_steps=0)
    plan = Plan(steps, learn_after=20, evaluate_every=1000, evaluation_episodes=2, checkpoint_every=50, log_every=50)
    return Training(collector, agent, Counting(), plan, Log(folder), save)


def test_every_batch_is_the_right_one(tmp_path: Path) -> None:
    agent = CheckingAgent()
    figures = training(tmp_path, agent).run()
    assert figures["steps"] == 203  # to the end of the episode
    assert agent.learned == 203 - 19
    assert agent.acted == 203


def test_checkpoints_fall_between_episodes(tmp_path: Path) -> None:
    saved: list[dict[str, Any]] = []
    training(tmp_path, CheckingAgent(), save=saved.append).run()
    assert [s["collector"]["steps"] for s in saved] == [56, 112, 168, 203]
    assert all(s["collector"]["steps"] % LENGTH == 0 for s in saved)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_message(tmp_path: Path) -> None:
    class Broken(CheckingAgent):
        def update(self, data):
            return {"loss": float("nan")}
    words = r"step 50: train/loss.*not_finite\.npz, the last checkpoint is intact"
    with pytest.raises(FloatingPointError, match=words), rescue(tmp_path):
        training(tmp_path, Broken()).run()


def test_weights_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    """The metrics still are when the last update before a checkpoint breaks the weights."""
    class Broken(CheckingAgent):
        def state_dict(self):
            return super().state_dict() | {"weights": np.array([np.nan if self.learned > 60 else 0.0])}
    saved: list[dict[str, Any]] = []
    with pytest.raises(NotFinite, match=r"step 112: agent/weights not finite") as caught:
        training(tmp_path, Broken(), save=saved.append).run()
    assert [s["collector"]["steps"] for s in saved] == [56]
    assert len(caught.value.batch["obs"]) == 32


def test_an_observation_that_is_not_finite_stops_the_run_before_it_is_learned_from(tmp_path: Path) -> None:
    class Broken(Counting):
        def step(self, action):
            observation, *rest = super().step(action)
            return observation * (np.nan if self.episode == 9 and self.count == 3 else 1.0), *rest
    run = training(tmp_path, CheckingAgent())
    run.collector.env = Broken()
    with pytest.raises(FloatingPointError, match=r"next_obs\[0\] is nan in step 65"), rescue(tmp_path):
        run.run()
    assert np.isnan(np.load(tmp_path / "not_finite.npz")["next_obs"]).all()


def test_a_checkpoint_of_another_recipe_or_size_is_refused() -> None:
    torch = pytest.importorskip("torch")
    config = RunConfig(task="t", recipe="sac", steps=1, learn_after=1, evaluate_every=1, evaluation_episodes=1,
                       checkpoint_every=1, options={"hidden": [32, 32]})
    words, path = r"run/c\.pt: a checkpoint of recipe rlpd, the run is of sac", Path("run/c.pt")
    with pytest.raises(SpecError, match=words), fitting(path, {"recipe": "rlpd"}, config):
        raise AssertionError("nothing is loaded")
    words = r'run/c\.pt: does not fit sac .*"hidden".*\[4, 2\].*\[8, 2\]'
    with pytest.raises(SpecError, match=words), fitting(path, {"recipe": "sac"}, config):
        torch.nn.Linear(2, 8).load_state_dict(torch.nn.Linear(2, 4).state_dict())


def test_evaluation_uses_fixed_seeds_and_gives_intervals() -> None:
    figures = evaluate(Counting(), Idle(), 6, seed=1, show=False)
    assert figures["episodes"] == 6
    assert figures["success_rate"] == pytest.approx(2 / 6)
    assert figures["success_ci95"] == pytest.approx([0.0968, 0.7000], abs=1e-3)
    assert figures["return_mean"] == pytest.approx(np.mean([7 * 10 * k + 28 for k in range(6)]))


def test_wilson_by_hand() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert summary([1.0], [None])["success_rate"] is None


def test_discount_suits_the_episode() -> None:
    assert [discount_for(n) for n in (60, 500, 1000, 10_000, 0)] == pytest.approx([0.95, 0.99, 0.995, 0.995, 0.99])


@pytest.mark.parametrize(("recipe", "given", "expected"), [
    ("sac", {}, {"discount": 0.95}), ("sac", {"discount": 0.9}, {"discount": 0.9}), ("dreamer_tiny", {}, {})])
def test_a_run_has_the_discount_of_its_episodes_unless_its_recipe_has_its_own(recipe: str, given: dict[str, float],
                                                                             expected: dict[str, float]) -> None:
    pytest.importorskip("torch")
    config = RunConfig(task="x", recipe=recipe, options=given, steps=100, learn_after=10, evaluate_every=0,
                       evaluation_episodes=1, checkpoint_every=50)
    short = PolicySpec(task="x", rate_hz=20, time_limit_s=3, observation_size=3, action_size=1)
    assert suited(config, short).options == expected


def test_a_run_goes_on_by_the_options_that_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from robot_rl.learn import recipes
    from robot_rl.session import make_agent
    config = RunConfig(task="x", recipe="sac", options={"batch": 7}, steps=100, learn_after=10, evaluate_every=0,
                       evaluation_episodes=1, checkpoint_every=50)
    contract = PolicySpec(task="x", rate_hz=20, time_limit_s=3, observation_size=3, action_size=1)
    begun = suited(config, contract)
    changed = recipes.RECIPES["sac"]._replace(changes={"hidden": (8,), "lr": 1.0})
    monkeypatch.setitem(recipes.RECIPES, "sac", changed)
    sizes = [(agent.schedule.lr, agent.schedule.batch, agent.actor.net.sizes[1:-1])
             for agent in (make_agent(one, contract, "cpu") for one in (begun, config))]
    assert sizes == [(3e-4, 7, (256, 256)), (1.0, 7, (8,))]


def test_a_checkpoint_gives_back_what_it_was_given_with_numbers_of_numpy_as_plain_ones(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from robot_rl.learn import checkpoint
    checkpoint.save(tmp_path / "c.pt", {"blind": np.float64(0.5), "parts": [np.int64(3), {"row": np.ones(2)}, None]})
    state = checkpoint.load(tmp_path / "c.pt")
    assert state["blind"] == 0.5 and type(state["blind"]) is float and state["parts"][0] == 3
    np.testing.assert_array_equal(state["parts"][1]["row"], np.ones(2))


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from robot_rl.learn import checkpoint
    torch.save({"step": 3}, tmp_path / "c.pt")  # as before formats had a number
    with pytest.raises(ValueError, match=r"c\.pt: has format 1, this version.* format 2: go on .*before formats"):
        checkpoint.load(tmp_path / "c.pt")
    checkpoint.save(tmp_path / "c.pt", {"step": 3})
    assert checkpoint.load(tmp_path / "c.pt") == {"step": 3}
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    with pytest.raises(ValueError, match=r"c\.pt: has format 2, this version.* format 3: go on .*made it \(\d"):
        checkpoint.load(tmp_path / "c.pt")


def test_a_damaged_checkpoint_is_refused_and_a_failed_write_leaves_the_old_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from robot_rl.learn import checkpoint
    file, rows = tmp_path / "c.pt", np.arange(10_000.0)
    checkpoint.save(file, {"replay": {"rows": rows[2_000:]}, "step": 3})
    assert file.stat().st_size < 70_000  # of a part of an array nothing more is written
    whole = file.read_bytes()
    np.testing.assert_array_equal(checkpoint.load(file)["replay"]["rows"], rows[2_000:])
    with pytest.raises(TypeError, match="cannot pickle"):
        checkpoint.save(file, {"lock": threading.Lock()})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # as on a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint.save(file, {"rows": rows})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == whole and list(tmp_path.iterdir()) == [file]
    file.write_bytes(whole[:30_000] + bytes([whole[30_000] ^ 1]) + whole[30_001:])
    with pytest.raises(ValueError, match=r"c\.pt: cannot be read.*damaged"):
        checkpoint.load(file)
    file.write_bytes(whole[:30_000])
    with pytest.raises(ValueError, match=r"c\.pt: cannot be read"):
        checkpoint.load(file)


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in (10, 20, 30):
        log.write(step, {"x": step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "x"')  # a crash in the middle of a line
    Log(tmp_path, step=20).close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [10, 20]


ARGUMENTS = ["train", "so101-reach", "--steps", "900", "--learn-after", "300", "--evaluate-every", "100000",
             "--evaluation-episodes", "2", "--checkpoint-every", "300", "--threads", "1", "--set", "hidden=[32,32]",
             "--set", "batch=32", "--set", "compile=false", "--json"]


def robot_rl(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "robot_rl.cli", *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("late", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_time_continues_bit_for_bit(late: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    file, spans = tmp_path / "latency.json", {"driver_s": [0.0], "age_s": [0.01, 0.03, 0.07]}
    file.write_text(json.dumps({"robot": "so101", "policies": [], "ticks": 3, "command_s": [0.0, 0.004],
                                "inputs": {"joints": spans, "tip": spans}}))
    more = ("--latency", file) if late else ()
    whole = robot_rl(*ARGUMENTS, "--out", tmp_path / "whole", *more)
    broken = robot_rl(*ARGUMENTS, "--out", tmp_path / "broken", "--steps", "700", *more)  # asked for fewer at first
    end = time.monotonic() + 120
    while not (tmp_path / "broken" / "checkpoint.pt").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.7)
    os.kill(broken.pid, signal.SIGKILL)
    broken.wait()
    while late and not (tmp_path / "whole" / "run.json").exists():
        time.sleep(0.02)
    file.unlink()  # a run has a copy of its own
    run = Run(tmp_path / "broken")
    older = {name: value for name, value in run.config.defaults.items() if name != "hold"}
    run.write(msgspec.structs.replace(run.config, defaults=older))  # as of before that option was there
    resumed = robot_rl("train", "--resume", tmp_path / "broken", "--steps", "900", "--threads", "1", "--json")
    results = []
    for process in (whole, resumed):
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    assert "began before default had these options, and goes on with them: hold=" in err.replace("\n", " "), err
    assert "hold" in Run(run.folder).config.defaults  # told once
    assert results[0]["return_mean"] == results[1]["return_mean"]
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "broken")]
    for key, value in states[0]["agent"]["modules"].items():
        assert torch.equal(value, states[1]["agent"]["modules"][key]), key
    assert Run(tmp_path / "broken").config.steps == 900
    for wrong, said in ((("--steps", "800"), "--steps 800: .* was asked for 900"),
                        (("--seed", "1", "--set", "lr=1"), "without a word on seed, set")):
        _, err = robot_rl("train", "--resume", tmp_path / "broken", *wrong).communicate(timeout=60)
        assert re.search(said, err.replace("\n", " ")), err


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    process = robot_rl(*ARGUMENTS, "--out", tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "holds a run already" in err


def test_a_planner_is_exported_as_it_is_to_search_on_the_robot(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("torch")
    from robot_rl import session
    from robot_rl.policy import Policy
    trained = {"width": 16, "hidden": [16], "encoder_hidden": [16], "samples": 16, "iterations": 1, "elites": 4,
               "proposals": 2, "batch": 8, "compile": False, "hold": 3, "anneal": 2}
    config = RunConfig(task="so101-reach", recipe="tdmpc2", steps=24, learn_after=20, evaluate_every=24,
                       evaluation_episodes=1, checkpoint_every=24, options=trained)
    run, file = tmp_path / "run", tmp_path / "planner.onnx"
    session.train(Run(run), config, "cpu", 1, False)
    sizes = []
    for changes in ([], ["samples=32", "iterations=3"]):
        session.export(run, file, planner=True, changes=changes)
        policy = Policy(file)
        policy.warm_up(2)
        sizes.append(policy.spec.trained["options"] | {"bytes": file.stat().st_size})
    assert [(one["samples"], one["iterations"], one["width"]) for one in sizes] == [(16, 1, 16), (32, 3, 16)]
    assert sizes[0]["bytes"] < sizes[1]["bytes"], "its candidates are stored"
    assert policy.hold == 1, "by then noise is drawn anew"
    for changes, planner, said in ((["samples=32"], False, "--set samples=32 without --planner"),
                                   (["width=8"], True,
                                    "--set width=8: tdmpc2 takes .* one of horizon, asked, iterations, "),
                                   (["elites=40"], True, "elites is 40")):
        with pytest.raises((SpecError, ValueError), match=said):
            session.export(run, file, planner=planner, changes=changes)
    config = Run(run).config
    Run(run).write(msgspec.structs.replace(config, defaults={
        name: value for name, value in config.defaults.items() if name != "asked"}))
    capsys.readouterr()
    session.export(run, file, planner=True)
    assert capsys.readouterr().err == f"{run}: began before tdmpc2 had these options, and goes on with them: asked=2\n"


@pytest.mark.parametrize(("arguments", "words"), [
    (["train", "so101-reach", "--recipe", "ppo"], "no recipe is named 'ppo'; there are sac, "),
    (["train", "so101-reach", "--set", "lerning=1"], "NAME one of"),
    (["train", "so101-reech"], "did you mean so101-reach?); there are"),
    (["train", "so101-reach", "--capacity", "900000000000", "--steps", "900000000000"], "GB are available"),
    (["train", "gym:CartPole-v1"], "only bounded boxes"),
    (["train", "dmc:cheetah-rum"], "cheetah-run"),
    (["export", "/nowhere"], "is not a run"),
    (["eval", "nowhere.onnx"], "policy 'nowhere.onnx': no file nowhere.onnx; policies that come with the package: "),
    (["eval", "/"], "is not a run"),
    (["eval", "runs/reech"], "eval runs/reech: no run folder, no .onnx file"),
    (["inspect", "so102"], "policies: furuta-swingup, so101-reach; nor is it a run"),
    (["sim-robot", "so102"], "robots that come with the package"),
    (["sim-robot", "so101", "--gap", "mass=1"], "payload"),
    (["finetune", "/nowhere", "--robot", "so101"], "is not a run"),
])
def test_bad_input_is_one_clear_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    process = robot_rl(*arguments, *(["--out", str(tmp_path / "run")] if arguments[0] == "train" else []))
    _, err = process.communicate(timeout=90)
    assert process.returncode == 2
    assert words in err
    assert "Traceback" not in err
