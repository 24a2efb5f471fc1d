"""Messages of sensors and cameras → readings (stage 1), command → message (stage 6), both by the robot's spec."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardware import messages
from hardware.bus import COMMAND, SENSOR, Bus, Reader, Sample
from robot_rl import image
from robot_rl.observe import Readings, Values
from robot_rl.spec import (
    IMAGE,
    IMU,
    JOINT_STATE,
    ODOMETRY,
    PD,
    STEERING,
    TRAJECTORY,
    Camera,
    CommandTopic,
    RobotSpec,
    Sensor,
    SpecError,
    Steering,
)

FLOATS = "std_msgs/msg/Float64MultiArray"


class RobotIO:
    """A robot's state topics, the cameras in use and its command topics on a bus, and the topic that steers."""

    def __init__(self, robot: RobotSpec, bus: Bus, cameras: Sequence[Camera] = (), steering: Steering | None = None
                 ) -> None:
        self.robot, self.cameras, self._bus = robot, tuple(cameras), bus
        inputs: tuple[Sensor | Camera, ...] = (*robot.sensors, *cameras)
        self._sensors: list[tuple[Sensor | Camera, Reader]] = [
            (s, bus.reader(*heard_on(s), SENSOR)) for s in inputs]
        self._steering = (steering, bus.reader(steering.topic, steering.type, SENSOR)) if steering else None
        self._commands = {to.topic: bus.publisher(robot.commands_of_policies(to.topic), to.type, COMMAND)
                          for to in robot.command_topics}
        self._decoded: dict[str, tuple[Sample, Values]] = {}
        self._taken: dict[str, tuple[int, int]] = {}  # by camera: stamp and arrival of the image that it shows
        self.refused: dict[str, str] = {}
        """Why the newest message of a sensor or camera is none, by its name."""

    def read(self) -> Readings:
        """The newest message of every sensor and camera in use, decoded once; what has not spoken is absent.

        So is one whose newest message is none, which `refused` then tells of: the episode stops as for a silent one.
        Ages are reckoned on this machine's clock alone, so that clocks that differ stop no robot: from the arrival, of
        an image by `delay_s` earlier; one that is sent once more, with the same stamp, is no newer for it.
        """
        readings = Readings({})
        for sensor, reader in self._sensors:
            sample = reader.newest()
            if sample is None:
                continue
            known = self._decoded.get(sensor.name)
            if known is None or known[0] is not sample:
                try:
                    known = (sample, decode(sensor, sample.data, self.robot))
                    if isinstance(sensor, Camera):
                        _check_size(sensor, known[1])
                    self._decoded[sensor.name] = known
                    self.refused.pop(sensor.name, None)
                except SpecError as error:
                    self.refused[sensor.name] = str(error)
                    continue
            readings.values |= known[1]
            readings.stamps[sensor.name] = sample.stamp_ns
            acquired, arrived, delay = messages.acquired_ns(sample.data), sample.arrival_ns, 0.0
            if isinstance(sensor, Camera):
                before, delay = self._taken.get(sensor.name), sensor.delay_s
                if before is not None and before[0] == acquired != 0:
                    arrived = before[1]
                self._taken[sensor.name] = acquired, arrived
            readings.acquired[sensor.name] = acquired - round(delay * 1e9)
            readings.ages[sensor.name] = (time.monotonic_ns() - arrived) * 1e-9 + delay
        self._steer(readings)
        return readings

    def _steer(self, readings: Readings) -> None:
        """Add the velocity that is asked for; one that is too old, or never came, is as if none were."""
        if self._steering is None or (sample := self._steering[1].newest()) is None:
            return
        steering, age = self._steering[0], (time.monotonic_ns() - sample.arrival_ns) * 1e-9
        self.refused.pop(steering.name, None)
        if age <= steering.stale_after_s:
            try:
                readings.values |= decode(steering, sample.data, self.robot)
            except SpecError as error:
                self.refused[steering.name] = str(error)
                return
            readings.stamps[steering.name], readings.ages[steering.name] = sample.stamp_ns, age

    def send(self, command: np.ndarray) -> int:
        """Publish a command (C,) of the actuated joints: rad, rad/s or N·m; returns the first's source stamp, ns."""
        return self._publish(encode_command(self.robot, command, self._bus.now_ns()))

    def stop(self, command: np.ndarray) -> int:
        """Publish the stop behaviour's command (C,); a robot that stops by damping gets its brake with it."""
        return self._publish(encode_command(self.robot, command, self._bus.now_ns(), self.robot.stop == "damping"))

    def _publish(self, commands: Sequence[tuple[str, bytes]]) -> int:
        stamps = [self._commands[topic].publish(data) for topic, data in commands]
        return stamps[0]

    def close(self) -> None:
        """Leave the topics."""
        for _, reader in (*self._sensors, *((self._steering,) if self._steering else ())):
            reader.close()
        for publisher in self._commands.values():
            publisher.close()

    def wait(self, timeout_s: float) -> None:
        """Wait until every sensor and camera in use has told of every joint anew and somebody takes each command.

        Raises TimeoutError naming who is silent and what is missing, and SpecError for an image that is none.
        """
        end = time.monotonic() + timeout_s
        self.read()
        before = {name: sample for name, (sample, _) in self._decoded.items()}  # it may have waited to be read
        while True:
            readings = self.read()
            if self.refused:
                raise SpecError("; ".join(self.refused.values()))
            heard = {name for name, (sample, _) in self._decoded.items() if before.get(name) is not sample}
            topics = {s.name: heard_on(s) for s, _ in self._sensors}
            silent = [f"{name} on {self._bus.resolve(topic)} ({type})" for name, (topic, type) in topics.items()
                      if name not in heard]
            silent += self._absent(readings)
            silent += [f"no subscriber on {self._bus.resolve(self.robot.commands_of_policies(to.topic))} ({to.type})"
                       for to in self.robot.command_topics if not self._commands[to.topic].matched()]
            if not silent:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"robot {self.robot.robot}: nothing heard for {timeout_s:g} s: {'; '.join(silent)}")
            time.sleep(0.01)

    def _absent(self, readings: Readings) -> list[str]:
        """What the joint states do not tell."""
        sensor, lines = self.robot.joint_sensor, []
        for field in ("position", "velocity"):
            values = readings.values.get(f"{sensor.name}.{field}")
            absent = [] if values is None else [self.robot.names[i] for i in np.flatnonzero(np.isnan(values))]
            if absent:
                lines.append(f"no {field} of {', '.join(absent)} on {sensor.topic}")
                lines[-1] += " (`velocity: derived` makes speeds from positions)" if field == "velocity" else ""
        return lines


def decode(sensor: Sensor | Camera | Steering, data: bytes, robot: RobotSpec) -> Values:
    """One message as named arrays, joints in the spec's order by name; a joint that is absent reads NaN.

    Efforts that are absent altogether read 0, as ROS allows; derived speeds are left out, whatever the message says.
    Raises SpecError for a message that is none.
    """
    try:
        if isinstance(sensor, Camera):
            return {f"{sensor.name}.image": rgb(data, sensor.type)}
        message: Any = messages.decode(data, sensor.type)
    except ValueError as error:
        kind = "camera" if isinstance(sensor, Camera) else "sensor"
        raise SpecError(f"{kind} '{sensor.name}' on {heard_on(sensor)[0]}: {error}") from error
    if isinstance(sensor, Steering):
        twist = getattr(message, "twist", message)
        return {STEERING: np.array([twist.linear.x, twist.linear.y, twist.angular.z])}
    if sensor.type == JOINT_STATE:
        places = {name: i for i, name in enumerate(message.name)}
        index = [places.get(name, -1) for name in robot.names]
        return {f"{sensor.name}.{field}": _by_index(getattr(message, field), index, field)
                for field in ("position", "velocity", "effort")
                if field != "velocity" or sensor.velocity == "measured"}
    if sensor.type == IMU:
        return {f"{sensor.name}.{field}": _measured(message, field, axes) for field, axes in (
            ("orientation", "xyzw"), ("angular_velocity", "xyz"), ("linear_acceleration", "xyz"))}
    values: Values = {}
    if sensor.type == ODOMETRY:
        message, twist = message.pose, message.twist.twist
        values = {f"{sensor.name}.{field}_velocity": np.array([v.x, v.y, v.z])
                  for field, v in (("linear", twist.linear), ("angular", twist.angular))}
    p, q = message.pose.position, message.pose.orientation
    return values | {f"{sensor.name}.position": np.array([p.x, p.y, p.z]),
                     f"{sensor.name}.orientation": np.array([q.x, q.y, q.z, q.w])}


def rgb(data: bytes, type: str) -> np.ndarray:
    """(H, W, 3) uint8 rgb of an Image or of a CompressedImage with a JPEG. Raises ValueError for what is none."""
    message: Any = messages.decode(data, type)
    return messages.pixels(message) if type == IMAGE else image.from_jpeg(message.data)


def encode(sensor: Sensor | Camera | Steering, values: Values, stamp_ns: int, robot: RobotSpec) -> bytes:
    """CDR bytes of the message that `decode` reads, from named arrays with joints in the spec's order."""
    if isinstance(sensor, Camera):
        seen = values[f"{sensor.name}.image"]
        if sensor.type == IMAGE:
            return messages.encode(messages.image(stamp_ns, sensor.frame, seen))
        jpeg = image.to_jpeg(seen[..., ::-1], image.QUALITY)
        return messages.encode(messages.compressed_image(stamp_ns, sensor.frame, jpeg))
    if isinstance(sensor, Steering):
        stamp = stamp_ns if sensor.type.endswith("Stamped") else None
        return messages.encode(messages.twist(values[STEERING], stamp))
    if sensor.type == JOINT_STATE:
        fields = [values.get(f"{sensor.name}.{key}", ()) for key in ("position", "velocity", "effort")]
        return messages.encode(messages.joint_state(stamp_ns, list(robot.names), *fields))
    if sensor.type == IMU:
        fields = [values[f"{sensor.name}.{key}"] for key in ("orientation", "angular_velocity", "linear_acceleration")]
        return messages.encode(messages.imu(stamp_ns, sensor.frame, *fields))
    position, orientation = (values[f"{sensor.name}.{key}"] for key in ("position", "orientation"))
    if sensor.type == ODOMETRY:
        linear, angular = (values[f"{sensor.name}.{key}_velocity"] for key in ("linear", "angular"))
        return messages.encode(messages.odometry(stamp_ns, sensor.frame, position, orientation, linear, angular))
    return messages.encode(messages.pose_stamped(stamp_ns, sensor.frame, position, orientation))


@dataclass(frozen=True)
class Order:
    """A command message as a robot's controller reads it; arrays (n,) in the order of the topic's joints."""

    target: np.ndarray
    """rad, rad/s or N·m."""
    time_s: float = 0.0
    """Seconds until the target is to be reached; 0: at once."""
    gains: tuple[np.ndarray, np.ndarray] | None = None
    """kp and kd, where the message carries them."""


def encode_command(robot: RobotSpec, command: np.ndarray, stamp_ns: int = 0, braking: bool = False
                   ) -> list[tuple[str, bytes]]:
    """(topic, CDR bytes) of each command message for (C,) numbers in the order of the robot's actuated joints.

    `braking` lets motors that take gains go limp but for their brake, kp 0 and `stop_kd`.
    """
    at = {joint.name: i for i, joint in enumerate(robot.actuated)}
    return [(to.topic, _encode(robot, to, command[[at[name] for name in to.joints]], stamp_ns, braking))
            for to in robot.command_topics]


def decode_command(robot: RobotSpec, to: CommandTopic, data: bytes) -> Order:
    """A message of one of the robot's `command_topics`.

    Raises ValueError when it is of another size, names other joints or lacks what the robot's interface needs.
    """
    message: Any = messages.decode(data, to.type)
    if to.type == FLOATS:
        if len(message.data) != len(to.joints):
            raise ValueError(f"{to.topic}: {len(message.data)} numbers for {len(to.joints)} joints")
        return Order(np.array(message.data))
    names = list(message.name if to.type == JOINT_STATE else message.joint_names)
    if sorted(names) != sorted(to.joints):
        raise ValueError(f"{to.topic}: joints {names}, expected {list(to.joints)}")
    places, field = [names.index(name) for name in to.joints], str(robot.command.interface)
    if to.type == PD:
        rows = [dict(zip(v.interface_names, v.values, strict=True)) for v in message.interface_values]
        try:
            position, kp, kd = (np.array([rows[i][key] for i in places]) for key in ("position", "kp", "kd"))
        except (KeyError, IndexError) as error:
            raise ValueError(f"{to.topic}: a joint lacks {error}; each needs position, kp and kd") from error
        return Order(position, 0.0, (kp, kd))
    time_s = 0.0
    if to.type == TRAJECTORY:
        if len(message.points) != 1:
            raise ValueError(f"{to.topic}: {len(message.points)} points, expected one")
        message, field = message.points[0], "positions"
        time_s = message.time_from_start.sec + message.time_from_start.nanosec * 1e-9
    values = getattr(message, field)
    if len(values) != len(names):
        raise ValueError(f"{to.topic}: {len(values)} values in {field} for {len(names)} joints")
    return Order(values[places], time_s)


def _encode(robot: RobotSpec, to: CommandTopic, command: np.ndarray, stamp_ns: int, braking: bool) -> bytes:
    """CDR bytes of one command message, (n,) numbers in the order of the topic's joints."""
    if to.type == FLOATS:
        return messages.encode(messages.float64s(command))
    if to.type == TRAJECTORY:
        return messages.encode(messages.joint_trajectory(to.joints, command, times_s=to.time_from_start_s))
    if to.type == JOINT_STATE:
        return messages.encode(messages.joint_state(stamp_ns, to.joints, **{robot.command.interface: command}))
    joints = {joint.name: joint for joint in robot.actuated}
    gains = [(0.0, joints[name].brake) if braking else (joints[name].kp, joints[name].kd) for name in to.joints]
    return messages.encode(messages.joint_interfaces(
        stamp_ns, to.joints, ("position", "kp", "kd"), np.column_stack([command, np.array(gains)])))


def heard_on(sensor: Sensor | Camera | Steering) -> tuple[str, str]:
    """Topic and type of what is read of a sensor, of a camera or of who steers."""
    return sensor.image_topic if isinstance(sensor, Camera) else sensor.topic, sensor.type


def _check_size(camera: Camera, values: Values) -> None:
    """Raises SpecError for an image of another size than the robot file's."""
    height, width, _ = values[f"{camera.name}.image"].shape
    if (width, height) != (camera.width, camera.height):
        raise SpecError(f"camera '{camera.name}' on {camera.image_topic}: width and height: the robot file says "
                        f"{camera.width}x{camera.height}, its image is {width}x{height}")


def _measured(message: Any, field: str, axes: str) -> np.ndarray:
    """A quantity of an Imu message; NaN where a covariance of -1 says that it is not measured (REP 145)."""
    if getattr(message, f"{field}_covariance")[0] == -1:
        return np.full(len(axes), np.nan)
    value = getattr(message, field)
    return np.array([getattr(value, axis) for axis in axes])


def _by_index(values: np.ndarray, index: list[int], field: str) -> np.ndarray:
    """Values (J,) float64 in the spec's order. Efforts may be absent altogether, as ROS allows: they read 0."""
    if len(values) == 0 and field == "effort":
        return np.zeros(len(index))
    return np.array([values[i] if 0 <= i < len(values) else np.nan for i in index])
