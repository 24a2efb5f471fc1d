"""The control loop's clock, what the system grants it, and how loops are judged against each other."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Container

import msgspec
import numpy as np
import onnx
import pytest

from hardware.bus import connect
from hardware.loop import Ticker, steady
from hardware.loop_bench import LOADS, LOOPS, bench, judged
from hardware.rehearsal import Rehearsal
from hardware.robot_io import RobotIO
from robot_rl.policy import Exploration, Policy, seal
from robot_rl.spec import SpecError, policy_file

MS = 1_000_000


def test_a_tick_that_takes_too_long_skips_periods_and_makes_no_burst() -> None:
    ticker = Ticker(100.0)
    ticker.start()
    skipped = ticker.wait() - 1
    time.sleep(0.035)
    began = time.monotonic()
    skipped += ticker.wait() - 1
    assert skipped == ticker.missed >= 2
    ticker.wait()
    assert time.monotonic() - began < 0.2
    assert ticker.ticks == 3


class Told:
    """A rehearsal that notes when it began and when it was to end, ns."""

    ahead_ns = 3 * MS

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, until_ns: int) -> None:
        self.calls.append((time.monotonic_ns(), until_ns))


def test_a_rehearsal_comes_before_the_deadline_and_is_told_when_to_end() -> None:
    ticker, told = Ticker(20.0), Told()
    ticker.start()
    for _ in range(5):
        ticker.wait(told)
        began, until = told.calls[-1]
        assert 0 < time.monotonic_ns() - until < 50 * MS
        assert until - began < 3 * MS
    assert len(told.calls) == 5
    ticker = Ticker(1250.0)  # no period of its has time for one
    ticker.start()
    for _ in range(5):
        ticker.wait(told)
    assert len(told.calls) == 5


def test_a_rehearsal_repeats_what_fits_and_ends_in_time(domain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(policy_file("so101-reach"))
    assert policy.spec.robot is not None
    runs: list[int] = []
    slow: Container[int] = {2}
    again = policy.again

    def counted() -> np.ndarray:
        runs.append(time.monotonic_ns())
        if len(runs) in slow:
            time.sleep(0.03)
        return again()
    monkeypatch.setattr(policy, "again", counted)
    with connect("dds", "rehearsal", "", domain) as bus:
        io = RobotIO(policy.spec.robot, bus)
        rehearse = Rehearsal(io, policy, policy.spec)
        assert len(runs) == 3
        slow = {7}  # a stall is forgiven
        until = time.monotonic_ns() + 200 * MS
        rehearse(until)
        assert len(runs) > 20 and runs[-1] < until
        slow, before = range(10**6), len(runs)
        rehearse = Rehearsal(io, policy, policy.spec)
        rehearse(time.monotonic_ns() + 50 * MS)  # what is always slow is left out
        assert len(runs) == before + 3


def test_steady_gives_everything_back() -> None:
    allowed, class_before = os.sched_getaffinity(0), os.sched_getscheduler(0)
    cpu = min(allowed)
    with steady(cpu) as granted:
        assert not gc.isenabled()
        assert os.sched_getaffinity(0) == {cpu} == {granted.cpu}
        assert granted.scheduling == (os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in (1, 2))
    assert gc.isenabled()
    assert (os.sched_getaffinity(0), os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK) == (allowed, class_before)
    with pytest.raises(ValueError, match="cpu 4096: this process may use"), steady(4096):
        pass
    assert gc.isenabled()


def test_lateness_is_against_the_schedule_and_missed_periods_are_counted() -> None:
    on_time = np.arange(200) * 10 * MS
    late, missed = judged(on_time + 5, 10 * MS)
    assert (late == 0).all() and missed == 0
    drifting = np.arange(200) * 11 * MS  # loses a period in ten
    late, missed = judged(drifting, 10 * MS)
    assert missed == 19
    assert late.max() < 10 * MS
    stalled = on_time + np.where(np.arange(200) >= 50, 25 * MS, 0)
    late, missed = judged(stalled, 10 * MS)
    assert missed == 2
    assert (late[50:] == 5 * MS).all() and (late[:50] == 0).all()
    held_up = on_time + np.where(np.arange(200) == 50, 12 * MS, np.where(np.arange(200) == 51, 3 * MS, 0)) - MS // 10
    late, missed = judged(np.append(on_time[:1], held_up[1:]), 10 * MS)  # the one after it comes in its own period
    assert missed == 1 and late[50] == late[51] - MS == 2 * MS and (late[60:] == 0).all()


def test_a_step_s_work_without_the_step_changes_nothing() -> None:
    policy = Policy(policy_file("so101-reach"))
    obs = np.linspace(-1, 1, policy.spec.observation_size, dtype=np.float32)
    action = policy(obs)
    assert np.array_equal(policy.again(), action)
    other = policy(-obs)
    assert not np.array_equal(other, action)  # what was given is the caller's own


def test_exploring_noise_is_held_on_the_robot_as_in_training(tmp_path) -> None:
    source = Policy(policy_file("so101-reach"))
    longest = msgspec.structs.replace(source.spec, trained=source.spec.trained | {"hold": 3})
    model = onnx.load(source.path)
    del model.metadata_props[:]
    graph = model.SerializeToString()
    path = tmp_path / "held.onnx"
    path.write_bytes(seal(graph, longest.to_json()))
    held, explored, runs = Policy(path), Exploration(0), [0]
    drawn = [explored.draw(held) for _ in range(4000)]
    for before, now in itertools.pairwise(drawn):
        runs.append(1) if not np.array_equal(before, now) else runs.append(runs.pop() + 1)
    lengths = np.bincount(runs[1:-1], minlength=4)
    np.testing.assert_allclose(lengths[1:] / lengths.sum(), np.array([36, 9, 4]) / 49, atol=0.03)  # 1, 1/4, 1/9
    white = Exploration(0)
    assert source.hold == 1 and not np.array_equal(white.draw(source), white.draw(source))
    path.write_bytes(seal(graph, msgspec.structs.replace(longest, trained={"hold": 0}).to_json()))
    with pytest.raises(SpecError, match=r"held.onnx: trained.hold is 0; noise is held for at least 1 step"):
        Policy(path)


def test_loops_take_turns_and_the_page_shows_them(tmp_path) -> None:
    page, lines = tmp_path / "loops.html", []
    told = bench([50.0], 1.0, "furuta-swingup", LOOPS, LOADS, 1, kind="dds", domain=119, out=page, report=lines.append)
    rows = told["loops"]
    loops = [loop for loop in LOOPS if loop != "timer" or importlib.util.find_spec("rclpy")]
    assert [(row["load"], row["loop"]) for row in rows] == [(load, loop) for load in LOADS for loop in loops]
    for row in rows:
        assert row["ticks"] > 0 and row["stops"] == 0
        assert 0 < row["latency_ms_p50"] <= row["latency_ms_p99"]
        assert "jitter_ms" not in row
    assert rows[0]["real_time"]["cpu"] is None and "real_time" not in rows[1]
    json.dumps(told, default=str)
    text = page.read_text()
    assert text.count("<svg") == 2 and "ours: absolute deadlines" in text
    assert ("rclpy cannot be imported: timer" in lines[0]) == ("timer" not in loops)


def test_bad_contests_are_refused() -> None:
    with pytest.raises(ValueError, match="loops: mine; known are ours, sleep, timer"):
        bench([50.0], 1.0, "furuta-swingup", ["mine"])
    with pytest.raises(ValueError, match="loads: half; known are idle, busy"):
        bench([50.0], 1.0, "furuta-swingup", ["ours"], ["half"])
    with pytest.raises(ValueError, match="rate: 0 Hz; a rate is above 0"):
        bench([50.0, 0.0], 1.0, "furuta-swingup", ["ours"])
    with pytest.raises(SpecError, match=r"policy .nowhere.: no file"):
        bench([50.0], 1.0, "nowhere", ["ours"])


def test_a_process_that_is_interrupted_again_and_again_ends_in_order() -> None:
    """As by a launch that signals everybody in its group, and each once more."""
    code = ("import time; from hardware.loop import interrupted; over = interrupted(); print('ready', flush=True)\n"
            "while not over(): time.sleep(0.01)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.0005)
    assert process.returncode == 0
