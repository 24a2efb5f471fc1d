"""`use_sim_time` on a real rclpy: stamps say what /clock says, and the robot is controlled whatever that does."""

from __future__ import annotations

import importlib.util
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from hardware import messages
from hardware.bus import COMMAND, EVENTS, LATCHED, Bus, Publisher, connect
from robot_rl.spec import POSE
from robot_rl.steplog import STEP_TOPIC, STEP_TYPE, StepRecord, join_ns
from tests.hardware.processes import PATIENCE_S, patient, process, ready, until

CLOCK, RATE = "rosgraph_msgs/msg/Clock", 20.0
pytestmark = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="rclpy is not installed: it comes "
                                "with a ROS 2 install, not from a package index")


def stamps(bus: Bus, clock: Publisher, seconds: list[float]) -> np.ndarray:
    """What the steps are stamped with, s, after /clock has said these times, 0.05 s apart."""
    for second in seconds:
        clock.publish(messages.encode(messages.new(CLOCK, clock=messages.time(round(second * 1e9)))))
        time.sleep(0.05)
    reader = bus.reader(STEP_TOPIC, STEP_TYPE, EVENTS)
    records: list[StepRecord] = []
    until(lambda: records.extend(StepRecord.decode(s.data) for s in reader.take()) or len(records) >= 10)
    reader.close()
    return np.array([join_ns(*record.stamp) for record in records]) * 1e-9


def test_a_clock_that_stands_still_or_jumps_back_holds_up_nobody(domain: int, tmp_path: Path) -> None:
    file = patient(tmp_path)
    with connect("dds", "operator", "", domain, "lo") as bus, \
            process("sim-robot", file, "--no-cameras", bus="dds") as robot, \
            process("policy", "run", "so101-reach", "--robot", file, more=["--ros-args", "-p", "use_sim_time:=true"],
                    bus="ros") as policy:
        ready(robot)
        clock, goals = bus.publisher("/clock", CLOCK, COMMAND), bus.publisher("goal", POSE, LATCHED)
        goals.publish(messages.encode(messages.pose_stamped(0, "base_link", (0.22, 0, 0.15), (0, 0, 0, 1))))
        until(lambda: bus.call("policy/start", PATIENCE_S)[0])
        assert not stamps(bus, clock, []).any(), "there was no /clock yet"
        until(clock.matched)
        paused = stamps(bus, clock, [100.0])
        assert paused[-1] == 100.0
        assert stamps(bus, clock, []).tolist() == [100.0] * len(stamps(bus, clock, []))
        assert stamps(bus, clock, list(np.arange(100.0, 101.0, 0.1)))[-1] == pytest.approx(100.9)
        assert stamps(bus, clock, [50.0])[-1] == 50.0
        assert '"active"' in bus.call("policy/status", PATIENCE_S)[1]
        policy.send_signal(signal.SIGINT)
        assert policy.wait(60) == 0
