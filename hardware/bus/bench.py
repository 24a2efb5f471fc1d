"""Measures the bus: round trips between two processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hardware import messages
from hardware.bus import SENSOR, Bus, Kind, Reader, connect

JOINT_STATE, IMAGE = "sensor_msgs/msg/JointState", "sensor_msgs/msg/Image"
JOINTS = [f"joint_{i}" for i in range(12)]
POSE = np.linspace(-1, 1, 12)
WARM_UP = 20  # trips that are not counted: they warm caches
LOST_S = 0.5  # a trip that takes longer counts as lost; sensor topics are best-effort


def bench(kind: Kind = "auto", seconds: float = 5.0, domain: int | None = None) -> dict[str, Any]:
    """Round trips in ms between two processes, each end encoding what it sends and decoding what it gets.

    joint_state: a JointState of 12 joints out and back. image_vga: a raw 640x480 rgb8 image out, a JointState back.
    Each is measured for `seconds` s; n and lost count its trips. Raises TimeoutError when the other process is mute.
    """
    context = multiprocessing.get_context("spawn")
    space, stop = f"bench_{os.getpid()}", context.Event()
    echo = context.Process(target=_echo, args=(kind, space, domain, stop), daemon=True)
    echo.start()
    try:
        with connect(kind, "bench", space, domain) as bus:
            return {"bus": bus.kind, **_measure(bus, seconds), "machine": _machine()}
    finally:
        stop.set()
        echo.join(5)
        echo.kill()


def _measure(bus: Bus, seconds: float) -> dict[str, Any]:
    states, images = bus.publisher("state", JOINT_STATE, SENSOR), bus.publisher("image", IMAGE, SENSOR)
    back = bus.reader("back", JOINT_STATE, SENSOR)
    _match(30.0, states.matched, images.matched, back.matched)
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    sends: dict[str, Callable[[], int]] = {
        "joint_state": lambda: states.publish(messages.encode(_state())),
        "image_vga": lambda: images.publish(messages.encode(messages.image(time.time_ns(), "camera", picture)))}
    figures: dict[str, Any] = {"n": {}, "lost": {}}
    for name, send in sends.items():
        trips = np.array(_trips(send, back, seconds))
        heard = trips[np.isfinite(trips)]
        if not heard.size:
            raise TimeoutError(f"bench bus: none of {trips.size} {name} round trips was answered within {LOST_S:g} s")
        p50, p99 = np.percentile(heard, [50, 99])
        figures |= {f"{name}_ms_p50": round(float(p50), 4), f"{name}_ms_p99": round(float(p99), 4)}
        figures["n"][name], figures["lost"][name] = int(heard.size), int(trips.size - heard.size)
    return figures


def _trips(send: Callable[[], object], back: Reader, seconds: float) -> list[float]:
    """Round trips in ms, NaN where the answer was lost."""
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 2 * WARM_UP:
        back.take()
        begun = time.perf_counter()
        send()
        if back.wait(LOST_S):
            messages.decode(back.take()[-1].data, JOINT_STATE)
            times.append(1e3 * (time.perf_counter() - begun))
        else:
            times.append(float("nan"))
    return times[WARM_UP:]


def _echo(kind: Kind, space: str, domain: int | None, stop: Any) -> None:
    """The other process: answers every state and every image with a JointState."""
    with connect(kind, "echo", space, domain) as bus:
        back = bus.publisher("back", JOINT_STATE, SENSOR)
        ends = [(bus.reader("state", JOINT_STATE, SENSOR), JOINT_STATE), (bus.reader("image", IMAGE, SENSOR), IMAGE)]
        while not stop.is_set():
            for reader, type in ends:
                while reader.wait(0.02):  # as long as this topic is busy: the other one is idle then
                    for sample in reader.take():
                        messages.decode(sample.data, type)
                        back.publish(messages.encode(_state()))


def _state() -> Any:
    return messages.joint_state(time.time_ns(), JOINTS, POSE, POSE, POSE)


def _match(timeout_s: float, *matched: Callable[[], int]) -> None:
    end = time.monotonic() + timeout_s
    while not all(one() for one in matched):
        if time.monotonic() > end:
            raise TimeoutError(f"bench bus: the other process did not come within {timeout_s:g} s")
        time.sleep(0.01)


def _machine() -> str:
    """Processor, cores, load and Python of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
