"""The simulated driver's own watchdog is the one that the robot file declares."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pytest

from hardware.bus import COMMAND, connect
from hardware.robot_io import encode_command
from robot_rl.spec import Watchdog, load_robot, mjcf_file
from sim.process import RobotProcess
from sim.robot import SimRobot

TARGET = 1.5  # rad, of the first joint


@pytest.mark.parametrize(("watchdog", "reached"), [
    (Watchdog(kind="driver", timeout_s=0.05), False), (Watchdog(), True)])
def test_servos_hold_where_they_are_when_commands_stop(domain: int, watchdog: Watchdog, reached: bool) -> None:
    robot = msgspec.structs.replace(load_robot("so101"), watchdog=watchdog)
    command = np.array([j.default for j in robot.actuated])
    command[0] = TARGET
    with connect("dds", "robot", "", domain) as bus:
        process = RobotProcess(robot, SimRobot(robot, str(mjcf_file("so101"))), bus, cameras=False)
        sender = bus.publisher(robot.command.topic, robot.command.type, COMMAND)
        end = time.monotonic() + 10
        while not sender.matched():
            assert time.monotonic() < end
        sender.publish(encode_command(robot, command)[0][1])  # once
        process.ticker.start()
        for _ in range(200):
            process.tick(1)
            time.sleep(0.002)
    pan = process.sim.readings()["joints.position"][0]
    assert (abs(pan - TARGET) < 0.1) == reached, pan
