"""The faults: how each is injected, what the robot then does, and within how long.

`FAULTS` is the table in docs/safety.md; each row's function tries it between processes and returns ms, or None where
nothing is timed. Rows that share a robot follow each other, so that it is started once.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim
from robot_rl.bag import info, read
from robot_rl.finetune import bags_in
from robot_rl.safety import CLAMPS, Reason
from robot_rl.spec import policy_file
from robot_rl.steplog import join_ns, read_episode
from sim.offscreen import RenderError, backend
from tests.conftest import claimed
from tests.faults.cell import Cell, freeze, go_on
from tests.faults.judge import goes_on, policy_stops, stops
from tests.hardware.scene import Process, Scene
from tests.processes import figures, start, wait_for

HEARTBEAT_MS = 100.0  # the robot's 80 ms, and what the supervisor may take
LOOK_MS = 50.0  # what shows in one message: its way, and the next look


class World:
    """Robots to try faults on; one that was left whole is used again. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack, self._count = folder, ExitStack(), 0
        self._cell: Cell | None = None
        self._options: dict[str, Any] = {}

    def __enter__(self) -> World:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def cell(self, **options: Any) -> Cell:
        """A robot, its supervisor and its policy; see Cell."""
        whole = self._cell is not None and all(process.poll() is None for process in self._cell.processes)
        if self._cell is None or not whole or options != self._options:
            self._stack.close()
            self._cell, self._options = None, options
            domain = self._stack.enter_context(claimed())
            self._cell = self._stack.enter_context(Cell(self.folder(), domain, **options))
        return self._cell

    @contextmanager
    def scene(self, **changes: Any) -> Iterator[tuple[Scene, Process]]:
        """A robot that follows at once, its supervisor, and somebody who sends it whatever he is told to."""
        self._stack.close()
        self._cell = None
        with claimed() as domain, Scene(self.folder(), domain, **changes) as scene:
            sender = scene.commander()
            try:
                yield scene, sender
            finally:
                sender.end()

    def folder(self) -> Path:
        """A new one."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        return folder


@dataclass(frozen=True)
class Fault:
    """One row."""

    name: str
    how: str
    does: str
    within_ms: float | None
    run: Callable[[World], float | None]
    quick: bool = False
    """Tried by `make test` too."""

    def row(self, measured: str) -> str:
        """In Markdown."""
        bound = "" if self.within_ms is None else f"{self.within_ms:g} ms"
        return f"| {self.name} | {self.how} | {self.does} | {measured} | {bound} |"


FAULTS: list[Fault] = []


def fault(name: str, how: str, does: str, within_ms: float | None = None, quick: bool = False
          ) -> Callable[[Callable[[World], float | None]], Callable[[World], float | None]]:
    """Put a function into the table."""
    def add(run: Callable[[World], float | None]) -> Callable[[World], float | None]:
        FAULTS.append(Fault(name, how, does, within_ms, run, quick))
        return run
    return add


def sensor_stops(name: str, sensor: str, kind: str, flag: str, within_ms: float, quick: bool = False) -> None:
    """A sensor's fault that the supervisor stops the robot for; a reset is refused for as long as it holds."""
    def run(world: World) -> float:
        cell = world.cell()
        return stops(cell, flag, within_ms, lambda: cell.inject(sensor, kind), lambda: cell.inject(sensor, "ok"))
    fault(name, f"`fault so101 {sensor} {kind}`", f"supervisor: `{flag}`, stop", within_ms, quick)(run)


def sensor_survived(name: str, kind: str, does: str, shows: Callable[[list[tuple[int, Any]]], Any]) -> None:
    """A fault of the joint states that the robot goes on with; `shows` says of messages that they have it."""
    def run(world: World) -> None:
        cell = world.cell(patience_s=3.0)
        goes_on(cell, lambda: cell.inject("joints", kind), lambda: cell.inject("joints", "ok"),
                lambda: _check(shows(cell.joint_states(50))))
        still = np.ptp([m.position for _, m in cell.joint_states(100)], axis=0)
        assert still.max() > 0.02, f"the arm does not move: {still}"
    fault(name, f"`fault so101 joints {kind}`", does)(run)


def _check(shown: Any) -> None:
    assert shown, "the fault is not there"


def _acquired(told: list[tuple[int, Any]]) -> np.ndarray:
    """When joint states say that they were measured, ns since the Unix epoch."""
    return np.array([m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for _, m in told])


def _late_ns(told: list[tuple[int, Any]]) -> np.ndarray:
    """How long after they were measured joint states were sent, ns."""
    return np.array([stamp for stamp, _ in told]) - _acquired(told)


sensor_stops("joint states silent", "joints", "silent", "sensors", 300.0, quick=True)
sensor_stops("joint states frozen: new stamps, the same numbers, though commands move", "joints", "frozen", "frozen",
             2000.0, quick=True)
sensor_stops("joint states that jump", "joints", "jumping", "readings", LOOK_MS, quick=True)
sensor_stops("joint states not finite", "joints", "nonfinite", "readings", LOOK_MS, quick=True)
sensor_stops("a joint missing from the joint states", "joints", "missing", "readings", LOOK_MS)
sensor_stops("another type on the joint states' topic", "joints", "mistyped", "sensors", 300.0)
sensor_stops("tip pose silent", "tip", "silent", "sensors", 300.0)
sensor_stops("tip pose not finite", "tip", "nonfinite", "readings", LOOK_MS)
sensor_stops("tip pose that jumps out of the workspace", "tip", "jumping", "workspace", LOOK_MS)


@fault("protective stop pressed", "`safety/protective_stop` true", "supervisor: `protective_stop`, stop", LOOK_MS,
       quick=True)
def pressed(world: World) -> float:
    cell = world.cell()
    return stops(cell, "protective_stop", LOOK_MS, lambda: cell.press(True), lambda: cell.press(False))


@fault("reset while the stop is held", "`supervisor/reset`", "refused, with the reason; granted once it is let go")
def reset_while_held(world: World) -> None:
    cell = world.cell()
    cell.forwarding()
    cell.press(True)
    cell.until("stopped")
    assert cell.call("reset") == (False, "protective_stop: the protective stop is pressed")
    wait_for(lambda: "pressed" in cell.bus.call("policy/start", 60.0)[1], 60)
    cell.press(False)
    wait_for(lambda: cell.look() or cell.call("reset")[0], 60)


@fault("robot process frozen, and back", "SIGSTOP, SIGCONT", "supervisor: `sensors`, stop; then armed again", 300.0)
def robot_frozen(world: World) -> float:
    cell = world.cell()
    took = stops(cell, "sensors", 300.0, lambda: freeze(cell.robot), lambda: go_on(cell.robot))
    cell.forwarding()
    return took


@fault("policy frozen, and back", "SIGSTOP, SIGCONT", "supervisor: `heartbeat`, stop; then armed again", 220.0)
def policy_frozen(world: World) -> float:
    cell = world.cell()

    def frozen() -> None:
        freeze(cell.policy)
    took = stops(cell, "heartbeat", 220.0, frozen, lambda: go_on(cell.policy))
    cell.forwarding()
    return took


@fault("policy killed", "SIGKILL", "supervisor: `heartbeat` (here after 200 ms), stop", 220.0,
       quick=True)
def policy_killed(world: World) -> float:
    cell = world.cell()
    return stops(cell, "heartbeat", 220.0, lambda: cell.policy.kill(), cell.policy_again)


@fault("supervisor ended", "SIGTERM", "the stop behaviour until the robot is at rest, then silence", 2500.0)
def supervisor_ended(world: World) -> float:
    cell = world.cell()
    cell.forwarding()
    since = time.time_ns()
    cell.process.terminate()
    assert cell.process.wait(60) == 0
    assert "left inactive" in cell.log("supervisor")
    cell.stopped_ns(0)
    count = len(cell.sent)
    time.sleep(0.5)
    cell.look()
    assert len(cell.sent) == count
    last = cell.sent[-1]
    took = (join_ns(*last.stamp) - since) * 1e-6
    assert not last.command.any()
    assert 0 <= took <= 2500.0
    return took


@fault("supervisor killed", "SIGKILL",
       "the robot's own watchdog holds it after 500 ms; the policy ends within 1 s: `unsupervised`", 1500.0)
def supervisor_killed(world: World) -> float:
    cell = world.cell()
    cell.forwarding()
    cell.process.kill()
    since = time.time_ns()
    told = cell.joint_states(300)
    moving = [stamp for stamp, m in told if np.abs(m.velocity).max() > 0.05]
    took = (max(moving, default=since) - since) * 1e-6
    assert told[-1][0] - since > 1.5e9
    assert took <= 1500.0
    said = wait_for(lambda: (told := cell.status())["state"] == "inactive" and told, 60)["last_error"]
    assert "unsupervised" in said
    return max(took, 0.0)


sensor_survived("joint states in another order", "reordered", "goes on: joints are found by name",
                lambda told: {m.name[0] for _, m in told} == {"gripper"})
sensor_survived("the robot's clock jumps by 10 s", "clock", "goes on: ages are reckoned from arrival",
                lambda told: np.median(_late_ns(told)) < -9e9)
sensor_survived("joint states 0.1 s late", "delayed", "goes on: not noticed, as clocks may differ; `latency` measures "
                "it from bags", lambda told: np.median(_late_ns(told)) > 0.09e9)
sensor_survived("joint states twice", "duplicated", "goes on: the newest counts",
                lambda told: (np.diff(_acquired(told)) == 0).sum() > 15)
sensor_survived("30% of the joint states lost", "lossy", "goes on",
                lambda told: (np.diff(_acquired(told)) > 1.5 * np.median(np.diff(_acquired(told)))).sum() > 4)


@fault("tip pose frozen", "`fault so101 tip frozen`", "goes on: not noticed; the policy steers by it, while the "
       "supervisor keeps box and links by the joints")
def tip_frozen(world: World) -> None:
    cell = world.cell(patience_s=3.0)
    goes_on(cell, lambda: cell.inject("tip", "frozen"), lambda: cell.inject("tip", "ok"))


@fault("policy late for one decision", "SIGSTOP, 0.15 s, SIGCONT", "goes on, one or more periods skipped and counted")
def late_once(world: World) -> None:
    cell = world.cell(patience_s=3.0)

    def stall() -> None:
        freeze(cell.policy)
        time.sleep(0.15)
        go_on(cell.policy)
    goes_on(cell, stall)
    stamps = np.array([s.stamp @ (1.0, 1e-9) for s in cell.steps])
    assert np.diff(stamps).max() > 0.1


@fault("supervisor without the processor for 0.2 s", "SIGSTOP, SIGCONT", "goes on: `overrun` warns of it")
def supervisor_late(world: World) -> None:
    cell = world.cell(patience_s=3.0)

    def stall() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:  # diagnostics come once a second, and tell of the second before
            freeze(cell.process)
            time.sleep(0.2)
            go_on(cell.process)
            if cell.diagnosed("flag overrun=True", 1.5):
                return
        raise AssertionError("no overrun was told of")
    goes_on(cell, stall)


@fault("every core busy", "two endless processes a core, 3 s", "goes on")
def cores_busy(world: World) -> None:
    cell = world.cell(patience_s=3.0)
    hogs: list[subprocess.Popen] = []

    def hog() -> None:
        hogs.extend(subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2 * (os.cpu_count() or 1)))
        time.sleep(3.0)

    def calm() -> None:
        while hogs:
            one = hogs.pop()
            one.kill()
            one.wait()
    try:
        goes_on(cell, hog, calm)
    finally:
        calm()


@fault("goal out of range", "a goal 0.9 m away", "goes on to the goal before; diagnostics name the new one")
def goal_out_of_range(world: World) -> None:
    cell = world.cell(patience_s=3.0)

    def aim() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            cell.hold_goal()
            cell.aim((0.9, 0.0, 0.1))
            if cell.diagnosed("goal at (0.9, 0, 0.1)", 1.5):
                return
        raise AssertionError("it is not told of")
    goes_on(cell, aim, lambda: cell.hold_goal(False))


@fault("model swapped for another robot's, and for a damaged file, while running", "a new file, `policy reload`",
       "refused with both names; the one that runs goes on")
def wrong_model(world: World) -> None:
    cell = world.cell(patience_s=3.0)
    sha = cell.status()["sha256"]

    def swap() -> None:
        for data, words in ((policy_file("furuta-swingup").read_bytes(), "'furuta'"), (b"no model", "not a usable")):
            cell.model.write_bytes(data)
            done, said = cell.bus.call("policy/reload", 60.0)
            assert not done and words in said, said
    goes_on(cell, swap, lambda: shutil.copy(policy_file("so101-reach"), cell.model))
    assert cell.status()["sha256"] == sha


@fault("protective stop while the policy is faded in", "`safety/protective_stop` true",
       "policy: stop, the measured pose is held; no start until it is let go", 150.0)
def stop_in_ramp(world: World) -> float:
    cell = world.cell(supervised=False)

    def press() -> int:
        assert cell.bus.call("policy/stop", 60.0)[0]
        cell.moving(3)
        assert int(cell.steps[-1].reasons[0]) & Reason.FADE
        return cell.press(True)

    def release() -> None:
        assert "the protective stop is pressed" in cell.bus.call("policy/start", 60.0)[1]
        cell.press(False)
    return policy_stops(cell, "pressed on /safety/protective_stop", 150.0, press, release)


@fault("joint states silent, without a supervisor", "`fault so101 joints silent`",
       "policy: `stale`, stop, and the topic is named", 400.0)
def silent_alone(world: World) -> float:
    cell = world.cell(supervised=False)
    return policy_stops(cell, "joints on /joint_states silent", 400.0, lambda: cell.inject("joints", "silent"),
                        lambda: cell.inject("joints", "ok"))


@fault("joint states frozen, without a supervisor", "`fault so101 joints frozen`",
       "policy: not noticed; commands stay within what a servo may be ahead of the pose that is told")
def frozen_alone(world: World) -> None:
    cell = world.cell(supervised=False)
    cell.moving()
    cell.inject("joints", "frozen")
    ((_, told),) = cell.joint_states(1)[:1]
    cell.steps.clear()
    wait_for(lambda: cell.look() or len(cell.steps) > 40, 60)
    cell.inject("joints", "ok")
    ahead = [np.abs(s.sent - told.position).max() for s in cell.steps if np.isfinite(s.sent).all()]
    assert max(ahead) <= 2.94 / 17.8 + 1e-6  # effort and kp of its servos


@fault("camera unplugged, and back", "`fault so101-cube front silent`",
       "policy: `stale`, stop, and the camera is named; no start without it; then it sees again", 2300.0)
def camera_unplugged(world: World) -> float:
    pytest.importorskip("onnx")
    from tests.hardware.test_vision import brightness
    try:
        backend()
    except RenderError as error:
        pytest.skip(str(error))
    spec, _ = sim.task_spec("so101-lift-camera")
    cell = world.cell(robot="so101-cube", policy=brightness(spec, world.folder() / "p.onnx"), supervised=False,
                      cameras=True, patience_s=2.0)

    def plug() -> None:
        assert "front on /front/image_raw" in cell.bus.call("policy/start", 60.0)[1]
        cell.inject("front", "ok")
    took = policy_stops(cell, "front on /front/image_raw silent", 2300.0, lambda: cell.inject("front", "silent"), plug)
    cell.moving()
    return took


@fault("policy floods", "commands without a pause", "supervisor: `flood`, stop", HEARTBEAT_MS)
def floods(world: World) -> float:
    with world.scene() as (scene, sender):
        return stops(scene, "flood", HEARTBEAT_MS, lambda: sender.pipe.send("flood"),
                     lambda: sender.pipe.send("calm"))


@fault("policy slow for many decisions", "a command each 0.3 s", "supervisor: `heartbeat` (after 80 ms), stop",
       HEARTBEAT_MS)
def slow(world: World) -> float:
    with world.scene() as (scene, sender):
        return stops(scene, "heartbeat", HEARTBEAT_MS, lambda: sender.pipe.send("slow"),
                     lambda: sender.pipe.send("calm"))


@fault("command not finite, or of another size", "NaN; one number for two joints", "supervisor: `command`, stop",
       HEARTBEAT_MS, quick=True)
def bad_command(world: World) -> float:
    with world.scene(supervisor={"heartbeat_s": 5.0}) as (scene, sender):
        def send(order: str) -> Callable[[], None]:
            return lambda: sender.pipe.send(order)
        return max(stops(scene, "command", HEARTBEAT_MS, send(order), send("calm")) for order in ("nan", "short"))


@fault("command out of range", "9 rad for a joint that ends at 1 rad", "goes on: clamped by position, speed and effort")
def far_command(world: World) -> None:
    with world.scene(supervisor={"heartbeat_s": 5.0}) as (scene, sender):
        sender.pipe.send("far")
        scene.forwarding(30)
        assert all(r.sent[0] <= 1.0 for r in scene.sent)
        assert int(scene.sent[-1].reasons[0]) & CLAMPS


@fault("a second commander", "a publisher on the robot's command topic", "supervisor: `authority`, stop, and no reset "
       "while it is there", 1000.0, quick=True)
def second_commander(world: World) -> float:
    with world.scene(supervisor={"heartbeat_s": 5.0}) as (scene, _):
        rivals: list[Process] = []

        def join() -> int:
            rivals.append(scene.commander(direct=True))
            return rivals[-1].born_ns

        def leave() -> None:
            done, why = scene.call("reset")
            assert not done
            assert "authority" in why or "stopping" in why
            rivals[-1].end()
        return stops(scene, "authority", 1000.0, join, leave)


@contextmanager
def deployed(world: World, *more: object, **options: Any) -> Iterator[tuple[subprocess.Popen, subprocess.Popen, Path]]:
    """A robot, `robot-rl deploy` on it, recording, and the folder of its bags."""
    world.__exit__()
    bags = world.folder() / "bags"
    with claimed() as domain:
        where = ("--bus", "dds", "--domain", domain, "--no-cameras")
        robot = start("sim-robot", "so101", *where, stderr=subprocess.DEVNULL)
        assert robot.stdout is not None and "ready" in robot.stdout.readline()
        running = start("deploy", "so101-reach", "--robot", "so101", *where, "--json", "--record", bags, *more,
                        **options)
        try:
            yield robot, running, bags
        finally:
            for process in (running, robot):
                process.kill()
                process.wait()


@fault("robot process frozen, in an episode", "SIGSTOP", "policy: `stale`, the episode ends and is recorded as invalid")
def frozen_in_an_episode(world: World) -> None:
    with deployed(world, "--episodes", 1) as (robot, running, bags):
        wait_for(lambda: list(bags.rglob("*.mcap")))
        time.sleep(0.5)
        freeze(robot)
        assert figures(running)["success_rate"] == 0
        (bag,) = bags_in(bags)
        log = read_episode(bag)
        assert log.end["faults"] == "stale"
        assert not [outcome for outcome, _ in log.replayed()][-1].valid


@fault("recorder killed", "SIGKILL", "the episode goes on to its end; what was recorded is readable")
def recorder_killed(world: World) -> None:
    with deployed(world, "--episodes", 1) as (_, running, bags):
        wait_for(lambda: list(bags.rglob("*.mcap")))
        time.sleep(0.8)  # a flush is 0.5 s old at most; an episode may be over soon, since it ends where it succeeds
        children = subprocess.run(["pgrep", "-P", str(running.pid), "-f", "hardware.recorder"], capture_output=True,
                                  text=True, check=True).stdout.split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert figures(running)["ticks"] >= 10
        assert len(list(read(bags_in(bags)[0]))) > 10


@fault("disk full", "files of at most 100 kB (RLIMIT_FSIZE)", "the episode goes on to its end; the recorder tells, and "
       "what was written is readable")
def disk_full(world: World) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    with deployed(world, "--episodes", 1, preexec_fn=limit) as (_, running, bags):
        out, err = running.communicate(timeout=120)
        assert running.returncode == 0, err
        assert "cannot write" in err
        assert json.loads(out.splitlines()[-1])["ticks"] >= 10
        found = info(bags_in(bags)[0])
        assert found.messages > 0
        assert sum(file.stat().st_size for file in bags.rglob("*.mcap")) <= 100_000


@fault("network interface down for 1 s, and up", "`ip link set lo down`, in a network namespace",
       "supervisor: `heartbeat` or `sensors`, stop; then armed again", 300.0)
def network_down(world: World) -> float:
    world.__exit__()
    island = ["unshare", "--user", "--map-root-user", "--net"]
    if not all(map(shutil.which, ("unshare", "ip"))) or subprocess.run([*island, "ip", "link", "set", "lo", "up"],
                                                                       check=False).returncode:
        pytest.skip("no right to a network namespace of its own, or no unshare and ip")
    done = subprocess.run([*island, sys.executable, "-m", "tests.faults.island", world.folder(), "300"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
