"""Run a policy on a robot for some episodes, or serve episodes to whoever asks, with the recorder beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hardware.administration import Administration
from hardware.bus import Bus, connect
from hardware.diagnostics import Health
from hardware.policy_node import INFO, EpisodeResult, PolicyNode
from robot_rl.evaluate import in_short, summary
from robot_rl.log import progress, write_atomic
from robot_rl.mcap_writer import COMPRESSIONS
from robot_rl.policy import Policy
from robot_rl.spec import PolicySpec, RobotSpec, SpecError, load_robot
from robot_rl.steplog import EPISODE_TOPIC, TEXT_TYPE, asked_topics, recorded_topics

RUN_SERVICE = "policy/run"
DETAILS = "deploy.json"  # beside the bags: the figures with every episode and the timing of every tick
LONG = ("episode_results", "lateness_ms", "latency_ms")


@dataclass(frozen=True)
class BusOptions:
    """Where on the wire: backend, ROS namespace and DDS domain."""

    kind: str = "auto"
    namespace: str = ""
    domain: int | None = None

    def connect(self, node: str) -> Bus:
        """A bus for a process of this name."""
        return connect(self.kind, node, self.namespace, self.domain)  # type: ignore[arg-type]

    def arguments(self) -> list[str]:
        """The same as command-line arguments."""
        domain = [] if self.domain is None else ["--domain", str(self.domain)]
        return ["--bus", self.kind, "--namespace", self.namespace, *domain]


class Recorder:
    """The recorder process: one bag per episode in `folder`, of the topics as `bus` names them. A context manager."""

    def __init__(self, folder: Path, spec: PolicySpec, robot: RobotSpec, where: BusOptions, cameras: bool,
                 bus: Bus, compression: str = "none") -> None:
        rows = [(bus.resolve(topic), type, kind) for topic, type, kind in topics(spec, robot, cameras)]
        there = replace(where, namespace=bus.namespace)
        command = [sys.executable, "-m", "hardware.recorder", *there.arguments(), "--out", str(folder),
                   "--compression", compression, "--with-parent"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(rows))
        self._process.stdin.close()

    def __enter__(self) -> Recorder:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "ready" in line:
                return self
        raise RuntimeError(f"the recorder ended with status {self._process.wait()} before it was ready")

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def topics(spec: PolicySpec, robot: RobotSpec, cameras: bool) -> list[tuple[str, str, str]]:
    """What is recorded: (topic, type, QoS kind)."""
    return [*recorded_topics(robot, cameras), (EPISODE_TOPIC, TEXT_TYPE, "events"), (INFO, TEXT_TYPE, "latched"),
            *asked_topics(spec)]


def deploy(policy: Path, robot: str, *, episodes: int, record: Path | None, where: BusOptions, seed: int = 0,
           explore: bool = False, serve: bool = False, cameras: bool = True, supervised: bool = False,
           compression: str = "none", acknowledged: bool = False,
           stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Run episodes on the robot and return their figures. Raises SpecError or TimeoutError before anything moves."""
    if compression not in ("none", *COMPRESSIONS):
        raise SpecError(f"--compression {compression}: known are none, {', '.join(COMPRESSIONS)}")
    spec = load_robot(robot, supervised=supervised)
    loaded = Policy(policy)
    contract = loaded.spec.on(spec, f"policy {policy}")
    if record is not None and contract.cameras and not cameras:
        used = ", ".join(camera.name for camera in contract.cameras)
        raise SpecError(f"--no-cameras with --record {record}: policy {policy} sees through {used}, and its episodes "
                        "cannot be read back without their images")
    with where.connect("policy") as bus:
        node, health = PolicyNode(loaded, spec, bus, seed, explore, acknowledged=acknowledged), Health(bus)
        node.connect()
        # between episodes the reset looks at the robot, so this thread never does
        beside = Administration(bus, {"~/reload": node.reload}, lambda: health.tell("episodes", "", node, True))
        if record is None:
            with beside:
                figures = _run(node, episodes, serve, bus, stop)
            return {"task": contract.task} | {k: v for k, v in figures.items() if k not in LONG}
        with Recorder(record, contract, spec, where, cameras, bus, compression), beside:
            figures = _run(node, episodes, serve, bus, stop)
        write_atomic(record / DETAILS, json.dumps({"task": contract.task} | figures, indent=1).encode())
        return {"task": contract.task} | {k: v for k, v in figures.items() if k not in LONG} | {"bags": str(record)}


def _run(node: PolicyNode, episodes: int, serve: bool, bus: Bus, stop: Callable[[], bool]) -> dict[str, Any]:
    results = _serve(node, bus, stop) if serve else _count(node, episodes, stop)
    figures = summary([r.episode_return for r in results], [r.success for r in results])
    return figures | node.timing() | {
        "bags": None, "policy_swaps": node.swaps, "episode_results": [asdict(r) for r in results],
        "lateness_ms": _histogram(node.lateness_ms), "latency_ms": _histogram(node.latency_ms)}


def _count(node: PolicyNode, episodes: int, stop: Callable[[], bool]) -> list[EpisodeResult]:
    """So many episodes, once the supervisor is armed where there is one; a latched stop ends the run."""
    results: list[EpisodeResult] = []
    if node.robot.supervised and (reason := node.stopped()):
        print(f"deploy: waits: {node.explain(reason)}", file=sys.stderr, flush=True)
        while node.stopped() and not stop():
            time.sleep(0.02)
    bar = progress("deploy", unit="episode", items=range(episodes))
    for _ in bar:
        if stop():
            break
        results.append(node.run_episode(wanted=lambda: not stop()))
        bar.set_postfix_str(in_short([r.episode_return for r in results], [r.success for r in results]))
        if reason := node.stopped():
            print(f"deploy: stopped: {node.explain(reason)}", file=sys.stderr)
            break
    return results


def _serve(node: PolicyNode, bus: Bus, stop: Callable[[], bool]) -> list[EpisodeResult]:
    """An episode for every call of `policy/run`, answered with its result as JSON."""
    results: list[EpisodeResult] = []
    calls = bus.service(RUN_SERVICE)
    print("deploy: ready", flush=True)
    while not stop():
        request = calls.take()
        node.swap()  # after the take: what was reloaded before a call acts from its first tick on
        if request is None:
            time.sleep(0.002)
            continue
        try:
            results.append(node.run_episode(wanted=lambda: not stop()))
            request.reply(True, json.dumps(asdict(results[-1])))
        except TimeoutError as error:
            request.reply(False, str(error))
    return results


def _histogram(values: np.ndarray, bins: int = 60) -> dict[str, list[float]]:
    """Counts and edges on a logarithmic scale, for a picture of every tick."""
    if not len(values):
        return {"counts": [], "edges_ms": []}
    counts, edges = np.histogram(np.maximum(values, 1e-4), bins=np.geomspace(1e-4, max(10.0, values.max()), bins + 1))
    return {"counts": [float(c) for c in counts], "edges_ms": [float(e) for e in edges]}
