"""Measures the control loop: a real policy with safety against a robot's topics in another process."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from hardware import messages
from hardware.bus import COMMAND, Qos, connect
from hardware.loop import Ticker, percentiles, steady
from hardware.robot_io import RobotIO
from robot_rl.episode import Episode
from robot_rl.policy import Policy
from robot_rl.spec import JOINT_STATE, RobotSpec, SpecError, policy_file


def bench(rate_hz: float, seconds: float, policy: str, kind: str = "auto", domain: int = 117) -> dict[str, Any]:
    """Run the loop at `rate_hz` and return its figures.

    Jitter is the lateness of a tick against the absolute schedule; a missed deadline is a skipped period; latency is
    from the take of the newest state to the return of publish; cpu_share is of one core.
    """
    loaded = Policy(policy_file(policy))
    spec = msgspec.structs.replace(loaded.spec, rate_hz=rate_hz, time_limit_s=seconds + 60.0)
    if spec.robot is None:
        raise SpecError(f"policy {policy}: it declares no robot to run on")
    if spec.vision:
        raise SpecError(f"policy {policy}: it sees through {', '.join(spec.vision.cameras)}, which the robot of this "
                        "benchmark does not have")
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    robot = context.Process(target=_robot, args=(msgspec.json.encode(spec.robot), kind, domain, ready), daemon=True)
    robot.start()
    try:
        if not ready.wait(30):
            raise TimeoutError("the robot process did not start within 30 s")
        return _measure(loaded, spec, rate_hz, seconds, kind, domain)
    finally:
        robot.terminate()
        robot.join(5)


def _measure(policy: Policy, spec: Any, rate_hz: float, seconds: float, kind: str, domain: int) -> dict[str, Any]:
    with connect(kind, "policy", "bench", domain) as bus:  # type: ignore[arg-type]
        io, episode = RobotIO(spec.robot, bus), Episode(spec)
        io.wait(15.0)
        policy.warm_up()
        ticks = round(rate_hz * seconds)
        latency = np.zeros(ticks)
        ticker = Ticker(rate_hz, ticks)
        with steady() as real_time:
            tick = _tick(io, episode, policy, spec)
            tick()
            before, began = _cpu_s(), time.monotonic()
            ticker.start()
            end = began + seconds
            while time.monotonic() < end and ticker.ticks < ticks:
                ticker.wait()
                latency[ticker.ticks - 1] = tick()
            used, spent = _cpu_s() - before, time.monotonic() - began
    p50, p99, p999 = percentiles(ticker.lateness_ms, 50, 99, 99.9)
    l50, l99 = percentiles(latency[:ticker.ticks] * 1e3, 50, 99)
    return {"rate_hz": ticker.ticks / spent, "ticks": ticker.ticks, "missed": ticker.missed, "jitter_ms_p50": p50,
            "jitter_ms_p99": p99, "jitter_ms_p999": p999, "latency_ms_p50": l50, "latency_ms_p99": l99,
            "cpu_share": used / spent, "real_time": real_time,
            "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}"}


def _tick(io: RobotIO, episode: Episode, policy: Policy, spec: Any) -> Callable[[], float]:
    """One decision of the real path, timed: a new episode begins whenever one ends."""
    goal = spec.goal.sample(np.random.default_rng(0)) if spec.goal else None
    episode.begin(goal)

    def tick() -> float:
        taken = time.perf_counter()
        outcome = episode.observe(io.read())
        if outcome.done:
            episode.begin(goal)
            policy.reset()
            outcome = episode.observe(io.read())
        io.send(episode.act(policy(outcome.observation)).sent)
        return time.perf_counter() - taken
    return tick


def _robot(spec: bytes, kind: str, domain: int, ready: Any) -> None:
    """A robot's topics at their rates, at rest in its default pose; commands are read and dropped."""
    robot = msgspec.json.decode(spec, type=RobotSpec)
    with connect(kind, "robot", "bench", domain) as bus:  # type: ignore[arg-type]
        pubs = [(s, bus.publisher(s.topic, s.type, Qos(reliable=True))) for s in robot.sensors]
        commands = [bus.reader(to.topic, to.type, COMMAND) for to in robot.command_topics]
        rest = np.array([j.default for j in robot.joints])
        ticker = Ticker(max(s.rate_hz for s in robot.sensors))
        ready.set()
        ticker.start()
        while True:
            ticker.wait()
            for reader in commands:
                reader.newest()
            stamp = time.time_ns()
            for sensor, publisher in pubs:
                message = (messages.joint_state(stamp, robot.names, rest, 0 * rest, 0 * rest)
                           if sensor.type == JOINT_STATE else
                           messages.pose_stamped(stamp, sensor.frame, (0.2, 0.0, 0.2), (0.0, 0.0, 0.0, 1.0)))
                publisher.publish(messages.encode(message))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
