"""The robot as a process of its own: MuJoCo in real time behind the robot's own topics.

It publishes joint states, poses (as a motion-capture system would) and camera images, obeys the command topics, and
serves `reset`. Nobody outside can tell it from the robot by these; a policy, a reward or a reset that looked
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
from hardware.robot_io import Order, decode_command, heard_on
from robot_rl import image
from robot_rl.homing import Homing
from robot_rl.kinematics import guarded
from robot_rl.spec import IMAGE, POSE, Camera, RobotSpec, SpecError
from sim.faults import Faults
from sim.robot import SimRobot

STATE = Qos(reliable=True)  # drivers publish reliably; consumers choose (REP 2003)
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"


class Hand:
    """What the command topics ask for now, joint by joint; on each of them the newest message counts.

    A topic that falls silent is answered by the driver's own watchdog, where the robot file declares one: no speed, no
    effort, or the brake alone; servos hold the pose that they are in. Without one, the last command holds for ever.
    """

    def __init__(self, robot: RobotSpec, bus: Bus) -> None:
        self._robot = robot
        places = {joint.name: i for i, joint in enumerate(robot.actuated)}
        self._topics = [(to, bus.reader(to.topic, to.type, COMMAND), np.array([places[n] for n in to.joints]))
                        for to in robot.command_topics]
        self._brake = np.array([j.brake for j in robot.actuated])
        self._held: set[str] = set()  # topics whose joints hold themselves because commands stopped coming
        self.rest()

    @property
    def order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(C,) each: target, seconds until there, kp, kd."""
        return self._target, self._seconds, self._kp, self._kd

    def rest(self) -> None:
        """Forget what was asked for: the default pose, no speed or no effort."""
        joints, holds = self._robot.actuated, self._robot.command.interface == "position"
        self._target = np.array([j.default if holds else 0.0 for j in joints])
        self._seconds = np.zeros(len(joints))
        self._kp, self._kd = np.array([j.kp for j in joints]), np.array([j.kd for j in joints])
        self._seen = dict.fromkeys((to.topic for to, _, _ in self._topics), time.monotonic_ns())

    def take(self, measured: Callable[[], np.ndarray]) -> bool:
        """Look at the newest message of every topic; True when anything is to be done differently.

        `measured` gives where the joints are, (C,).
        """
        news, limit = False, self._robot.watchdog.timeout_s
        for to, reader, index in self._topics:
            sample = reader.newest()
            if sample is None:
                continue
            age = (time.monotonic_ns() - sample.arrival_ns) * 1e-9
            if limit is not None and age > limit:
                news |= self._hold(to.topic, index, measured) if self._robot.stop == "hold" else self._let_go(index)
            elif sample.arrival_ns > self._seen[to.topic]:
                self._seen[to.topic] = sample.arrival_ns
                self._held.discard(to.topic)
                try:
                    self._follow(decode_command(self._robot, to, sample.data), index)
                    news = True
                except ValueError as error:
                    print(f"sim-robot: command refused: {error}", file=sys.stderr, flush=True)
        return news

    def _follow(self, order: Order, index: np.ndarray) -> None:
        """Note an order for some joints; one that is not finite changes nothing. Raises ValueError for it."""
        if not np.isfinite([order.target, *(order.gains or ())]).all():
            raise ValueError("it is not finite")
        self._target[index], self._seconds[index] = order.target, order.time_s
        if order.gains:
            self._kp[index], self._kd[index] = order.gains

    def _hold(self, topic: str, index: np.ndarray, measured: Callable[[], np.ndarray]) -> bool:
        """Hold some joints where they are; True unless they do already."""
        if topic in self._held:
            return False
        self._held.add(topic)
        self._target[index], self._seconds[index] = measured()[index], 0.0
        return True

    def _let_go(self, index: np.ndarray) -> bool:
        """Stop some joints; True unless they are stopped already."""
        if self._robot.command.interface == "position":
            parts = ((self._kp, np.zeros(len(index))), (self._kd, self._brake[index]))
        else:
            parts = ((self._target, np.zeros(len(index))),)  # type: ignore[assignment]
        changed = any((part[index] != value).any() for part, value in parts)
        for part, value in parts:
            part[index] = value
        return changed


class RobotProcess:
    """A simulated robot on a bus."""

    def __init__(self, robot: RobotSpec, sim: SimRobot, bus: Bus, cameras: bool = True, seed: int = 0) -> None:
        self.robot, self.sim = robot, sim
        rate = max(s.rate_hz for s in robot.sensors)
        self.ticker = Ticker(rate)
        self._rng = np.random.default_rng(seed)
        self._sensors = [(s, bus.publisher(s.topic, s.type, STATE), _every(rate, s.rate_hz)) for s in robot.sensors]
        self._hand = Hand(robot, bus)
        self._goal = bus.reader("goal", POSE, LATCHED)
        self._reset = bus.service(robot.reset_service)
        self._homing: tuple[Homing, Any] | None = None
        self._chain = guarded(robot, sim.mjcf)
        self._goal_ns = 0
        self.faults = Faults(robot, (*robot.sensors, *(robot.cameras if cameras else ())), bus, seed)
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
        self.faults.obey()
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
                self.faults.publish(sensor, publisher, seen, measured)
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
        """Apply the newest commands."""
        news = self._hand.take(self._measured)  # while homing too, or they would seem to arrive after the reset
        if self._homing is not None:
            self._follow_home(time.monotonic())
        elif news:
            self.sim.apply(*self._hand.order)

    def _measured(self) -> np.ndarray:
        """(C,) where the commanded joints are."""
        position: np.ndarray = self._joints()[0][self.robot.actuated_index]
        return position

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
            self._hand.rest()  # what was sent before the reset is over
            with self._lock:
                self.sim.place(self._rng)

    def _joints(self) -> tuple[np.ndarray, np.ndarray]:
        readings, name = self.sim.truth() | self.sim.readings(), self.robot.joint_sensor.name
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
            self._process.faults.publish(camera, self._images, seen, stamp)
            self._infos.publish(messages.encode(messages.camera_info(
                stamp, camera.frame, camera.width, camera.height, self._intrinsics)))
            deadline = max(deadline + period, time.monotonic())


def _every(rate: float, sensor_rate: float) -> int:
    return max(1, round(rate / sensor_rate))
