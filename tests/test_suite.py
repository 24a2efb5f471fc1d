"""Suites: scheduling with a trainer that only pretends, one real run, statistics by hand, and the page."""

from __future__ import annotations

import csv
import operator
import shutil
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import structs
from typer.testing import CliRunner

from robot_rl import statistics
from robot_rl.cli import app
from robot_rl.evaluate import effort
from robot_rl.log import Log, read_lines
from robot_rl.page.scores import Comparison, Public, mean_curve, read_public
from robot_rl.run import Run, RunConfig
from robot_rl.spec import PolicySpec, SpecError
from robot_rl.suite import (
    RETURNS,
    RUNS,
    Job,
    Result,
    _arguments,
    chosen_options,
    jobs,
    numbers,
    results,
    run_suite,
    tabled,
    words,
    write_tables,
)
from robot_rl.suite_report import PUBLIC_CURVES, write_suite_report
from tests.test_train import CheckingAgent, training

PRETENDER = textwrap.dedent("""
    import json, pathlib, sys, time
    words = sys.argv[1:]
    value = lambda name: words[words.index(name) + 1]
    resumed = "--resume" in words
    folder = pathlib.Path(value("--resume" if resumed else "--out"))
    if not resumed:
        config = {"task": words[0], "recipe": value("--recipe"), "seed": int(value("--seed"))}
        for name in ("steps", "learn-after", "evaluate-every", "evaluation-episodes", "checkpoint-every",
                     "action-repeat"):
            config[name.replace("-", "_")] = int(value("--" + name))
        config["options"] = {"discount": 0.99}
        contract = {"task": words[0], "rate_hz": 50, "time_limit_s": 10, "observation_size": 3, "action_size": 1}
        (folder / "contract.json").write_text(json.dumps(contract))
        (folder / "run.json").write_text(json.dumps(config))
    config = json.loads((folder / "run.json").read_text())
    with pathlib.Path(folder.parents[2] / "order").open("a") as order:
        order.write(f"{config['recipe']} {config['task']} {config['seed']} {resumed}\\n")
    if "fails" in config["task"] and not resumed:
        sys.exit("the wheel came off")
    lines = [{"step": 50, "evaluate/return_mean": 1.5, "time/seconds": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    if "slow" in config["task"] and not resumed:
        time.sleep(60)
    lines.append({"step": config["steps"], "evaluate/return_mean": 2.5 + config["seed"], "time/seconds": 2.0,
                  "evaluate/action_rate": 0.25, "evaluate/energy": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
""")


def configured(task: str, recipe: str, seed: int, **options: Any) -> RunConfig:
    return RunConfig(task=task, recipe=recipe, seed=seed, steps=100, learn_after=10, evaluate_every=50,
                     evaluation_episodes=1, checkpoint_every=50, action_repeat=2, options=options)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def run(out: Path, wanted: list, parallel: int = 2, stop: Any = lambda: False) -> tuple[dict[str, Any], list[str]]:
    """The suite with the pretender; its figures and what it reported."""
    said: list[str] = []
    return run_suite(out, wanted, parallel=parallel, device="cpu", threads=1, stop=stop,
                     train=(sys.executable, "-S", "-c", PRETENDER), report=said.append), said


def test_iqm_by_hand() -> None:
    assert statistics.iqm([100, 0, 1, 2, 3, 4, 5, 6, 7]) == 4  # 9 // 4 = 2 off each end: 2, 3, 4, 5, 6
    assert statistics.iqm([[1, 2], [3, 10]]) == 2.5
    assert statistics.iqm([7.0]) == 7
    np.testing.assert_allclose(statistics.iqm([[0, 1, 2, 30], [4, 5, 6, 7]], axis=-1), [1.5, 5.5])
    with pytest.raises(ValueError, match="no scores"):
        statistics.iqm([])


def test_iqm_is_scipys_trimmed_mean() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n in range(1, 30):
        values = rng.normal(size=n)
        assert statistics.iqm(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_bootstrap_keeps_tasks_and_draws_seeds() -> None:
    def mean(scores: np.ndarray, axis: int) -> np.ndarray:
        return scores.mean(axis)
    # without strata the share of ones would vary; within tasks of equal scores nothing does
    assert statistics.stratified_bootstrap_ci([[0, 0, 0], [1, 1, 1]], mean) == (0.5, 0.5)
    assert statistics.stratified_bootstrap_ci([[0.3], [0.9]]) is None
    # two seeds 0 and 1: both zeros in a quarter of the draws, so the 95% interval of the mean is all of [0, 1]
    assert statistics.stratified_bootstrap_ci([[0, 1]], mean) == (0, 1)
    scores = np.random.default_rng(1).normal(size=(5, 40))
    low, high = statistics.stratified_bootstrap_ci(list(scores), mean, resamples=4000) or (0, 0)
    half = 1.96 * np.sqrt(scores.var(1).mean() / 200)  # the mean's normal approximation, spread within tasks only
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.012)
    assert statistics.stratified_bootstrap_ci(list(scores), seed=3) == statistics.stratified_bootstrap_ci(
        list(scores), seed=3)


def test_probability_of_improvement_by_hand() -> None:
    # pairs of the first task: 1 > 0, 1 < 2, 2 > 0, 2 = 2, so 2.5 of 4; of the second: one tie
    assert statistics.probability_of_improvement([[1, 2], [5]], [[0, 2], [5]]) == pytest.approx((0.625 + 0.5) / 2)
    assert statistics.probability_of_improvement([[3, 4]], [[1, 2]]) == 1
    assert statistics.improvement_ci([[3, 4]], [[1, 2]]) == (1, 1)
    assert statistics.improvement_ci([[3]], [[1, 2]]) is None
    low, high = statistics.improvement_ci([[0, 3]], [[1, 2]]) or (2, 2)
    assert (low, high) == (0, 1)
    with pytest.raises(ValueError, match=r"\[2\] against \[2, 1\]"):
        statistics.probability_of_improvement([[1, 2]], [[1, 2], [3]])


def test_action_rate_and_energy_by_hand() -> None:
    # changes 1, 0, 1, 0 and 2: none from one episode to the next; squares 0, 0, 1, 0, 0, 0, 1, 1
    episodes = [np.array([[0.0, 0], [1, 0], [0, 0]]), np.array([[1.0], [-1]])]
    assert effort(episodes) == {"action_rate": pytest.approx(4 / 5), "energy": pytest.approx(3 / 8)}
    assert effort([]) == {"action_rate": None, "energy": None}
    assert effort([np.array([[0.5]])]) == {"action_rate": None, "energy": 0.25}


def test_the_last_evaluation_is_in_the_metrics(tmp_path: Path) -> None:
    figures = training(tmp_path, CheckingAgent()).run()
    last = read_lines(tmp_path / "metrics.jsonl")[-1]
    assert last["step"] == figures["steps"] == 203
    assert last["evaluate/return_mean"] == figures["return_mean"]
    assert (last["evaluate/action_rate"], last["evaluate/energy"]) == (0, 0)


def test_a_suite_runs_everything_and_one_failure_stops_nothing(tmp_path: Path) -> None:
    wanted = jobs(tmp_path, ["dmc:ball", "dmc:fails"], ["sac", "rlpd"], [0, 1], configured)
    figures, said = run(tmp_path, wanted)
    assert (figures["runs"], figures["finished"], figures["interrupted"]) == (8, 4, False)
    failing = [str(tmp_path / r / "dmc_fails" / f"seed{s}") for r in ("rlpd", "sac") for s in (0, 1)]
    assert sorted(figures["failed"]) == failing
    assert len(said) == 4 and "status 1" in said[0] and "the wheel came off" in said[0]
    seeds = [line.split()[2] for line in (tmp_path / "order").read_text().splitlines()]
    assert sorted(seeds[:4]) == ["0"] * 4  # every task under the first seed comes before the second
    rows = table(tmp_path / "returns.csv")
    assert tuple(rows[0]) == RETURNS
    mine = [tuple(row.values()) for row in rows if row["recipe"] == "sac" and row["seed"] == "1"]
    assert mine == [("state", "ball", "sac", "1", "100", "1.5"), ("state", "ball", "sac", "1", "200", "3.5")]
    lines = table(tmp_path / "runs.csv")
    assert tuple(lines[0]) == RUNS and [row["finished"] for row in lines] == ["true"] * 4 + ["false"] * 4
    assert [lines[0][key] for key in ("decisions", "env_steps", "seconds", "action_rate", "energy")] == [
        "100", "200", "2.0", "0.25", "0.5"]
    again, _ = run(tmp_path, jobs(tmp_path, ["dmc:ball", "dmc:fails"], ["sac", "rlpd"], [0, 1], configured))
    assert (again["finished"], again["failed"]) == (8, [])
    fresh = (tmp_path / "order").read_text().splitlines()[8:]
    assert len(fresh) == 4 and all("fails" in line and line.endswith("True") for line in fresh)  # what is done stays


def test_an_interrupted_suite_continues(tmp_path: Path) -> None:
    wanted = jobs(tmp_path, ["gym:slow-v0"], ["sac"], [0, 1], configured)
    metrics = wanted[0].folder / "metrics.jsonl"
    end = time.monotonic() + 20

    def stop() -> bool:
        if metrics.exists():
            with pytest.raises(SpecError, match="still at work here"):
                run(tmp_path, wanted)
        return metrics.exists() or time.monotonic() > end
    figures, said = run(tmp_path, wanted, 1, stop)
    assert (figures["interrupted"], figures["finished"], figures["failed"]) == (True, 0, [])
    assert "the same command continues" in said[0]
    assert wanted[0].status is not None  # no process is left behind
    assert [row["env_steps"] for row in table(tmp_path / "returns.csv")] == ["100"]
    again, _ = run(tmp_path, jobs(tmp_path, ["gym:slow-v0"], ["sac"], [0], configured))
    assert (again["interrupted"], again["finished"]) == (False, 1)


def test_another_run_in_the_folder_is_an_error_with_both_values(tmp_path: Path) -> None:
    Run(tmp_path / "sac/dmc_ball/seed0").create(configured("dmc:ball", "sac", 0, batch=32, discount=0.99), CONTRACT)
    assert len(jobs(tmp_path, ["dmc:ball"], ["sac"], [0], lambda *a: configured(*a, batch=32))) == 1
    with pytest.raises(SpecError, match=r"seed0/run.json: the run there has --set batch=32, the suite asks for --set "
                                        r"batch=64"):
        jobs(tmp_path, ["dmc:ball"], ["sac"], [0], lambda *a: configured(*a, batch=64))
    with pytest.raises(SpecError, match="each once"):
        jobs(tmp_path, ["dmc:ball", "dmc:ball"], ["sac"], [0], configured)
    assert words(["a, b", "c"]) == ["a", "b", "c"] and numbers("--seeds", "0,2") == [0, 2]
    with pytest.raises(SpecError, match="--seeds 0,x: give whole numbers"):
        numbers("--seeds", "0,x")


def test_a_real_run(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    pytest.importorskip("torch")
    asked = RunConfig(task="dmc:cartpole-balance", recipe="sac", seed=3, steps=40, learn_after=20, evaluate_every=20,
                      evaluation_episodes=1, checkpoint_every=20, action_repeat=50,
                      options={"hidden": [16, 16], "batch": 8, "compile": False})

    def go() -> tuple[Job, dict[str, Any]]:
        (job,) = jobs(tmp_path, [asked.task], ["sac"], [3], lambda *_: asked)
        return job, run_suite(tmp_path, [job], parallel=1, device="cpu", threads=1, stop=lambda: False)
    job, figures = go()
    assert (figures["runs"], figures["finished"]) == (1, 1), job.tail()
    rows = table(tmp_path / "returns.csv")
    assert [(row["task"], row["env_steps"]) for row in rows] == [("cartpole-balance", "1000"),
                                                                 ("cartpole-balance", "2000")]
    (line,) = table(tmp_path / "runs.csv")
    assert line["return"] == rows[1]["return"] and 0 < float(line["return"]) <= 1000
    assert 0 <= float(line["action_rate"]) <= 2 and 0 <= float(line["energy"]) <= 1 and float(line["seconds"]) > 0
    (result,) = results(tmp_path)
    assert result.config.options.keys() == {"hidden", "batch", "compile", "discount"}
    assert chosen_options(result) == asked.options  # the discount is what `train` filled in
    job, figures = go()  # the suite knows its own run: nothing is done again
    assert figures["finished"] == 1 and job.process is None


def test_the_command_line_reads_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}

    def pretend(out: Path, wanted: list[Job], **options: Any) -> dict[str, Any]:
        started.update(options, jobs=[(j.config.task, j.config.recipe, j.config.seed) for j in wanted])
        return {"failed": [], "interrupted": True}
    monkeypatch.setattr("robot_rl.suite.run_suite", pretend)
    monkeypatch.setattr("robot_rl.session.options", lambda recipe, settings: {"settings": settings})
    monkeypatch.setattr("hardware.loop.interrupted", lambda: lambda: False)
    said = CliRunner().invoke(app, ["suite", "run", "--out", str(tmp_path), "--task", "dmc:a,dmc:b", "--task", "gym:c",
                                    "--recipe", "sac", "--recipe", "rlpd", "--seeds", "4", "--set", "batch=8"])
    assert said.exit_code == 130, said.output  # as a shell says of a command that was interrupted
    assert started["jobs"] == [(t, r, 4) for t in ("dmc:a", "dmc:b", "gym:c") for r in ("sac", "rlpd")]
    assert (started["threads"], started["parallel"] >= 1) == (1, True)


def test_train_is_told_everything_that_a_run_shall_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bags, delays = tmp_path / "bags", tmp_path / "delays.json"
    wanted = RunConfig(task="so101-reach", robot="so101", recipe="rlpd", options={"batch": 8}, seed=3, steps=1,
                       learn_after=2, evaluate_every=3, evaluation_episodes=4, checkpoint_every=5, action_repeat=2,
                       envs=2, capacity=6, prior=str(bags), prior_ratio="1:0.5:7", offline_updates=8,
                       latency=str(delays))
    plain = configured("so101-reach", "rlpd", 3)
    alike = {"task", "recipe", "seed", "defaults", "action_repeat"}  # any other word left out would be seen
    assert {n for n, v in msgspec.structs.asdict(wanted).items() if v == getattr(plain, n)} == alike
    heard: list[RunConfig] = []

    def listen(run: Run, config: RunConfig, *rest: Any) -> dict[str, Any]:
        heard.append(config)
        return {}
    monkeypatch.setattr("robot_rl.session.train", listen)
    said = CliRunner().invoke(app, ["train", *_arguments(wanted, tmp_path / "run")])
    assert said.exit_code == 0, said.output
    assert heard == [wanted]


CONTRACT = PolicySpec(task="x", rate_hz=50, time_limit_s=10, observation_size=3, action_size=1)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes on three tasks, two seeds: recipe k returns 100·(k+1)·(step / 50k) + 10·seed."""
    out = tmp_path_factory.mktemp("runs") / "suite & <co>"
    for k, recipe in enumerate(("sac", "rlpd")):
        for task in ("dmc:walker-run", "dmc:cheetah-run", "gym:HalfCheetah-v5"):
            for seed in (0, 1):
                config = RunConfig(task=task, recipe=recipe, seed=seed, steps=50_000, learn_after=10,
                                   evaluate_every=10_000, evaluation_episodes=1, checkpoint_every=50, action_repeat=2,
                                   options={"discount": 0.99, "batch": 64})
                run = Run(out / recipe / task.replace(":", "_") / f"seed{seed}")
                run.create(config, CONTRACT)
                log = Log(run.folder)
                for step in range(10_000, 60_000, 10_000):
                    log.write(step, {"evaluate/return_mean": 100 * (k + 1) * step / 50_000 + 10 * seed,
                                     "evaluate/action_rate": 0.2, "evaluate/energy": 0.3, "time/seconds": step / 100})
                log.close()
    return out


def test_scores(suite: Path) -> None:
    compared = Comparison(results(suite), read_public(PUBLIC_CURVES))
    assert (compared.at, compared.recipes) == (100_000, ["rlpd", "sac"])
    best = compared.best("walker-run", 100_000)
    assert best is not None and (best.mean, best.algorithm) == (723.0, "TD-MPC2")
    assert compared.unit("walker-run", 100_000) == 1000
    assert compared.unit("HalfCheetah-v5", 100_000) == 9815.1  # FlashSAC, on v4
    np.testing.assert_allclose(compared.returns("walker-run", "sac", 100_000), [100, 110])
    np.testing.assert_allclose(compared.returns("walker-run", "sac", 50_000), [50, 60])  # between two evaluations
    assert compared.scored == ["cheetah-run", "walker-run", "HalfCheetah-v5"]
    assert compared.grid() == [60_000, 80_000, 100_000]  # public figures of HalfCheetah start at 50k
    assert set(compared.public_scores()) == {"MR.Q", "SimbaV2", "XQC"}
    curve = Public("x", "y", np.array([1.0, 3]), np.array([10.0, 30]), np.zeros(2), np.ones(2))
    assert curve.at(2) == 20 and np.isnan(curve.at(4))


def test_a_task_that_has_just_begun_is_left_out(suite: Path) -> None:
    found = results(suite)
    begun = [r if r.task != "walker-run" else replace(r, steps=r.steps[:2], returns=r.returns[:2],
                                                      last={"step": 20_000}) for r in found]
    compared = Comparison(begun, read_public(PUBLIC_CURVES))
    assert compared.at == 100_000 and compared.scored == ["cheetah-run", "HalfCheetah-v5"]
    assert Comparison([r for r in begun if not r.finished], []).at == 40_000
    assert Comparison([replace(r, config=structs.replace(r.config, steps=15_000)) for r in begun], []).at == 40_000


def test_page(suite: Path) -> None:
    told = write_suite_report(suite, suite / "report.html", baseline="sac")
    text = (suite / "report.html").read_text()
    assert "<co>" not in text and "nan" not in text.replace("finance", "")
    assert "<script" not in text and "http" not in text and "url(" not in text
    for said in ("Interquartile mean", "Probability of improvement", "rlpd over sac", "Sample efficiency",
                  "Learning curves", "TD-MPC2", "Public curves are of HalfCheetah-v4", "Action rate", "0.200 ± 0.000",
                  "105.0 ± 7.1", "<b>0.15</b>", "--steps 50000", "--set batch=64"):
        assert said in text, said
    assert "discount" not in text  # `train` filled it in; nobody asked for it
    assert "723.0 <small>TD-MPC2</small>" in text
    write_suite_report(suite, suite / "one.html", recipes=["rlpd"])
    assert "6 of 6 runs finished" in (suite / "one.html").read_text()
    assert text.count("12 of 12 runs finished") == 1
    if told["figures"]:
        names = {Path(file).name for file in told["figures"]}
        assert names == {"curves_cheetah-run.png", "curves_walker-run.png", "curves_HalfCheetah-v5.png", "iqm.png",
                         "improvement.png", "sample_efficiency.png"}
        assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in told["figures"])


def test_the_curve_of_two_seeds_worked_out_by_hand() -> None:
    config = configured("cheetah-run", "sac", 0)
    runs = [Result(config, Path(), np.array(steps), np.array(returns), {}) for steps, returns in (
        ([10, 20, 30], [1.0, 3.0, 9.0]), ([10, 30], [2.0, 8.0]))]  # the second is at 5 half way
    curve = mean_curve(runs)
    np.testing.assert_allclose(curve, [[10, 20, 30], [1.5, 4.0, 8.5], [1.0, 3.0, 8.0], [2.0, 5.0, 9.0]])


def test_curves_of_a_table(suite: Path, tmp_path: Path) -> None:
    """A table of returns alone gives the runs that it was written of."""
    table = tmp_path / "returns.csv"
    shutil.copy(write_tables(suite)["returns"], table)
    key = operator.attrgetter("task", "config.recipe", "config.seed")
    for one, other in zip(sorted(tabled(table), key=key), sorted(results(suite), key=key), strict=True):
        assert key(one) == key(other)
        assert one.steps.tolist() == other.steps.tolist() and one.returns.tolist() == other.returns.tolist()
    told = write_suite_report(table, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    if told["figures"]:
        assert (tmp_path / "figures/curves_cheetah-run.png").exists()
    shutil.rmtree(tmp_path / "figures", ignore_errors=True)
    only = write_suite_report(table, tmp_path / "report.html", recipes=["rlpd"])
    assert len(only["figures"]) == len(told["figures"])  # of the tasks that it ran on
    with pytest.raises(SpecError, match=r"--recipe ppo, ppo2: the runs in .* are of rlpd, sac"):
        write_suite_report(table, tmp_path / "report.html", recipes=["sac", "ppo2", "ppo"])
    table.write_text(table.read_text() + "state,cheetah-run,sac,0,far,1\n")
    with pytest.raises(SpecError, match=r"returns.csv, line \d+: .*'far'"):
        tabled(table)
    table.write_text("task,return\n")
    with pytest.raises(SpecError, match="the columns are task,return; a table of returns has observation,"):
        tabled(table)


def test_page_of_a_beginning(tmp_path: Path) -> None:
    """One seed of one task that is not finished, no public curve: what is missing is said."""
    run = Run(tmp_path / "sac/so101-reach/seed0")
    run.create(configured("so101-reach", "sac", 0), CONTRACT)
    with pytest.raises(SpecError, match="no evaluated run"):
        write_suite_report(tmp_path, tmp_path / "report.html")
    log = Log(run.folder)
    log.write(50, {"evaluate/return_mean": -3.0, "time/seconds": 1.0})
    log.close()
    write_suite_report(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for said in ("0 of 1 run finished", "so101-reach sac seed 0 (at step 100)", "public curves of so101-reach",
                  "\N{MINUS SIGN}3.0"):
        assert said in text, said
    with pytest.raises(SpecError, match=r"--baseline ppo: the runs in .* are of sac"):
        write_suite_report(tmp_path, tmp_path / "report.html", baseline="ppo")


def test_a_bad_curves_file_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "curves.csv"
    with pytest.raises(SpecError, match="cannot be read"):
        read_public(file)
    file.write_text("task,mean_return\n")
    with pytest.raises(SpecError, match=r"curves.csv: no column observation, algorithm, env_steps"):
        read_public(file)
    file.write_text("observation,task,algorithm,env_steps,mean_return,std_over_seeds,seeds\nstate,a,b,1,x,0,5\n")
    with pytest.raises(SpecError, match=r"line 2: mean_return='x' is no number"):
        read_public(file)


def test_public_curves_are_of_the_named_tasks() -> None:
    public = read_public(PUBLIC_CURVES)
    assert {p.task for p in public} == {"cheetah-run", "walker-run", "reacher-hard", "hopper-hop", "finger-spin",
                                        "cartpole-swingup_sparse", "quadruped-run", "HalfCheetah-v4"}
    assert not read_public(PUBLIC_CURVES, "pixels")
