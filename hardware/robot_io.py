"""Messages of sensors and cameras → readings (stage 1), command → message (stage 6), both by the robot's spec."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from hardware import messages
from hardware.bus import COMMAND, SENSOR, Bus, Reader, Sample
from robot_rl import image
from robot_rl.observe import Readings, Values
from robot_rl.spec import IMAGE, JOINT_STATE, Camera, RobotSpec, Sensor, SpecError


class RobotIO:
    """A robot's state topics, the cameras in use and its command topic on a bus."""

    def __init__(self, robot: RobotSpec, bus: Bus, cameras: Sequence[Camera] = ()) -> None:
        self.robot = robot
        inputs: tuple[Sensor | Camera, ...] = (*robot.sensors, *cameras)
        self._sensors: list[tuple[Sensor | Camera, Reader]] = [
            (s, bus.reader(*heard_on(s), SENSOR)) for s in inputs]
        self._command = bus.publisher(robot.commands_of_policies(robot.command.topic), robot.command.type, COMMAND)
        self._decoded: dict[str, tuple[Sample, Values]] = {}
        self._taken: dict[str, tuple[int, int]] = {}  # by camera: stamp and arrival of the image that it shows
        self.refused: dict[str, str] = {}
        """Why the newest image of a camera is none, by the camera's name."""

    def read(self) -> Readings:
        """The newest message of every sensor and camera in use, decoded once; what has not spoken is absent.

        So is a camera whose newest image is none, which `refused` then tells of: the episode stops as for a silent one.
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
        return readings

    def send(self, command: np.ndarray) -> int:
        """Publish a command (C,) of the actuated joints: rad, rad/s or N·m; returns its source stamp, ns."""
        return self._command.publish(encode_command(self.robot, command))

    def wait(self, timeout_s: float) -> None:
        """Wait until every sensor and camera in use has spoken and somebody takes commands.

        Raises TimeoutError naming who is silent, and SpecError for an image that is none.
        """
        end = time.monotonic() + timeout_s
        while True:
            heard = self.read().stamps
            if self.refused:
                raise SpecError("; ".join(self.refused.values()))
            silent = ["{} on {} ({})".format(s.name, *heard_on(s)) for s, _ in self._sensors if s.name not in heard]
            if not self._command.matched():
                topic = self.robot.commands_of_policies(self.robot.command.topic)
                silent.append(f"no subscriber on {topic} ({self.robot.command.type})")
            if not silent:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"robot {self.robot.robot}: nothing heard for {timeout_s:g} s: {'; '.join(silent)}")
            time.sleep(0.01)


def decode(sensor: Sensor | Camera, data: bytes, robot: RobotSpec) -> Values:
    """One message as named arrays, joints in the spec's order by name; a joint that is absent reads NaN.

    Raises SpecError for an image that is not one.
    """
    if isinstance(sensor, Camera):
        try:
            return {f"{sensor.name}.image": rgb(data, sensor.type)}
        except ValueError as error:
            raise SpecError(f"camera '{sensor.name}' on {sensor.image_topic}: {error}") from error
    message: Any = messages.decode(data, sensor.type)
    if sensor.type == JOINT_STATE:
        places = {name: i for i, name in enumerate(message.name)}
        index = [places.get(name, -1) for name in robot.names]
        return {f"{sensor.name}.{field}": _by_index(getattr(message, field), index, field)
                for field in ("position", "velocity", "effort")}
    p, q = message.pose.position, message.pose.orientation
    return {f"{sensor.name}.position": np.array([p.x, p.y, p.z]),
            f"{sensor.name}.orientation": np.array([q.x, q.y, q.z, q.w])}


def rgb(data: bytes, type: str) -> np.ndarray:
    """(H, W, 3) uint8 rgb of an Image or of a CompressedImage with a JPEG. Raises ValueError for what is none."""
    try:
        message: Any = messages.decode(data, type)
    except Exception as error:  # outside bytes: whatever the decoders make of them, it is no image
        raise ValueError(f"{len(data)} bytes are no {type}") from error
    return messages.pixels(message) if type == IMAGE else image.from_jpeg(message.data)


def encode(sensor: Sensor | Camera, values: Values, stamp_ns: int, robot: RobotSpec) -> bytes:
    """CDR bytes of the message that `decode` reads, from named arrays with joints in the spec's order."""
    if isinstance(sensor, Camera):
        seen = values[f"{sensor.name}.image"]
        if sensor.type == IMAGE:
            return messages.encode(messages.image(stamp_ns, sensor.frame, seen))
        jpeg = image.to_jpeg(seen[..., ::-1], image.QUALITY)
        return messages.encode(messages.compressed_image(stamp_ns, sensor.frame, jpeg))
    if sensor.type == JOINT_STATE:
        fields = [values[f"{sensor.name}.{key}"] for key in ("position", "velocity", "effort")]
        return messages.encode(messages.joint_state(stamp_ns, list(robot.names), *fields))
    pose = [values[f"{sensor.name}.{key}"] for key in ("position", "orientation")]
    return messages.encode(messages.pose_stamped(stamp_ns, sensor.frame, *pose))


def encode_command(robot: RobotSpec, command: np.ndarray) -> bytes:
    """CDR bytes of the robot's command message for (C,) numbers in the order of its actuated joints."""
    kind, interface = robot.command.type, robot.command.interface
    if kind == "std_msgs/msg/Float64MultiArray":
        return messages.encode(messages.float64s(command))
    names = [j.name for j in robot.actuated]
    empty = np.zeros(0)
    position, velocity, effort = (command if key == interface else empty for key in ("position", "velocity", "effort"))
    if kind == JOINT_STATE:
        return messages.encode(messages.joint_state(time.time_ns(), names, position, velocity, effort))
    return messages.encode(messages.joint_trajectory(names, position, velocity, effort))


def decode_command(robot: RobotSpec, data: bytes) -> np.ndarray:
    """The (C,) numbers of a command message, in the order of the robot's actuated joints.

    Raises ValueError when the message is of another size or names other joints.
    """
    message: Any = messages.decode(data, robot.command.type)
    wanted = [j.name for j in robot.actuated]
    if robot.command.type == "std_msgs/msg/Float64MultiArray":
        if len(message.data) != len(wanted):
            raise ValueError(f"{robot.command.topic}: {len(message.data)} numbers for {len(wanted)} joints")
        return np.array(message.data)
    names = message.name if robot.command.type == JOINT_STATE else message.joint_names
    if sorted(names) != sorted(wanted):
        raise ValueError(f"{robot.command.topic}: joints {list(names)}, expected {wanted}")
    point = message if robot.command.type == JOINT_STATE else message.points[0]
    field: str = robot.command.interface
    if robot.command.type != JOINT_STATE:
        field = {"position": "positions", "velocity": "velocities"}.get(field, field)
    values = getattr(point, field)
    return np.array([values[list(names).index(name)] for name in wanted])


def heard_on(sensor: Sensor | Camera) -> tuple[str, str]:
    """Topic and type of what is read of a sensor or a camera."""
    return sensor.image_topic if isinstance(sensor, Camera) else sensor.topic, sensor.type


def _check_size(camera: Camera, values: Values) -> None:
    """Raises SpecError for an image of another size than the robot file's."""
    height, width, _ = values[f"{camera.name}.image"].shape
    if (width, height) != (camera.width, camera.height):
        raise SpecError(f"camera '{camera.name}' on {camera.image_topic}: width and height: the robot file says "
                        f"{camera.width}x{camera.height}, its image is {width}x{height}")


def _by_index(values: np.ndarray, index: list[int], field: str) -> np.ndarray:
    """Values (J,) float64 in the spec's order. Efforts may be absent altogether, as ROS allows: they read 0."""
    if len(values) == 0 and field == "effort":
        return np.zeros(len(index))
    return np.array([values[i] if 0 <= i < len(values) else np.nan for i in index])
