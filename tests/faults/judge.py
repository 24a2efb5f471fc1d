"""What is asked of a robot that has a fault: that it stops within a bound, or goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

from robot_rl.steplog import join_ns
from tests.faults.cell import Cell
from tests.hardware.scene import Supervised
from tests.processes import starved_ms, wait_for

TRIES = 5
STEPS = 30  # commands that a robot which goes on has to get


def nothing() -> None:
    """There is nothing to undo."""


def stops(scene: Supervised, cause: str, within_ms: float, do: Callable[[], int | None],
          undo: Callable[[], object] = nothing) -> float:
    """Do something to a robot at work; ms from it, or from the last command heard, to the supervisor's first stop.

    `do` returns when it was done, ns since the Unix epoch, or None. Time in which the supervisor was ready to run and
    the machine ran others is not its own, and is not judged; a robot that was stopped for something else first, as on
    a machine that starves its sensors, is tried on again. AssertionError with every try.
    """
    tried = []
    for _ in range(TRIES):
        scene.forwarding()
        starved = starved_ms(scene.process.pid)
        since = do()
        said = scene.until("stopping")
        took = scene.stopped_after_ms() if since is None else (scene.stopped_ns(0) - since) * 1e-6
        starved = starved_ms(scene.process.pid) - starved
        undo()
        if said["cause"] == [cause] and said["latched"] and 0 <= took <= within_ms + starved:
            return took
        tried.append(f"{'+'.join(said['cause'])} after {took:.1f} ms, {starved:.1f} ms of them or before without "
                     "the processor")
    raise AssertionError(f"wanted {cause} within {within_ms:g} ms: " + "; ".join(tried))


def goes_on(cell: Cell, do: Callable[[], object], undo: Callable[[], object] = nothing,
            seen: Callable[[], None] = nothing) -> None:
    """Do something to a robot at work, and see it work on; `seen` asserts that the fault is there."""
    tried = []
    for _ in range(TRIES):
        cell.forwarding()
        told = len(cell.said)
        do()
        seen()
        cell.sent.clear()
        end = time.monotonic() + 60.0
        while len(cell.theirs()) < STEPS and len(cell.said) == told and time.monotonic() < end:
            cell.look()
            time.sleep(0.01)
        undo()
        if len(cell.said) == told and len(cell.theirs()) >= STEPS:
            return
        tried.append("+".join(cell.said[told]["cause"]) if len(cell.said) > told else cell.status()["last_error"])
    raise AssertionError(f"it is stopped: {tried}")


def policy_stops(cell: Cell, words: str, within_ms: float, do: Callable[[], int],
                 undo: Callable[[], object] = nothing) -> float:
    """Do something to a robot at work without a supervisor; ms from it to the policy's step that stopped.

    `words` are part of why, as the policy process says it. Judged as by `stops`, by the stamps of the policy's steps.
    """
    tried = []
    for _ in range(TRIES):
        cell.moving()
        starved = starved_ms(cell.policy.pid)
        since = do()
        wait_for(lambda: cell.look() or cell.steps[-1].faults[0], 60)
        took = (join_ns(*cell.steps[-1].stamp) - since) * 1e-6
        starved = starved_ms(cell.policy.pid) - starved
        said = wait_for(lambda: (told := cell.status())["state"] == "inactive" and told, 60)["last_error"]
        undo()
        if words in said and 0 <= took <= within_ms + starved:
            return took
        tried.append(f"'{said}' after {took:.1f} ms, {starved:.1f} ms of them or before without the processor")
    raise AssertionError(f"wanted '{words}' within {within_ms:g} ms: " + "; ".join(tried))
