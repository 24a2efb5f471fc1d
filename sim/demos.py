"""Demonstrations: a script acts in a task, and its episodes are written as a robot's are, one rosbag2 folder each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import mujoco
import numpy as np

import sim
from hardware import messages
from hardware.recorder import sources
from hardware.robot_io import encode, encode_command, heard_on
from robot_rl.bag import BagWriter
from robot_rl.episode import Command, Outcome
from robot_rl.evaluate import episode_seed, summary
from robot_rl.log import progress
from robot_rl.observe import Readings, Values
from robot_rl.safety import Reason
from robot_rl.spec import PolicySpec, SpecError, mjcf_file
from robot_rl.steplog import EPISODE_TOPIC, INFO_TOPIC, STEP_TOPIC, TEXT_TYPE, recorded_topics, step_record
from sim.env import RobotEnv
from sim.lift import Lifter
from sim.walk import Trotter
from sim.wiring import compile_model

BETWEEN_S = 1.0  # from one episode to the next, by the stamps
SCRIPT = "script"
SEED = 2_000_003  # scripts see other episodes than training under the same seed does

Tick = Callable[[Readings, Outcome, Command | None], None]


class Demonstrator(Protocol):
    """Acts by what the sensors say, as a policy does, and by what it knows of the robot."""

    def begin(self, values: Values, rng: np.random.Generator) -> None:
        """Start an episode from its first readings."""

    def act(self, values: Values, last: np.ndarray) -> np.ndarray:
        """Readings and the last sent command (C,) → action (A,) in [-1, 1]."""


class Make(Protocol):
    """Makes a demonstrator of a contract and a model of its own."""

    def __call__(self, contract: PolicySpec, model: mujoco.MjModel) -> Demonstrator: ...


DEMONSTRATORS: dict[str, Make] = dict.fromkeys(
    ("so101-lift", "so101-lift-dense", "so101-lift-camera", "so101-lift-camera-dense"), Lifter
) | {"quadruped-walk": Trotter}


class EpisodeWriter:
    """One episode of an environment as a bag, with the topics, steps and events that `deploy --record` writes.

    Simulated time is laid on the wall clock from `start_ns` on. Sensors are recorded as often as decisions are taken,
    cameras in use when they took an image.
    """

    def __init__(self, folder: Path, env: RobotEnv, number: int, start_ns: int) -> None:
        assert env.contract.robot is not None
        self._contract, self._robot, self._number = env.contract, env.contract.robot, number
        self._start_ns, self._ticks, self._return = start_ns, 0, 0.0
        goal = None if env.goal is None else [float(x) for x in env.goal]
        start = {"episode": number, "goal": goal, "task": env.contract.task, "policy": SCRIPT}
        self._bag = BagWriter(folder, custom=_custom(start))
        inputs = [s for s in env.contract.inputs if s not in self._robot.sensors]  # cameras in use, and who steers
        rows = [*recorded_topics(self._robot, cameras=False), *((*heard_on(s), "sensor") for s in inputs),
                (EPISODE_TOPIC, TEXT_TYPE, "events"), (INFO_TOPIC, TEXT_TYPE, "latched")]
        for source in sources(rows, ""):
            self._bag.add_topic(source.topic, source.type, source.qos)
        self._say(INFO_TOPIC, {"policy": SCRIPT, "sha256": "", "contract": json.loads(env.contract.to_json())})
        self._say(EPISODE_TOPIC, {"event": "start", "bag": folder.name} | start)

    @property
    def now_ns(self) -> int:
        """The stamp of the tick to come, unix ns."""
        return self._stamp(self._ticks)

    def tick(self, readings: Readings, outcome: Outcome, command: Command | None) -> None:
        """Write one tick: what was seen, and what was sent then; None at the end of the episode."""
        now, robot, stamps = self.now_ns, self._robot, dict[str, int]()
        for sensor in self._contract.inputs:
            since = round(readings.ages.get(sensor.name, 0.0) * self._contract.rate_hz)  # ticks
            stamps[sensor.name] = self._stamp(self._ticks - since)
            if since == 0:
                self._write(heard_on(sensor)[0], encode(sensor, readings.values, now, robot))
        if command is not None:
            for topic, data in encode_command(robot, command.sent):
                self._write(topic, data)
        idle, none = np.full(self._contract.action_size, np.nan), np.full(len(robot.actuated), np.nan)
        record = step_record(
            self._contract, tick=self._ticks + 1, episode=self._number, stamp_ns=now, outcome=outcome,
            stamps=stamps, asked=command.asked if command else idle,
            action=command.action if command else idle, sent=command.sent if command else none,
            reasons=command.reasons if command else Reason.NONE, lateness_s=0.0, latency_s=0.0)
        self._write(STEP_TOPIC, record.encode())
        self._return += outcome.reward
        if command is None:
            self._close(outcome)
        self._ticks += 1

    def _stamp(self, tick: int) -> int:
        return self._start_ns + round(tick * 1e9 / self._contract.rate_hz)

    def _close(self, outcome: Outcome) -> None:
        end = {"terminated": outcome.terminated, "truncated": outcome.truncated, "episode": self._number,
               "steps": self._ticks, "episode_return": self._return, "success": outcome.success,
               "faults": outcome.faults.words(), "robot_s": self._ticks / self._contract.rate_hz,
               "start_unix": self._start_ns * 1e-9}
        self._say(EPISODE_TOPIC, {"event": "end"} | end)
        self._bag.close(_custom(end) | {"recorder_end": "episode end"})

    def _say(self, topic: str, event: dict[str, Any]) -> None:
        self._write(topic, messages.encode(messages.string(json.dumps(event))))

    def _write(self, topic: str, data: bytes) -> None:
        self._bag.write(f"/{topic}", data, self.now_ns, self.now_ns)


def demonstrate(task: str, robot: str | None, episodes: int, out: Path, seed: int) -> dict[str, Any]:
    """Write so many episodes below `out`; returns what came of them. Raises SpecError for a task without a script."""
    if task not in DEMONSTRATORS:
        raise SpecError(f"task '{task}': nobody shows it; there are scripts for {', '.join(sorted(DEMONSTRATORS))}")
    env = sim.make(task, robot)
    assert isinstance(env, RobotEnv)
    script = DEMONSTRATORS[task](env.contract, compile_model(mjcf_file(robot or sim.task_spec(task)[1])))
    start_ns, returns, successes = time.time_ns(), list[float](), list[bool | None]()
    for number in progress("demonstrate", unit="episode", items=range(episodes)):
        writer = EpisodeWriter(out / f"episode_{number:04d}", env, number, start_ns)
        total = run_episode(env, script, episode_seed(SEED + seed, number), writer.tick)
        returns.append(total)
        successes.append(env.outcome.success)
        start_ns = writer.now_ns + round(BETWEEN_S * 1e9)
    return {"task": task, "bags": str(out)} | summary(returns, successes)


def run_episode(env: RobotEnv, script: Demonstrator, seed: int, tick: Tick | None = None) -> float:
    """One episode by a script; `tick` is told of every step. Returns its return."""
    env.reset(seed=seed)
    script.begin(env.readings.values, np.random.default_rng(seed))
    total, seen = 0.0, (env.readings, env.outcome)
    while not env.outcome.done:
        assert env.episode.last is not None
        _, reward, _, _, _ = env.step(script.act(env.readings.values, env.episode.last))
        total += reward
        if tick:
            tick(*seen, env.command)
        seen = env.readings, env.outcome
    if tick:
        tick(*seen, None)
    return total


def _custom(fields: dict[str, Any]) -> dict[str, str]:
    """Facts for metadata.yaml in the recorder's form."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
