"""Measures the recorder: raw cameras and fast joint states from a process of its own, with and without compression."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hardware import messages
from hardware.bus import SENSOR, connect
from hardware.camera_bench import cpu_s, film
from hardware.loop import Ticker, percentiles, steady
from robot_rl import bag
from robot_rl.spec import IMAGE, JOINT_STATE, Camera

STATES, JOINTS = "joint_states", 7
NAMESPACE = "bench"
TAIL_S = 0.5  # the last messages are on their way for so long at most


def bench(seconds: float, cameras: int, rate_hz: float, compressions: Sequence[str], kind: str, flush_s: float,
          out: Path | None = None, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Record `seconds` of raw VGA cameras at 30 Hz and of joint states at `rate_hz`, once with each compression.

    A bag lies in `out`, by default in a temporary folder. Shares are of one core.
    """
    figures: dict[str, Any] = {"machine": f"{os.cpu_count()} cores", "seconds": seconds, "cameras": cameras,
                               "states_hz": rate_hz}
    for compression in compressions:
        with TemporaryDirectory() as temporary:
            one = _turn(Path(out or temporary), seconds, cameras, rate_hz, compression, kind, flush_s)
        report(f"recorder, {compression}: " + ", ".join(f"{key} {value}" for key, value in one.items()))
        figures |= {f"{compression}_{key}": value for key, value in one.items()}
    return figures


def _turn(folder: Path, seconds: float, cameras: int, rate_hz: float, compression: str, kind: str, flush_s: float
          ) -> dict[str, Any]:
    domain = 100 + os.getpid() % 100
    names = [f"camera_{i}/image_raw" for i in range(cameras)]
    rows = [[STATES, JOINT_STATE, "sensor"], *([name, IMAGE, "sensor"] for name in names)]
    context = multiprocessing.get_context("spawn")
    published: Any = context.Queue()
    source = context.Process(target=_publish, args=(kind, domain, names, rate_hz, seconds, published), daemon=True)
    source.start()
    command = [sys.executable, "-m", "hardware.recorder", "--bus", kind, "--namespace", NAMESPACE, "--domain",
               str(domain), "--out", str(folder), "--continuous", compression, "--compression", compression,
               "--flush", str(flush_s), "--wait", "30", "--with-parent"]
    recorder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert recorder.stdin is not None and recorder.stdout is not None
    try:
        recorder.stdin.write(json.dumps(rows))
        recorder.stdin.close()
        if "ready" not in (line := recorder.stdout.readline()):
            raise RuntimeError(f"the recorder said {line!r} and ended with status {recorder.wait(10)}")
        used, began = cpu_s(recorder.pid), time.monotonic()
        told = published.get(timeout=seconds + 60.0)
        time.sleep(TAIL_S)
        share = (cpu_s(recorder.pid) - used) / (time.monotonic() - began)
    finally:
        recorder.terminate()
        recorder.wait(30)
        source.join(10)
    found = bag.info(folder / compression)
    prefix = f"/{NAMESPACE}/"
    missed = {topic: count - found.topics[prefix + topic].count for topic, count in told["counts"].items()}
    return {"cpu_share": round(share, 3), "states_lost": missed.pop(STATES), "images_lost": sum(missed.values()),
            "states": told["counts"][STATES], "images": sum(told["counts"][name] for name in names),
            "dropped_by_queue": int(found.custom["recorder_dropped"]), "megabytes": round(found.size / 1e6, 1),
            "published_late_ms_p99": told["late_ms_p99"]}


def _publish(kind: str, domain: int, names: Sequence[str], rate_hz: float, seconds: float, told: Any) -> None:
    """Be the cameras and the joints, from when everybody listens, on absolute deadlines."""
    shape = Camera(name="bench", topic=IMAGE, width=640, height=480, rate_hz=30.0, frame="bench")
    frames = [messages.encode(messages.image(1, "bench", frame)) for frame in film(shape)]
    state = messages.encode(messages.joint_state(1, [f"joint_{i}" for i in range(JOINTS)], *3 * [np.arange(JOINTS)]))
    with connect(kind, "source", NAMESPACE, domain) as bus:  # type: ignore[arg-type]  # connect checks it
        states = bus.publisher(STATES, JOINT_STATE, SENSOR)
        images = {name: bus.publisher(name, IMAGE, SENSOR) for name in names}
        while not all(publisher.matched() for publisher in (states, *images.values())):
            time.sleep(0.01)
        time.sleep(1.0)
        counts, filmed, tick = dict.fromkeys((STATES, *names), 0), 0, 0
        ticker = Ticker(rate_hz)
        with steady():  # as a robot's driver is
            ticker.start()
            while tick < seconds * rate_hz:
                tick += ticker.wait()
                states.publish(state)
                counts[STATES] += 1
                if tick * shape.rate_hz >= filmed * rate_hz:
                    filmed += 1
                    for name, publisher in images.items():
                        publisher.publish(frames[counts[name] % len(frames)])
                        counts[name] += 1
        (late,) = percentiles(ticker.late[:ticker.ticks] * 1e-6, 99)
        time.sleep(TAIL_S)
        told.put({"counts": counts, "late_ms_p99": round(late, 3)})
        told.close()
        told.join_thread()
