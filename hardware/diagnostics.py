"""`/diagnostics` (REP 107): how a process is, once a second, in the words of ROS's own tools."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware import messages
from hardware.bus import COMMAND, Bus
from hardware.loop import percentiles
from hardware.robot_io import heard_on
from robot_rl.safety import CLAMPS, Reason
from robot_rl.spec import Camera, Sensor, Steering

if TYPE_CHECKING:
    from hardware.policy_node import PolicyNode

TOPIC, TYPE = "/diagnostics", "diagnostic_msgs/msg/DiagnosticArray"
OK, WARN, ERROR = 0, 1, 2
NORMAL = {"rate": 0.98, "jitter": 0.1, "latency": 0.5, "age": 0.5, "clamped": 0.5}
"""What is still OK: of the wanted rate at least; of the period, a sensor's limit and the ticks at most."""


def diagnostic(stamp_ns: int, name: str, level: int, message: str, values: Mapping[str, object],
               hardware: str = "") -> Any:
    """diagnostic_msgs/DiagnosticArray with one status."""
    pairs = [messages.new("diagnostic_msgs/msg/KeyValue", key=key, value=str(value)) for key, value in values.items()]
    status = messages.new("diagnostic_msgs/msg/DiagnosticStatus", level=level, name=name, message=message,
                          hardware_id=hardware, values=pairs)
    return messages.new(TYPE, header=messages.header(stamp_ns), status=[status])


def ages(inputs: Iterable[Sensor | Camera | Steering], heard: Mapping[str, float]) -> dict[str, object]:
    """The age of each input, s, as diagnostics show it."""
    return {f"age_s {one.name}": f"{heard[one.name]:.4g}" if one.name in heard else "never heard" for one in inputs}


class Health:
    """What a policy process tells of itself: loop, inputs, clamps, policy, life cycle."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._publisher = bus.publisher(TOPIC, TYPE, COMMAND)
        self._name = "/".join(filter(None, (bus.namespace, bus.node))) + ": control"
        self._node: PolicyNode | None = None
        self._ticks, self._missed, self._since = 0, 0, time.monotonic()
        self._reasons: dict[int, int] = {}

    def tell(self, state: str, error: str, node: PolicyNode | None, running: bool) -> None:
        """Publish how it is: its state in a word, its last error or '', and the node where there is one.

        ERROR: it was refused something or had to stop the robot. WARN: it runs, but not as it should.
        """
        values: dict[str, object] = {"state": state, "last_error": error or "none"}
        warnings: list[str] = []
        if node is not None:
            values |= {"policy": node.policy.path, "policy_sha256": node.policy.sha256, "task": node.spec.task}
            values |= self._loop(node, running, warnings)
            values |= self._inputs(node, running, warnings)
            values |= self._clamps(node, running, warnings)
        self._node, self._since = node, time.monotonic()
        level, said = (ERROR, error) if error else (WARN, ", ".join(warnings)) if warnings else (OK, state)
        hardware = node.robot.robot if node is not None else ""
        self._publisher.publish(messages.encode(diagnostic(
            self._bus.now_ns(), self._name, level, said, values, hardware)))

    def _loop(self, node: PolicyNode, running: bool, warnings: list[str]) -> dict[str, object]:
        """Rate, jitter and latency since the last time."""
        if node is not self._node:
            self._ticks = self._missed = 0
            self._reasons = {}
        ticker, period_ms = node.ticker, 1e3 / node.spec.rate_hz
        ticks, missed = ticker.ticks, ticker.missed
        new, late = ticks - self._ticks, missed - self._missed
        self._ticks, self._missed = ticks, missed
        seen = np.arange(ticks - new, ticks) % len(ticker.late)
        j50, j99, worst = percentiles(ticker.late[seen] * 1e-6, 50, 99, 100)
        l50, l99 = percentiles(node.latency_s[seen] * 1e3, 50, 99)
        rate = new / (time.monotonic() - self._since)
        if running and new:
            if rate < NORMAL["rate"] * node.spec.rate_hz and late:
                warnings.append(f"{rate:.4g} Hz instead of {node.spec.rate_hz:g} Hz, {late} periods skipped")
            if j99 > NORMAL["jitter"] * period_ms:
                warnings.append(f"jitter {j99:.3g} ms at p99 of {period_ms:g} ms")
            if l99 > NORMAL["latency"] * period_ms:
                warnings.append(f"latency {l99:.3g} ms at p99 of {period_ms:g} ms")
        return {"rate_hz": f"{rate:.4g}", "rate_wanted_hz": f"{node.spec.rate_hz:g}", "ticks": ticks,
                "missed_deadlines": missed, "late_plans": node.late_plans,
                "jitter_ms_p50": f"{j50:.4g}", "jitter_ms_p99": f"{j99:.4g}",
                "jitter_ms_max": f"{worst:.4g}", "latency_ms_p50": f"{l50:.4g}", "latency_ms_p99": f"{l99:.4g}"}

    def _inputs(self, node: PolicyNode, running: bool, warnings: list[str]) -> dict[str, object]:
        """Age of every input, at the last tick or now, and how much earlier than the joints each image was taken."""
        heard, behind = (node.ages, node.behind_s) if running else node.look()
        values = ages(node.spec.inputs, heard) | {f"behind_s {name}": f"{s:.4g}" for name, s in behind.items()}
        for sensor in node.spec.inputs:
            age = heard.get(sensor.name)
            silent = age is None or age > NORMAL["age"] * sensor.stale_after_s
            if silent and not isinstance(sensor, Steering):  # nobody has to steer
                shown = "never heard" if age is None else f"{age:.3g} s old"
                warnings.append(f"{sensor.name} on {self._bus.resolve(heard_on(sensor)[0])} {shown}")
        if node.goal_refused:
            warnings.append(node.goal_refused)
        return values

    def _clamps(self, node: PolicyNode, running: bool, warnings: list[str]) -> dict[str, object]:
        """Ticks of the last second by why their command was changed or stopped."""
        now = dict(node.reasons)
        new = {Reason(key): count - self._reasons.get(key, 0) for key, count in now.items()}
        self._reasons = now
        ticks = sum(new.values())
        clamped = sum(count for reasons, count in new.items() if reasons & CLAMPS)
        if running and ticks and clamped > NORMAL["clamped"] * ticks:
            warnings.append(f"{clamped} of {ticks} commands clamped")
        single = [reason for reason in Reason if reason and reason.name and reason & (reason - 1) == 0]
        return {f"clamps {reason.words()}": sum(n for reasons, n in new.items() if reasons & reason)
                for reason in single}
