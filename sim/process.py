"""The robot as a process of its own: MuJoCo in real time behind the robot's own topics.

It publishes joint states, poses (as a motion-capture system would) and camera images, obeys the command topic, and
serves `reset`. Nobody outside can tell it from the robot by its topics; a policy, a reward or a reset that looked
inside the simulator would have nothing to look at.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hardware import messages
from hardware.bus import COMMAND, LATCHED, SENSOR, Bus, Publisher, Qos
from hardware.loop import Ticker
from hardware.robot_io import decode_command, encode, heard_on
from robot_rl import image
from robot_rl.homing import Homing
from robot_rl.kinematics import guarded
from robot_rl.spec import IMAGE, POSE, Camera, RobotSpec, SpecError
from sim.robot import SimRobot

STATE = Qos(reliable=True)  # drivers publish reliably; consumers choose (REP 2003)
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"


class RobotProcess:
    """A simulated robot on a bus."""

    def __init__(self, robot: RobotSpec, sim: SimRobot, bus: Bus, cameras: bool = True, seed: int = 0) -> None:
        self.robot, self.sim = robot, sim
        rate = max(s.rate_hz for s in robot.sensors)
        self.ticker = Ticker(rate)
        self._rng = np.random.default_rng(seed)
        self._sensors = [(s, bus.publisher(s.topic, s.type, STATE), _every(rate, s.rate_hz)) for s in robot.sensors]
        self._commands = bus.reader(robot.command.topic, robot.command.type, COMMAND)
        self._goal = bus.reader("goal", POSE, LATCHED)
        self._reset = bus.service(robot.reset_service)
        self._homing: tuple[Homing, Any] | None = None
        self._chain = guarded(robot, sim.mjcf)
        self._last_command_ns = 0
        self._held = False  # whether the robot holds itself because commands stopped coming
        self._goal_ns = 0
        self._answer: Any = None  # a reset request that is done but for telling where things are now
        self._lock = threading.Lock()
        self._camera_stop = threading.Event()
        self._cameras = [_CameraThread(self, camera, bus) for camera in robot.cameras] if cameras else []
        self.sim.reset(self._rng)
        self.sim.show_goal(None)

    def run(self, stop: Callable[[], bool], seconds: float | None = None) -> None:
        """Run in real time until `stop()` or for so many seconds."""
        for camera in self._cameras:
            camera.start()
        end = None if seconds is None else time.monotonic() + seconds
        self.ticker.start()
        try:
            while not stop() and (end is None or time.monotonic() < end):
                self.tick(self.ticker.wait())
        finally:
            self._camera_stop.set()
            for camera in self._cameras:
                camera.join()

    def tick(self, periods: int) -> None:
        """Let `periods` ticks of physics pass under the newest command, then publish what the sensors see."""
        self._serve_reset()
        self._obey()
        with self._lock:
            self.sim.step(periods * self.ticker.period_ns * 1e-9)
        self._show_goal()
        stamp = time.time_ns()
        for sensor, publisher, every in self._sensors:
            due = self.ticker.ticks % every == 0 or self._answer is not None
            if due and (seen := self.sim.measure(sensor.name)) is not None:
                measured = stamp - round(self.sim.lags.get(sensor.name, 0.0) * 1e9)
                publisher.publish(encode(sensor, seen, measured, self.robot))
        if self._answer is not None:
            self._answer.reply(True, "at the default pose")
            self._answer = None

    def picture(self, camera: Camera) -> tuple[np.ndarray, int]:
        """(H, W, 3) uint8 rgb and when it was taken, ns since the Unix epoch; physics waits while the state is copied.
        """
        with self._lock:
            self.sim.snapshot(camera.name)
            taken = time.time_ns() - round(self.sim.lags.get(camera.name, 0.0) * 1e9)
        return self.sim.render_snapshot(camera.name), taken

    def _obey(self) -> None:
        """Apply the newest command; silence is answered by the driver's own watchdog, where the robot has one."""
        now = time.monotonic()
        sample = self._commands.newest()  # taken while homing too, or it would seem to arrive after the reset
        if self._homing is not None:
            self._follow_home(now)
            return
        if sample is None:
            return
        age, limit = (time.monotonic_ns() - sample.arrival_ns) * 1e-9, self.robot.watchdog.timeout_s
        if limit is not None and age > limit:
            self._time_out()
        elif sample.arrival_ns > self._last_command_ns:
            self._last_command_ns, self._held = sample.arrival_ns, False
            try:
                command = decode_command(self.robot, sample.data)
            except ValueError as error:
                print(f"sim-robot: command refused: {error}", file=sys.stderr, flush=True)
                return
            if np.isfinite(command).all():
                self.sim.apply(command)

    def _time_out(self) -> None:
        """No speed and no effort; servos hold the pose that they are in."""
        if self.robot.command.interface != "position":
            self.sim.apply(np.zeros(len(self.robot.actuated)))
        elif not self._held:
            self.sim.apply(self._joints()[0][self.robot.actuated_index])
        self._held = True

    def _serve_reset(self) -> None:
        request = self._reset.take()
        if request is None:
            return
        position, _ = self._joints()
        try:
            self._homing = Homing(self.robot, position, time.monotonic(), chain=self._chain), request
        except SpecError as error:
            request.reply(False, str(error))

    def _follow_home(self, now: float) -> None:
        assert self._homing is not None
        homing, request = self._homing
        position, velocity = self._joints()
        self.sim.apply(homing.command(position, velocity, now))
        if homing.finished(position, velocity, now):
            self._homing, self._answer = None, request
            self._last_command_ns = time.monotonic_ns()  # what was sent before the reset is over
            with self._lock:
                self.sim.place(self._rng)

    def _joints(self) -> tuple[np.ndarray, np.ndarray]:
        readings, name = self.sim.readings(), self.robot.joint_sensor.name
        return readings[f"{name}.position"], readings[f"{name}.velocity"]

    def _show_goal(self) -> None:
        """Draw the goal, so that people and cameras see it."""
        sample = self._goal.newest()
        if sample is not None and sample.stamp_ns != self._goal_ns:
            self._goal_ns = sample.stamp_ns
            p = messages.decode(sample.data, POSE).pose.position
            self.sim.show_goal(np.array([p.x, p.y, p.z]))


class _CameraThread(threading.Thread):
    """Renders one camera at its rate beside the physics; MuJoCo releases the interpreter while it draws."""

    def __init__(self, process: RobotProcess, camera: Camera, bus: Bus) -> None:
        super().__init__(daemon=True, name=f"camera {camera.name}")
        self._process, self._camera = process, camera
        if camera.type != IMAGE:  # say at once where OpenCV is missing
            image.to_jpeg(np.zeros((8, 8, 3), np.uint8), image.QUALITY)
        self._images = bus.publisher(*heard_on(camera), SENSOR)
        self._infos: Publisher = bus.publisher(camera.info_topic, CAMERA_INFO, SENSOR)

    def run(self) -> None:
        camera, period = self._camera, 1.0 / self._camera.rate_hz
        size = camera.width, camera.height
        self._intrinsics = messages.pinhole(*size, self._process.sim.fovy(camera.name))
        deadline = time.monotonic()
        while not self._process._camera_stop.wait(max(0.0, deadline - time.monotonic())):
            picture, stamp = self._process.picture(camera)
            seen = {f"{camera.name}.image": picture}
            self._images.publish(encode(camera, seen, stamp, self._process.robot))
            self._infos.publish(messages.encode(messages.camera_info(
                stamp, camera.frame, camera.width, camera.height, self._intrinsics)))
            deadline = max(deadline + period, time.monotonic())


def _every(rate: float, sensor_rate: float) -> int:
    return max(1, round(rate / sensor_rate))
