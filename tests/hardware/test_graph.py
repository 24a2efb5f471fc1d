"""The ROS graph from outside: what robot, supervisor, recorder and camera have on the wire, on either backend.

The policy's is in test_lifecycle.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hardware.bus import connect
from hardware.bus.dds import DdsBus
from tests.hardware.graph import HASHES, endpoints

NO_ROS = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None,
                            reason="rclpy is not installed: it comes with a ROS 2 install, not from a package index")
NO_OPENCV = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="OpenCV is not installed")
COMMANDS = "forward_position_controller/commands"
STATE, POSE, FLOATS = "sensor_msgs/msg/JointState", "geometry_msgs/msg/PoseStamped", "std_msgs/msg/Float64MultiArray"
TEXT, BOOL = "std_msgs/msg/String", "std_msgs/msg/Bool"
DIAGNOSTICS = "writer rt/diagnostics diagnostic_msgs/msg/DiagnosticArray reliable volatile"
IMAGE, JPEG, INFO = (f"sensor_msgs/msg/{name}" for name in ("Image", "CompressedImage", "CameraInfo"))


def trigger(name: str) -> set[str]:
    """Both ends of a served std_srvs/Trigger."""
    return {f"reader rq/arm/{name}Request std_srvs/srv/Trigger_Request reliable volatile",
            f"writer rr/arm/{name}Reply std_srvs/srv/Trigger_Response reliable volatile"}


GOLDEN = {
    "robot": {
        f"writer rt/arm/joint_states {STATE} reliable volatile",
        f"writer rt/arm/tip_pose {POSE} reliable volatile",
        f"reader rt/arm/{COMMANDS} {FLOATS} reliable volatile",
        f"reader rt/arm/goal {POSE} reliable latched",
        f"reader rt/arm/robot/fault {TEXT} reliable volatile",
        f"writer rt/arm/robot/faults {TEXT} reliable latched",
    } | trigger("reset"),
    "supervisor": {
        f"reader rt/arm/joint_states {STATE} best-effort volatile",
        f"reader rt/arm/tip_pose {POSE} best-effort volatile",
        f"reader rt/arm/supervisor/{COMMANDS} {FLOATS} reliable volatile",
        f"reader rt/arm/{COMMANDS} {FLOATS} reliable volatile",
        f"reader rt/arm/policy/step {FLOATS} reliable volatile",
        f"reader rt/arm/safety/protective_stop {BOOL} best-effort volatile",
        f"reader rt/arm/safety/protective_stop {BOOL} reliable latched",
        f"writer rt/arm/{COMMANDS} {FLOATS} reliable volatile",
        f"writer rt/arm/supervisor/sent {FLOATS} reliable volatile",
        f"writer rt/arm/supervisor/state {TEXT} reliable latched",
        f"writer rt/arm/supervisor/stopped {BOOL} reliable latched",
        DIAGNOSTICS,
    }.union(*(trigger(f"supervisor/{name}") for name in ("arm", "disarm", "stop", "reset"))),
    "recorder": {
        f"reader rt/arm/joint_states {STATE} best-effort volatile",
        f"reader rt/arm/tip_pose {POSE} best-effort volatile",
        f"reader rt/arm/{COMMANDS} {FLOATS} reliable volatile",
        f"reader rt/arm/safety/protective_stop {BOOL} reliable latched",
        f"reader rt/arm/policy/step {FLOATS} reliable volatile",
        f"reader rt/arm/policy/episode {TEXT} reliable volatile",
        f"reader rt/arm/policy/policy_info {TEXT} reliable latched",
        f"writer rt/arm/recorder/bag {TEXT} reliable volatile",
        DIAGNOSTICS,
    },
    "camera": {
        f"writer rt/arm/front/image_raw {IMAGE} best-effort volatile",
        f"writer rt/arm/front/image_raw/compressed {JPEG} best-effort volatile",
        f"writer rt/arm/front/camera_info {INFO} best-effort volatile",
    },
}
"""By node, what /arm/NODE has on the wire."""
PLAIN_ROS = {"writer rt/parameter_events rcl_interfaces/msg/ParameterEvent reliable volatile"}
"""What rclpy gives a node beside it."""


@pytest.mark.parametrize("kind", ["dds", pytest.param("ros", marks=NO_ROS)])
@pytest.mark.parametrize("node", ["robot", "supervisor", "recorder", pytest.param("camera", marks=NO_OPENCV)])
def test_a_node_shows_what_the_golden_list_says(node: str, kind: str, domain: int, tmp_path: Path) -> None:
    where = ["--bus", kind, "--namespace", "arm"]
    with subprocess.Popen([sys.executable, *command(node, tmp_path), *where], text=True, stdout=subprocess.PIPE,
                          env=os.environ | {"ROBOT_RL_INTERFACE": "lo"}) as process, \
            connect("dds", "outside", "", domain, "lo") as bus:
        try:
            assert process.stdout is not None
            assert "ready" in process.stdout.readline()
            assert isinstance(bus, DdsBus)
            end = time.monotonic() + 60
            while not GOLDEN[node] <= set(found := endpoints(bus, "/arm", node)) and time.monotonic() < end:
                time.sleep(0.2)
            assert set(found) == GOLDEN[node] | (PLAIN_ROS if kind == "ros" else set())
            for row, stated in found.items():
                assert re.fullmatch("[0-9a-f]{64}", stated), row
                assert stated == HASHES.get(row.split()[2], stated), row
        finally:
            process.terminate()
            process.wait(60)


def command(node: str, folder: Path) -> list[str]:
    """What starts it, with `front` of two cameras filmed."""
    if node == "recorder":
        return ["-m", "hardware.recorder", "--robot", "so101", "--no-cameras", "--out", str(folder)]
    more = {"robot": ["sim-robot", "so101", "--no-cameras"], "supervisor": ["supervisor", "so101"]}.get(node)
    if more is None:
        from hardware.camera_node import write_video
        video = folder / "front.avi"
        write_video(video, [np.zeros((240, 320, 3), np.uint8)] * 20, 10.0)
        more = ["camera", "so101", "--source", f"front={video}", "--loop"]
    return ["-m", "robot_rl.cli", *more]
