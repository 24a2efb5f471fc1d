"""Measures the bus: round trips between two processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import numpy as np

from hardware import messages
from hardware.bus import COMMAND, Kind, Reader, connect

JOINT_STATE, IMAGE = "sensor_msgs/msg/JointState", "sensor_msgs/msg/Image"
JOINTS = [f"joint_{i}" for i in range(12)]


def bench(kind: Kind = "auto", seconds: float = 5.0, domain: int = 118) -> dict[str, Any]:
    """Round trips in ms: a JointState of 12 joints both ways, and a raw 640x480 rgb8 image out and a JointState back."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    echo = context.Process(target=_echo, args=(kind, domain, stop), daemon=True)
    echo.start()
    try:
        with connect(kind, "bench", "bench", domain) as bus:
            state, image = bus.publisher("state", JOINT_STATE, COMMAND), bus.publisher("image", IMAGE, COMMAND)
            back = bus.reader("back", JOINT_STATE, COMMAND)
            _match(30.0, state.matched, image.matched, back.matched)
            pose = np.linspace(-1, 1, 12)
            picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
            made = {
                "joint_state": (state, lambda: messages.joint_state(time.time_ns(), JOINTS, pose, pose, pose)),
                "image_vga": (image, lambda: messages.image(time.time_ns(), "camera", picture)),
            }
            figures: dict[str, Any] = {"bus": type(bus).__name__}
            for name, (publisher, make) in made.items():
                trips = _trips(publisher, back, make, seconds)
                p50, p99 = np.percentile(trips, [50, 99])
                figures |= {f"{name}_ms_p50": float(p50), f"{name}_ms_p99": float(p99), f"{name}_trips": len(trips)}
    finally:
        stop.set()
        echo.join(5)
        echo.kill()
    return figures | {"machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}"}


def _trips(publisher: Any, back: Reader, make: Any, seconds: float) -> np.ndarray:
    """(N,) round trips in ms: encode, send, the other end decodes and answers, receive, decode."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 20:
        back.take()
        begun = time.perf_counter()
        publisher.publish(messages.encode(make()))
        if not back.wait(1.0):
            raise TimeoutError("bench bus: no answer within 1 s")
        messages.decode(back.take()[-1].data, JOINT_STATE)
        times.append(1e3 * (time.perf_counter() - begun))
        time.sleep(0.002)
    return np.array(times[10:])  # the first trips warm caches


def _echo(kind: Kind, domain: int, stop: Any) -> None:
    """Answer every state and every image with a JointState."""
    with connect(kind, "echo", "bench", domain) as bus:
        back = bus.publisher("back", JOINT_STATE, COMMAND)
        readers = [(bus.reader("state", JOINT_STATE, COMMAND), JOINT_STATE), (bus.reader("image", IMAGE, COMMAND), IMAGE)]
        pose = np.zeros(12)
        last = 0
        while not stop.is_set():
            if not readers[last][0].wait(0.05):
                last = 1 - last  # the other topic's turn: this one has gone quiet
                continue
            for sample in readers[last][0].take():
                messages.decode(sample.data, readers[last][1])
                back.publish(messages.encode(messages.joint_state(time.time_ns(), JOINTS, pose, pose, pose)))


def _match(timeout_s: float, *matched: Any) -> None:
    end = time.monotonic() + timeout_s
    while not all(one() for one in matched):
        if time.monotonic() > end:
            raise TimeoutError("bench bus: the other process did not come")
        time.sleep(0.01)
