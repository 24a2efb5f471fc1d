"""Many runs: tasks by recipes by seeds, each a training process of its own, and what came of them in two tables.

`returns.csv` holds every evaluation of every run, `runs.csv` one line for each run. Both are written again after each
run, from the run folders, which alone say how far a run is: the same command continues wherever the last one stopped.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from robot_rl.log import progress, read_lines, write_atomic
from robot_rl.run import Run, RunConfig
from robot_rl.spec import SpecError
from robot_rl.train import discount_for

TRAIN = (sys.executable, "-m", "robot_rl.cli", "train")
RETURNS = ("observation", "task", "recipe", "seed", "env_steps", "return")
RUNS = ("observation", "task", "recipe", "seed", "decisions", "env_steps", "seconds", "return", "action_rate", "energy",
        "finished")
DERIVED = {"discount"}  # options that `train` fills in from the task where none are given


@dataclass(frozen=True)
class Result:
    """What a run's folder tells, as far as the run is. Steps are env_steps: decisions times action repeat."""

    config: RunConfig
    folder: Path
    steps: np.ndarray
    """(N,) where it was evaluated."""
    returns: np.ndarray
    """(N,) mean return of each evaluation."""
    last: dict[str, Any]
    """The last evaluation's line of metrics.jsonl; empty before the first."""
    observation: str = "state"
    """What it learned from, as public tables have it: "state" or "pixels"."""

    @property
    def task(self) -> str:
        """The task's name without its suite, as public tables have it."""
        return self.config.task.partition(":")[2] or self.config.task

    @property
    def finished(self) -> bool:
        """Whether the evaluation at the end is there."""
        return bool(self.last) and self.last["step"] >= self.config.steps


@dataclass(eq=False)
class Job:
    """One run of a suite."""

    config: RunConfig
    folder: Path
    done: int = 0
    """Decisions taken, as of the last look."""
    process: subprocess.Popen[bytes] | None = None

    def start(self, train: Sequence[str], device: str, threads: int, hold: int) -> None:
        """Train, or continue from the checkpoint. The process keeps the file descriptor `hold` open while it lives."""
        command = [*train, *_arguments(self.config, self.folder), "--device", device, "--threads", str(threads)]
        self.folder.mkdir(parents=True, exist_ok=True)
        quiet = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
        with (self.folder / "train.log").open("ab", buffering=0) as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=os.environ | quiet, pass_fds=(hold,))

    @property
    def status(self) -> int | None:
        """The process's exit status; None when it runs or was never started."""
        return None if self.process is None else self.process.poll()

    def look(self) -> None:
        """See how many decisions were taken."""
        lines = read_lines(self.folder / "metrics.jsonl")
        self.done = min(int(lines[-1]["step"]), self.config.steps) if lines else 0

    def wait(self) -> None:
        """Wait for the process to end, 10 s at most, then end it."""
        if self.process is None:
            return
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self, lines: int = 12) -> str:
        """The end of what the process said."""
        said = (self.folder / "train.log").read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(f"  {line}" for line in said)


def words(given: Sequence[str]) -> list[str]:
    """The words of a repeatable option, each of which may hold several with commas."""
    return [word.strip() for text in given for word in text.split(",") if word.strip()]


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers with commas. Raises SpecError that names the option."""
    try:
        return [int(word) for word in words([text])]
    except ValueError as error:
        raise SpecError(f"{option} {text}: give whole numbers with commas, as in 0,1") from error


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def jobs(out: Path, tasks: Sequence[str], recipes: Sequence[str], seeds: Sequence[int],
         configured: Callable[[str, str, int], RunConfig]) -> list[Job]:
    """The runs in the order they start: every task and recipe under the first seed, then under the second.

    `configured(task, recipe, seed)` is what a run shall be. Raises SpecError where a folder holds another run.
    """
    for name, chosen in (("task", tasks), ("recipe", recipes), ("seed", seeds)):
        if not chosen or len(set(chosen)) < len(chosen):
            raise SpecError(f"suite: {name}s {', '.join(map(str, chosen)) or '(none)'}: give at least one, each once")
    found = []
    for seed in seeds:
        for task in tasks:
            for recipe in recipes:
                folder = out / recipe / re.sub(r"[:/]", "_", task) / f"seed{seed}"
                found.append(Job(configured(task, recipe, seed), folder))
                if (folder / "run.json").exists():
                    _same(found[-1].config, folder)
    return found


def run_suite(out: Path, wanted: Sequence[Job], *, parallel: int, device: str, threads: int, stop: Callable[[], bool],
              train: Sequence[str] = TRAIN, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Run what is not finished, `parallel` at a time, until all are or `stop()`; a run that fails stops no other.

    `report` is told the end of the log of each failed run. Raises SpecError when a suite runs in `out` already.
    """
    out.mkdir(parents=True, exist_ok=True)
    began, failed = time.monotonic(), list[Job]()
    with _claimed(out) as hold:
        tables = write_tables(out)
        finished = {r.folder for r in results(out) if r.finished}
        waiting, running = deque(j for j in wanted if j.folder not in finished), list[Job]()
        bar = _Bar(wanted)
        try:
            while (waiting or running) and not stop():
                while waiting and len(running) < parallel:
                    running.append(waiting.popleft())
                    running[-1].start(train, device, threads, hold)
                for job in [j for j in running if j.status is not None]:
                    running.remove(job)
                    if job.status != 0:
                        failed.append(job)
                    write_tables(out)
                bar.show(running, len(wanted) - len(waiting) - len(running) - len(failed), len(failed))
                time.sleep(0.1)
        finally:
            for job in running:  # what they did since their last checkpoint is done again by the next suite
                if job.process is not None:
                    job.process.terminate()
            for job in running:
                job.wait()
            bar.close(len(wanted) - len(waiting) - len(running) - len(failed), len(failed))
            write_tables(out)
    for job in failed:
        report(f"suite: {job.folder} ended with status {job.status}; the end of its train.log:\n{job.tail()}")
    if waiting or running:
        report("suite: interrupted; the same command continues from the runs' last checkpoints")
    folders = {job.folder for job in wanted}
    return {"out": str(out), "runs": len(wanted), "finished": sum(r.finished and r.folder in folders
                                                                  for r in results(out)),
            "failed": [str(job.folder) for job in failed], "interrupted": bool(waiting or running),
            "seconds": time.monotonic() - began, **tables}


def results(out: Path) -> list[Result]:
    """Every run below a suite's folder, by task, recipe and seed, finished or not."""
    found = []
    for file in out.glob("*/*/seed*/run.json"):
        run = Run(file.parent)
        config, observation = run.config, "pixels" if run.contract.vision else "state"
        lines = {line["step"]: line for line in read_lines(file.parent / "metrics.jsonl")
                 if "evaluate/return_mean" in line}  # a run killed at its very end is evaluated there twice
        steps = np.array(sorted(lines), int)
        returns = np.array([lines[step]["evaluate/return_mean"] for step in steps.tolist()], float)
        found.append(Result(config, file.parent, steps * config.action_repeat, returns,
                            lines[int(steps[-1])] if len(steps) else {}, observation))
    return sorted(found, key=lambda r: (r.config.task, r.config.recipe, r.config.seed))


def tabled(file: Path) -> list[Result]:
    """The runs that a table like returns.csv holds, each finished where the table ends. Raises SpecError."""
    runs: dict[tuple[str, str, str, int], list[tuple[int, float]]] = {}
    for line, row in table_rows(file, RETURNS, "a table of returns", exact=True):
        try:
            run = row["observation"], row["task"], row["recipe"], int(row["seed"])
            runs.setdefault(run, []).append((int(row["env_steps"]), float(row["return"])))
        except (TypeError, ValueError) as error:
            raise SpecError(f"{file}, line {line}: {error}") from error
    found = []
    for (observation, task, recipe, seed), rows in sorted(runs.items()):
        steps, returns = (np.array(column) for column in zip(*sorted(rows), strict=True))
        config = RunConfig(task=task, recipe=recipe, seed=seed, steps=int(steps[-1]), learn_after=0, evaluate_every=0,
                           evaluation_episodes=0, checkpoint_every=0)
        found.append(Result(config, file, steps, returns, {"step": config.steps}, observation))
    return found


def table_rows(file: Path, columns: Sequence[str], kind: str, *, exact: bool = False
               ) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and row of a CSV file that has these columns, or `exact`ly these. Raises SpecError."""
    try:
        with file.open(newline="") as text:
            reader = csv.DictReader(text)
            there = tuple(reader.fieldnames or ())
            missing = [column for column in columns if column not in there]
            if missing or (exact and there != tuple(columns)):
                raise SpecError(f"{file}: no column {', '.join(missing) or 'more'}; the columns are {','.join(there)}; "
                                f"{kind} has {','.join(columns)}")
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise SpecError(f"{file}: cannot be read: {error.strerror}") from error


def chosen_options(result: Result) -> dict[str, Any]:
    """A run's options without the discount, where that is what `train` fills in."""
    contract, options = Run(result.folder).contract, result.config.options
    derived = discount_for(round(contract.time_limit_s * contract.rate_hz))
    return {k: v for k, v in options.items() if k != "discount" or v != derived}


def write_tables(out: Path) -> dict[str, str]:
    """Write returns.csv and runs.csv of what is below `out`; returns their paths by `returns` and `table`."""
    found = results(out)
    write_atomic(out / "returns.csv", _csv(RETURNS, (
        (r.observation, r.task, r.config.recipe, r.config.seed, step, value)
        for r in found for step, value in zip(r.steps.tolist(), r.returns.tolist(), strict=True))))
    write_atomic(out / "runs.csv", _csv(RUNS, (_row(r) for r in found)))
    return {"returns": str(out / "returns.csv"), "table": str(out / "runs.csv")}


def _row(result: Result) -> tuple[Any, ...]:
    last, config = result.last, result.config
    step = last.get("step", 0)
    figures = (last.get(key, "") for key in ("time/seconds", "evaluate/return_mean", "evaluate/action_rate",
                                             "evaluate/energy"))
    return (result.observation, result.task, config.recipe, config.seed, step, step * config.action_repeat, *figures,
            str(result.finished).lower())


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()


def _arguments(config: RunConfig, folder: Path) -> list[str]:
    """What `train` is told."""
    if (folder / "run.json").exists():
        return ["--resume", str(folder)]
    out = [config.task, "--recipe", config.recipe, "--out", str(folder)]
    for name, value in msgspec.structs.asdict(config).items():
        if name not in ("task", "recipe", "options", "defaults") and value is not None:
            out += [f"--{name.replace('_', '-')}", str(value)]
    for name, value in config.options.items():
        out += ["--set", f"{name}={msgspec.json.encode(value).decode()}"]
    return out


def _same(asked: RunConfig, folder: Path) -> None:
    """Raise SpecError when the run in `folder` was asked for something else."""
    there = Run(folder).config
    sides = [{k: v for k, v in msgspec.to_builtins(config).items() if k not in ("options", "defaults", "capacity")}
             | {f"--set {k}": v for k, v in config.options.items()} for config in (asked, there)]
    ours, theirs = sides
    for name in [*ours, *theirs]:
        derived = name.removeprefix("--set ") in DERIVED and name not in ours
        if not derived and ours.get(name) != theirs.get(name):
            raise SpecError(f"{folder / 'run.json'}: the run there has {name}={theirs.get(name)}, the suite asks for "
                            f"{name}={ours.get(name)}; ask for the same or choose another --out")


@contextmanager
def _claimed(out: Path) -> Iterator[int]:
    """A lock on the folder as a file descriptor; runs inherit it, so one that outlives its suite keeps others out."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpecError(f"{out}: a suite, or a run of one that was killed, is still at work here") from error
        yield file.fileno()


class _Bar:
    """Progress in decisions over all runs, with how many are done; looks at the runs every few seconds only."""

    def __init__(self, wanted: Sequence[Job], every_s: float = 2.0) -> None:
        self._wanted, self._every, self._next = wanted, every_s, 0.0
        for job in wanted:
            job.look()
        self._bar = progress("suite", sum(j.config.steps for j in wanted), "step", sum(j.done for j in wanted))

    def show(self, running: Sequence[Job], done: int, failed: int) -> None:
        """Draw it if it is time."""
        if time.monotonic() < self._next:
            return
        for job in running:
            job.look()
        self._next = time.monotonic() + self._every
        words = f"{done}/{len(self._wanted)} runs" + (f", {failed} failed" if failed else "")
        self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(sum(j.done for j in self._wanted) - self._bar.n)

    def close(self, done: int, failed: int) -> None:
        """Draw it a last time."""
        self._next = 0.0
        self.show(self._wanted, done, failed)
        self._bar.close()
