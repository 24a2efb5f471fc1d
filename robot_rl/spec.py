"""The contract: what a robot is, what a task adds, and the JSON that travels inside every exported policy.

SI units and ROS frames (REP 103) throughout; quaternions are xyzw. Every class here is plain, frozen data.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import yaml

from robot_rl.stop import actions

SCHEMA = 1

POSE = "geometry_msgs/msg/PoseStamped"
JOINT_STATE = "sensor_msgs/msg/JointState"
IMU = "sensor_msgs/msg/Imu"
ODOMETRY = "nav_msgs/msg/Odometry"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
TWISTS = ("geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped")
EDGE = 1e-6  # m, rad: how far beyond their bounds goals may lie
GOAL = "goal.position"  # the source of a term that reads the goal
STEERING = "steering"  # the source of a term that reads the velocity that is asked for
CLOCK = "clock"  # the source of a term that reads how long the episode has been going on
SUPERVISOR_STOPPED, SUPERVISOR_STATE = "supervisor/stopped", "supervisor/state"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
PD = "control_msgs/msg/DynamicJointState"
COMMAND_TYPES = ("std_msgs/msg/Float64MultiArray", JOINT_STATE, TRAJECTORY, PD)


Kind = TypeVar("Kind")


class SpecError(ValueError):
    """A file or a contract that cannot be used; the message names the file, the key and both values."""


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frozen, strictly typed data: unknown keys and wrong types are refused when it is read."""


class Joint(Data, kw_only=True):
    """One joint. Angles in rad (m for a slide), speed in rad/s, effort in N·m, kp in N·m/rad, kd in N·m·s/rad."""

    name: str
    lower: float | None = None
    """Lower position limit; None with `upper` None means that the joint turns without end."""
    upper: float | None = None
    velocity: float
    effort: float
    acceleration: float | None = None
    default: float = 0.0
    """Where the joint rests when an episode starts."""
    actuated: bool = True
    kp: float = 0.0
    kd: float = 0.0
    stop_kd: float | None = None
    """Gain of the brake that `stop: damping` puts on, N·m·s/rad; None: `kd`."""
    positive: str = ""
    """Which way is positive, for the person who calibrates it."""

    @property
    def brake(self) -> float:
        """kd of the damping stop, N·m·s/rad."""
        return self.kd if self.stop_kd is None else self.stop_kd

    def __post_init__(self) -> None:
        if (self.lower is None) != (self.upper is None):
            raise ValueError(f"joint {self.name}: lower={self.lower} and upper={self.upper}: give both or neither")
        if self.lower is not None and self.upper is not None:
            if not self.lower < self.upper:
                raise ValueError(f"joint {self.name}: lower={self.lower} is not below upper={self.upper}")
            if not self.lower <= self.default <= self.upper:
                raise ValueError(f"joint {self.name}: default={self.default} outside [{self.lower}, {self.upper}]")
        for key in ("velocity", "effort"):
            if not getattr(self, key) > 0:
                raise ValueError(f"joint {self.name}: {key}={getattr(self, key)} must be above 0")


class CommandTopic(Data, kw_only=True):
    """A topic that commands some joints.

    Float64MultiArray (a forward controller) holds one number for each of `joints`, in this order; JointState and
    JointTrajectory (a joint trajectory controller) name them; DynamicJointState carries `position`, `kp` and `kd` of
    each, for motors that close the loop themselves.
    """

    topic: str
    type: str = COMMAND_TYPES[0]
    joints: tuple[str, ...] = ()
    """In the order of the controller's own list; empty in `command`: the rest, in the order of the robot file."""
    time_from_start_s: float = 0.0
    """JointTrajectory: when the point is to be reached. Until then the controller moves in a straight line from where
    the joint is; 0 makes it jump there. One to two decisions is usual."""

    def __post_init__(self) -> None:
        if self.type not in COMMAND_TYPES:
            raise ValueError(f"{self.topic}: type={self.type}: known are {', '.join(COMMAND_TYPES)}")
        if self.time_from_start_s < 0 or (self.time_from_start_s and self.type != TRAJECTORY):
            raise ValueError(f"{self.topic}: time_from_start_s={self.time_from_start_s} with type={self.type}: "
                             f"at least 0, and for {TRAJECTORY} only")
        _distinct(f"{self.topic}: joints", list(self.joints))


class CommandInterface(CommandTopic, kw_only=True):
    """How the robot is moved: one number for each actuated joint, on one topic or, with `groups`, on several."""

    interface: Literal["position", "velocity", "effort"]
    groups: tuple[CommandTopic, ...] = ()
    """Joints on topics of their own, such as a gripper's; `topic` is for those that no group names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _distinct("command topics", [self.topic] + [g.topic for g in self.groups])
        for group in self.groups:
            if not group.joints:
                raise ValueError(f"command.groups: {group.topic}: joints=[]: name those that it commands")
        for one in (self, *self.groups):
            if one.type in (TRAJECTORY, PD) and self.interface != "position":
                # a trajectory controller refuses points without positions, and an end at speed
                raise ValueError(f"{one.topic}: type={one.type} with command.interface={self.interface}: "
                                 "it takes positions")


class Sensor(Data, kw_only=True):
    """A state topic: JointState (by joint name), PoseStamped, Imu (its orientation in a world with z up), Odometry."""

    name: str
    topic: str
    type: str
    rate_hz: float
    stale_after_s: float
    frame: str = "base_link"
    """Of an Odometry its child frame, in which its velocities are."""
    site: str | None = None
    """The MJCF site whose pose or motion the simulated robot publishes here."""
    velocity: Literal["measured", "derived"] = "measured"
    """JointState: speeds are in the message, or are made from the positions of two decisions, in training too."""

    def __post_init__(self) -> None:
        if self.type not in (known := (JOINT_STATE, POSE, IMU, ODOMETRY)):
            raise ValueError(f"sensor {self.name}: type={self.type}: known are {', '.join(known)}")
        if self.velocity == "derived" and self.type != JOINT_STATE:
            raise ValueError(f"sensor {self.name}: velocity=derived with type={self.type}: {JOINT_STATE} only")


class Camera(Data, kw_only=True):
    """An image topic (rgb8 or bgr8) with `camera_info` beside it; size in pixels."""

    name: str
    topic: str
    """Of the raw images; JPEG lies on `<topic>/compressed`, as image_transport has it."""
    width: int
    height: int
    rate_hz: float
    frame: str
    stale_after_s: float = 0.5
    transport: Literal["raw", "compressed"] = "raw"
    """Which of the two topics is read and recorded."""
    delay_s: float = 0.0
    """Measured, from the middle of the exposure to the header's stamp; ages are reckoned from the former."""
    exposure_s: float | Literal["auto"] | None = None
    """What a device is set to, s; None leaves it as it is."""
    pixel_format: str | None = None
    """Four letters, such as MJPG, that a device is set to; None leaves it as it is."""
    view: str | None = None
    """The MJCF camera through which the simulated robot films; None: the one of this name."""

    def __post_init__(self) -> None:
        for key in ("width", "height", "rate_hz", "stale_after_s"):
            if not getattr(self, key) > 0:
                raise ValueError(f"camera {self.name}: {key}={getattr(self, key)} must be above 0")
        if not 0 <= self.delay_s < self.stale_after_s:
            raise ValueError(f"camera {self.name}: delay_s={self.delay_s} is not within 0 and "
                             f"stale_after_s={self.stale_after_s}, so every image would be stale")
        if isinstance(self.exposure_s, float | int) and not self.exposure_s > 0:
            raise ValueError(f"camera {self.name}: exposure_s={self.exposure_s} must be above 0, or auto")
        if self.pixel_format is not None and len(self.pixel_format) != 4:
            raise ValueError(f"camera {self.name}: pixel_format={self.pixel_format} must have four letters")

    @property
    def type(self) -> str:
        """Of the messages that are read."""
        return IMAGE if self.transport == "raw" else COMPRESSED

    @property
    def image_topic(self) -> str:
        """Where they are."""
        return self.topic if self.transport == "raw" else f"{self.topic}/compressed"

    @property
    def info_topic(self) -> str:
        """`camera_info`, beside the raw images."""
        return self.topic.removesuffix(self.topic.rpartition("/")[2]) + "camera_info"


class Workspace(Data, kw_only=True):
    """A box, in m, that the position of one pose sensor must stay in."""

    sensor: str
    lower: tuple[float, float, float]
    upper: tuple[float, float, float]


class Watchdog(Data, kw_only=True):
    """Who behind us stops the robot when commands stop: its driver, a controller, or nobody.

    A forward controller holds its last command for ever: with nobody, speeds and efforts are not armed at all, and
    positions only when the operator says so.
    """

    kind: Literal["driver", "controller", "none"] = "none"
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if (self.timeout_s is None) != (self.kind == "none") or not (self.timeout_s is None or self.timeout_s > 0):
            raise ValueError(f"watchdog.kind={self.kind}, timeout_s={self.timeout_s}: a driver or a controller has a "
                             "timeout above 0, none has none")


class Supervision(Data, kw_only=True):
    """How the supervisor process watches; see docs/safety.md."""

    heartbeat_s: float = 0.08
    """A policy in control that sends no command for so long is stopped."""
    deadman: str | None = None
    """Topic of a std_msgs/Bool that must be true, and be heard again within `deadman_s`."""
    deadman_s: float = 0.25
    tool_speed: float | None = None
    """m/s that a command may move the guarded frame with."""
    margin: float | None = None
    """m that commands keep links from each other and from the base; None: nobody looks."""
    actions: dict[str, str] = {}
    """What flags do, where that is more than the default."""

    def __post_init__(self) -> None:
        for key in ("heartbeat_s", "deadman_s", "tool_speed"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"supervisor.{key}={value} must be above 0")
        if self.margin is not None and not self.margin >= 0:
            raise ValueError(f"supervisor.margin={self.margin} must be at least 0")
        try:
            actions(self.actions)
        except ValueError as error:
            raise ValueError(f"supervisor.{error}") from error


class Placement(Data, kw_only=True):
    """Where a loose object is put before an episode: uniformly within a part of a ring about the base's z axis.

    Bounds are (radius m, azimuth rad, height m of its origin); `yaw` (rad) turns it about the vertical.
    """

    object: str
    """The MJCF body, which has a free joint; the base of a robot that stands on the ground is one too."""
    lower: tuple[float, float, float]
    upper: tuple[float, float, float]
    yaw: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if any(a > b for a, b in zip((*self.lower, self.yaw[0]), (*self.upper, self.yaw[1]), strict=True)):
            raise ValueError(f"object {self.object}: lower={self.lower}, upper={self.upper}, yaw={self.yaw}: "
                             "every lower bound must be at most the upper one")

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) m and orientation (4,) xyzw, in the base frame."""
        radius, azimuth, height = rng.uniform(self.lower, self.upper)
        half = rng.uniform(*self.yaw) / 2
        return (np.array([radius * np.cos(azimuth), radius * np.sin(azimuth), height]),
                np.array([0.0, 0.0, np.sin(half), np.cos(half)]))


class RobotSpec(Data, kw_only=True):
    """A robot as its own topics show it."""

    robot: str
    mjcf: str
    """File beside the robot file."""
    joints: tuple[Joint, ...]
    command: CommandInterface
    sensors: tuple[Sensor, ...]
    cameras: tuple[Camera, ...] = ()
    objects: tuple[Placement, ...] = ()
    """What the reset puts before the robot; a simulated one does it itself, a real one has somebody do it."""
    workspace: Workspace | None = None
    stop: Literal["hold", "zero", "damping"]
    """Stop behaviour: hold the measured pose, send zeros, or brake against the measured velocity."""
    stop_topic: str = "safety/protective_stop"
    watchdog: Watchdog = Watchdog()
    supervisor: Supervision = Supervision()
    supervised: bool = False
    """Whether policies send their commands to the supervisor instead of to the robot."""
    reset_service: str = "reset"
    reset_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        names = [j.name for j in self.joints]
        _distinct("joints", names)
        _distinct("sensors and cameras", [s.name for s in self.sensors] + [c.name for c in self.cameras])
        _distinct("objects", [o.object for o in self.objects])
        if not self.actuated:
            raise ValueError("joints: none is actuated, so there is nothing to command")
        commanded = [name for topic in self.command_topics for name in topic.joints]
        _distinct("command joints", commanded)
        idle = [topic.topic for topic in self.command_topics if not topic.joints]
        if idle:
            raise ValueError(f"command.topic={idle[0]}: groups name every actuated joint, so it has none to command")
        if sorted(commanded) != sorted(j.name for j in self.actuated):
            raise ValueError(f"command: joints {', '.join(commanded)}; the actuated joints are "
                             f"{', '.join(j.name for j in self.actuated)}")
        if sum(s.type == JOINT_STATE for s in self.sensors) != 1:
            raise ValueError(f"sensors: exactly one {JOINT_STATE} is needed, found "
                             f"{[s.name for s in self.sensors if s.type == JOINT_STATE]}")
        kinds = {topic.type for topic in self.command_topics}
        for joint in self.actuated if PD in kinds else ():
            if joint.kp <= 0 or joint.kd <= 0:
                raise ValueError(f"joint {joint.name}: kp={joint.kp}, kd={joint.kd}: a command of type {PD} carries "
                                 "them, so both must be above 0")
        suits = {"position": ("hold", "damping") if kinds == {PD} else ("hold",), "velocity": ("zero",),
                 "effort": ("zero", "damping")}[self.command.interface]
        if self.stop not in suits:
            raise ValueError(f"stop={self.stop} does not suit command.interface={self.command.interface} on "
                             f"{', '.join(sorted(kinds))}: it takes {' or '.join(suits)}")
        if self.workspace is not None:
            poses = [s.name for s in self.sensors if s.type == POSE]
            if self.workspace.sensor not in poses:
                raise ValueError(f"workspace.sensor={self.workspace.sensor}: the pose sensors are {poses}")

    @property
    def names(self) -> tuple[str, ...]:
        """(J,) joint names."""
        return tuple(j.name for j in self.joints)

    @property
    def actuated(self) -> tuple[Joint, ...]:
        """The commanded joints (C,), in order; the command vector has this order."""
        return tuple(j for j in self.joints if j.actuated)

    @property
    def actuated_index(self) -> np.ndarray:
        """(C,) int: where each commanded joint stands among all joints."""
        return np.array([i for i, j in enumerate(self.joints) if j.actuated], dtype=np.intp)

    @property
    def stop_topics(self) -> tuple[str, ...]:
        """Topics of std_msgs/Bool that stop a policy while they say true."""
        return (self.stop_topic, SUPERVISOR_STOPPED) if self.supervised else (self.stop_topic,)

    def commands_of_policies(self, topic: str) -> str:
        """Where a policy sends what is to reach a command topic."""
        return f"{'/' * topic.startswith('/')}supervisor/{topic.lstrip('/')}" if self.supervised else topic

    @property
    def command_topics(self) -> tuple[CommandTopic, ...]:
        """Every topic that commands joints, with its joints named, `command` itself first."""
        main, groups = self.command, self.command.groups
        grouped = {name for group in groups for name in group.joints}
        rest = main.joints or tuple(j.name for j in self.actuated if j.name not in grouped)
        first = CommandTopic(topic=main.topic, type=main.type, joints=rest, time_from_start_s=main.time_from_start_s)
        return first, *groups

    @property
    def joint_sensor(self) -> Sensor:
        """The JointState topic."""
        return next(s for s in self.sensors if s.type == JOINT_STATE)


class Term(Data, kw_only=True):
    """One quantity: `scale * transform(source - minus)`, of the chosen joints, with its newest `history` values.

    Sources: `<sensor>.position|velocity|effort` of the JointState, `<sensor>.position|orientation` of a pose,
    of an IMU `<sensor>.orientation|angular_velocity|linear_acceleration`, of an Odometry `<sensor>.linear_velocity` and
    `.angular_velocity` in its child frame, `.position` and `.orientation` (which drift); `goal.position`, `steering` (x
    and y m/s, z rad/s), `command` (last sent, by joint), `action` (last sent, in [-1, 1]), `hold` (s), `clock` (s, of
    the decisions since the episode began).
    History is oldest first and is filled with the first value of an episode.
    """

    name: str
    source: str
    minus: str | None = None
    joints: tuple[str, ...] = ()
    """For joint-valued sources: which, in this order; empty means all."""
    axes: tuple[Literal["x", "y", "z"], ...] = ()
    """For positions, velocities and the like: which coordinates, in this order; empty means all."""
    transform: Literal["identity", "sin_cos", "cos", "norm", "square", "change", "down"] = "identity"
    """`change` is the difference to the previous step (zero on the first); `down` is where gravity points, a unit
    vector in the frame of an orientation."""
    period_s: float = 0.0
    """Of `clock`: it is an angle that makes a turn, 2 pi rad, in this time, as for a gait; 0: it is in seconds."""
    scale: float = 1.0
    history: int = 1
    unit: str = ""
    size: int = 0
    """Numbers that this term adds to the observation; filled in when the contract is made."""


class Reward(Data, kw_only=True):
    """`weight * shape(term)`, summed over the term's numbers.

    `value` is the number itself; `tolerance` is 1 inside [lower, upper] and falls as a Gaussian to 0.1 at `margin`
    outside it (as dm_control's rewards do); `miss` is 1 - tolerance, a cost that ends with the episode.
    """

    term: Term
    weight: float
    shape: Literal["value", "tolerance", "miss"] = "value"
    lower: float = 0.0
    upper: float = 0.0
    margin: float = 0.0


class Bound(Data, kw_only=True):
    """A term (one number) below or above a bound."""

    term: Term
    below: float | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        if (self.below is None) == (self.above is None):
            raise ValueError(f"bound of {self.term.name}: below={self.below}, above={self.above}: give exactly one")

    def holds(self, x: float) -> bool:
        """Whether a number is on the right side."""
        return x < self.below if self.below is not None else x > (self.above or 0.0)


class Failure(Bound, kw_only=True):
    """The episode ends (terminated) as soon as the bound holds, as after a fall; the robot then stops."""


class Success(Bound, kw_only=True):
    """The bound holds for `hold_s` without a break."""

    hold_s: float
    ends_episode: bool
    """True: the episode ends there (terminated). False: it must hold when the time is up."""
    bonus: float = 0.0
    """Reward paid once when the episode ends in success."""


class Goal(Data, kw_only=True):
    """A goal position, drawn uniformly from a part of a cylinder about the base's z axis and sent as a PoseStamped.

    Bounds are (radius m, azimuth rad, height m).
    """

    topic: str = "goal"
    frame: str = "base_link"
    lower: tuple[float, float, float]
    upper: tuple[float, float, float]

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """A goal position (3,) float64, m."""
        radius, azimuth, height = rng.uniform(self.lower, self.upper)
        return np.array([radius * np.cos(azimuth), radius * np.sin(azimuth), height])

    def check(self, position: np.ndarray, frame: str) -> None:
        """Raises SpecError for a position (3,) m in another frame, or outside of where the policy's goals were."""
        if frame != self.frame:
            raise SpecError(f"goal in frame '{frame}', the policy's are in '{self.frame}'")
        x, y, height = (float(value) for value in position)
        place, low, high = (np.hypot(x, y), np.arctan2(y, x), height), np.array(self.lower), np.array(self.upper)
        over = np.array(place) - low
        over[1] = (over[1] + EDGE) % (2 * np.pi) - EDGE
        if not (np.isfinite(over).all() and np.all(over >= -EDGE) and np.all(over <= high - low + EDGE)):
            shown = ", ".join(f"{value:.4g}" for value in place)
            raise SpecError(f"goal at ({shown}) (radius m, azimuth rad, height m), the policy's lie from {self.lower} "
                            f"to {self.upper}")


class Steering(Data, kw_only=True):
    """A velocity that is asked for: forward and left in m/s, turning left in rad/s, as (x, y, z) of `steering`.

    In training one is drawn uniformly between the bounds every `redraw_s`, and is none at all with the chance `still`;
    on the robot it is the newest message of its topic, and none when that is older than `stale_after_s` or never came.
    """

    topic: str = "cmd_vel"
    type: str = TWISTS[0]
    stale_after_s: float = 0.5
    lower: tuple[float, float, float]
    upper: tuple[float, float, float]
    redraw_s: float = 5.0
    still: float = 0.1

    @property
    def name(self) -> str:
        """Its place among what is read at each step."""
        return STEERING

    def __post_init__(self) -> None:
        if self.type not in TWISTS:
            raise ValueError(f"steering.type={self.type}: known are {', '.join(TWISTS)}")
        if any(a > b for a, b in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f"steering: lower={self.lower} is above upper={self.upper}")
        if not (self.redraw_s > 0 and self.stale_after_s > 0 and 0 <= self.still <= 1):
            raise ValueError(f"steering: redraw_s={self.redraw_s}, stale_after_s={self.stale_after_s}, "
                             f"still={self.still}: above 0, above 0, from 0 to 1")

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """A velocity (3,) to ask for."""
        drawn = rng.uniform(self.lower, self.upper)
        return np.zeros(3) if rng.random() < self.still else drawn

    def within(self, asked: np.ndarray) -> np.ndarray:
        """The velocity (3,) that the policy is told: what it never met in training is cut off; none if not finite."""
        return np.clip(asked, self.lower, self.upper) if np.isfinite(asked).all() else np.zeros(3)


class ActionSpec(Data, kw_only=True):
    """How an action (A,) in [-1, 1] becomes a command.

    absolute: offset + scale * action; delta: last command + scale * action. Then a first-order filter,
    `last + filter * (target - last)`; 1 means none. Actuated joints outside `joints` keep their default.
    """

    kind: Literal["absolute", "delta"]
    joints: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...] = ()
    filter: float = 1.0

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.joints):
            raise ValueError(f"action.scale has {len(self.scale)} numbers for {len(self.joints)} joints")
        if any(s <= 0 for s in self.scale):
            raise ValueError(f"action.scale={self.scale}: every number must be above 0")
        if self.offset and len(self.offset) != len(self.joints):
            raise ValueError(f"action.offset has {len(self.offset)} numbers for {len(self.joints)} joints")
        if not 0 < self.filter <= 1:
            raise ValueError(f"action.filter={self.filter} is outside (0, 1]")


class Vision(Data, kw_only=True):
    """What a policy sees: the newest `stack` images of each camera, one a decision, `height` x `width` pixels each.

    Images are cut to this shape about their middle, then shrunk. The first one of an episode fills the stack.
    """

    cameras: tuple[str, ...]
    height: int = 64
    width: int = 64
    stack: int = 1

    def __post_init__(self) -> None:
        _distinct("vision.cameras", list(self.cameras))
        if not self.cameras:
            raise ValueError("vision.cameras=[]: name at least one camera")
        for key in ("height", "width", "stack"):
            if getattr(self, key) < 1:
                raise ValueError(f"vision.{key}={getattr(self, key)} must be at least 1")

    @property
    def frame(self) -> tuple[int, int, int]:
        """(C, H, W) of one decision: red, green and blue of each camera in turn."""
        return 3 * len(self.cameras), self.height, self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """(stack * C, H, W) of an observation's frames, oldest first."""
        return self.stack * self.frame[0], self.height, self.width


class PolicySpec(Data, kw_only=True):
    """Everything that a policy needs to run anywhere: the robot, the observation, the action, reward and success."""

    schema: int = SCHEMA
    task: str
    rate_hz: float
    time_limit_s: float
    observation_size: int
    action_size: int
    robot: RobotSpec | None = None
    """None for policies of simulator-only suites, which can be evaluated but not deployed."""
    observations: tuple[Term, ...] = ()
    action: ActionSpec | None = None
    rewards: tuple[Reward, ...] = ()
    success: Success | None = None
    failure: Failure | None = None
    goal: Goal | None = None
    steering: Steering | None = None
    vision: Vision | None = None
    """None for policies that see numbers only."""
    trained: dict[str, Any] = {}
    """Recipe, its arguments, seed, steps and code version."""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema={self.schema}; this version reads schema {SCHEMA}")

    @property
    def inputs(self) -> tuple[Sensor | Camera | Steering, ...]:
        """What is read at each step: every sensor of the robot, the cameras in use, then the velocity asked for."""
        steering = (self.steering,) if self.steering else ()
        return (*(self.robot.sensors if self.robot else ()), *self.cameras, *steering)

    @property
    def frames(self) -> tuple[int, int, int] | None:
        """(C, H, W) of what the policy sees; None where it sees numbers only."""
        return self.vision.shape if self.vision else None

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The robot's cameras that the policy sees through, in the order of its frames."""
        if self.robot is None or self.vision is None:
            return ()
        known = {camera.name: camera for camera in self.robot.cameras}
        return tuple(known[name] for name in self.vision.cameras)

    def to_json(self) -> str:
        """The contract as JSON, floats in full."""
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_json(text: str | bytes, where: str = "contract") -> PolicySpec:
        """Read a contract; `where` names the file in errors. Raises SpecError."""
        try:
            return msgspec.json.decode(text, type=PolicySpec)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SpecError(f"{where}: {error}") from error

    def on(self, robot: RobotSpec, where: str = "policy") -> PolicySpec:
        """This contract with `robot`'s topics and limits, once it is the robot that the policy knows.

        Joints are matched by name; interface, limits, sensors and the cameras in use must agree. Raises SpecError
        naming both sides.
        """
        if self.robot is None:
            raise SpecError(f"{where}: trained on {self.task}, which declares no robot; it cannot run on {robot.robot}")
        differences = _differences(self.robot, robot) + _blind_spots(self.vision, robot)
        if differences:
            raise SpecError(f"{where} was made for robot '{self.robot.robot}' and does not fit '{robot.robot}':\n  "
                            + "\n  ".join(differences))
        order = {j.name: j for j in robot.joints}
        ours = tuple(order[name] for name in self.robot.names)
        # the order on the wire is the robot's, whatever the policy's
        command = msgspec.structs.replace(robot.command, joints=robot.command_topics[0].joints)
        return msgspec.structs.replace(self, robot=msgspec.structs.replace(robot, joints=ours, command=command))


def policy_spec(robot: RobotSpec, *, task: str, rate_hz: float, time_limit_s: float, observations: tuple[Term, ...],
                action: ActionSpec, rewards: tuple[Reward, ...], success: Success | None = None,
                failure: Failure | None = None, goal: Goal | None = None, steering: Steering | None = None,
                vision: Vision | None = None) -> PolicySpec:
    """Join a robot and a task into a contract: sizes are filled in and every name is checked. Raises SpecError."""
    actuated = {j.name for j in robot.actuated}
    for name in action.joints:
        if name not in actuated:
            raise SpecError(f"task {task}: action joint '{name}' is not an actuated joint of {robot.robot} "
                            f"({', '.join(sorted(actuated))})")
    for fault in _blind_spots(vision, robot):
        raise SpecError(f"task {task}: {fault}")
    size = len(action.joints)
    asked = ({GOAL: 3} if goal else {}) | ({STEERING: 3} if steering else {})
    filled = tuple(msgspec.structs.replace(t, size=term_size(t, robot, size, asked) * t.history) for t in observations)
    bounds = [bound.term for bound in (success, failure) if bound]
    for term in [r.term for r in rewards] + bounds:
        term_size(term, robot, size, asked)
    for bound in bounds:
        if (count := term_size(bound, robot, size, asked)) != 1:
            raise SpecError(f"task {task}: term {bound.name} has {count} numbers; success and failure judge one")
    return PolicySpec(task=task, rate_hz=rate_hz, time_limit_s=time_limit_s, robot=robot, observations=filled,
                      observation_size=sum(t.size for t in filled), action=action, action_size=size,
                      rewards=rewards, success=success, failure=failure, goal=goal, steering=steering, vision=vision)


def term_size(term: Term, robot: RobotSpec, actions: int, asked: dict[str, int]) -> int:
    """How many numbers one step of a term has; `asked` are the sizes of what the task asks for, goal or steering.

    Raises SpecError for a source that the robot does not offer.
    """
    sizes = {"action": actions, "hold": 1, CLOCK: 1, "command": len(robot.actuated)} | asked
    spatial = list(asked)
    for sensor in robot.sensors:
        vectors = list[str]()
        if sensor.type == JOINT_STATE:
            sizes |= {f"{sensor.name}.{field}": len(robot.joints) for field in ("position", "velocity", "effort")}
        elif sensor.type == IMU:
            vectors = [f"{sensor.name}.angular_velocity", f"{sensor.name}.linear_acceleration"]
        else:
            vectors = [f"{sensor.name}.position"]
            if sensor.type == ODOMETRY:
                vectors += [f"{sensor.name}.linear_velocity", f"{sensor.name}.angular_velocity"]
        if vectors:
            sizes |= {f"{sensor.name}.orientation": 4} | dict.fromkeys(vectors, 3)
            spatial += vectors
    for source in filter(None, (term.source, term.minus)):
        if source not in sizes:
            raise SpecError(f"term {term.name}: source '{source}' is not offered by {robot.robot}; "
                            f"there are {', '.join(sorted(sizes))}")
    if term.minus and not term.joints and sizes[term.minus] != sizes[term.source]:
        raise SpecError(f"term {term.name}: {term.source} has {sizes[term.source]} numbers, "
                        f"{term.minus} has {sizes[term.minus]}")
    known = [j.name for j in (robot.actuated if term.source == "command" else robot.joints)]
    missing = [name for name in term.joints if name not in known]
    if missing:
        raise SpecError(f"term {term.name}: joints {missing} are not among {known}")
    if term.period_s and (term.period_s < 0 or term.source != CLOCK):
        raise SpecError(f"term {term.name}: period_s={term.period_s}; it is of {CLOCK}, not of {term.source}, and at "
                        "least 0")
    if term.transform == "down":
        if not term.source.endswith(".orientation") or term.minus or term.joints:
            raise SpecError(f"term {term.name}: transform=down is of an orientation alone, not of {term.source}")
        return len(term.axes) or 3
    wrong = [source for source in (term.source, term.minus) if term.axes and source and source not in spatial]
    if wrong:
        raise SpecError(f"term {term.name}: axes={term.axes} choose among coordinates, of {', '.join(spatial)}, not of "
                        f"{', '.join(wrong)}")
    size = len(term.joints) or len(term.axes) or sizes[term.source]
    return {"sin_cos": 2 * size, "norm": 1}.get(term.transform, size)


def robot_file(robot: str) -> Path:
    """Path of a robot file: a path as given, or `models/<robot>/robot.yaml` for a name. Raises SpecError."""
    named = Path(str(files("models"))) / robot / "robot.yaml"
    path = Path(robot) if robot.endswith((".yaml", ".yml")) else named
    if not path.is_file():
        known = sorted(p.parent.name for p in Path(str(files("models"))).glob("*/robot.yaml"))
        raise SpecError(f"robot '{robot}': no file {path}; robots that come with the package: {', '.join(known)}")
    return path


def policies() -> list[str]:
    """Names of the policies that come with the package."""
    return sorted(path.stem for path in Path(str(files("models"))).glob("policies/*.onnx"))


def policy_file(policy: str) -> Path:
    """Path of a policy file: a path as given, or `models/policies/<name>.onnx` for a name. Raises SpecError."""
    path = Path(policy)
    if path.suffix != ".onnx":
        path = Path(str(files("models"))) / "policies" / f"{policy}.onnx"
    if not path.is_file():
        raise SpecError(f"policy '{policy}': no file {path}; policies that come with the package: "
                        f"{', '.join(policies())}")
    return path


def load_robot(robot: str, *, supervised: bool = False) -> RobotSpec:
    """Read a robot by name or by the path of its robot.yaml. Raises SpecError naming file, key and value.

    With `supervised` it is, whatever its file says.
    """
    path = robot_file(robot)
    spec = read_yaml(path, RobotSpec, str(path))
    return msgspec.structs.replace(spec, supervised=spec.supervised or supervised)


def read_yaml(path: Path, kind: type[Kind], where: str, hint: str = "") -> Kind:
    """Read a YAML file as typed data. Raises SpecError that begins with `where`; `hint` follows when there is no file.

    Whatever yaml's own constructors make of outside text, a date of month 13 or a pit of brackets, is one error.
    """
    try:
        return msgspec.convert(yaml.safe_load(path.read_bytes()), kind)
    except OSError as error:
        raise SpecError(f"{where}: cannot be read: {error.strerror}{hint}") from error
    except Exception as error:
        raise SpecError(f"{where}: {error}") from error


def mjcf_file(robot: str) -> Path:
    """Path of the MJCF that a robot file names. Raises SpecError."""
    path = robot_file(robot)
    mjcf = path.parent / load_robot(robot).mjcf
    if not mjcf.is_file():
        raise SpecError(f"{path}: mjcf: no file {mjcf}")
    return mjcf


def _distinct(what: str, names: list[str]) -> None:
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise ValueError(f"{what}: named twice: {', '.join(doubled)}")


def _differences(policy: RobotSpec, robot: RobotSpec) -> list[str]:
    """What a policy expects of a robot and does not find, one line each."""
    lines = []
    theirs = {j.name: j for j in robot.joints}
    for joint in policy.joints:
        other = theirs.pop(joint.name, None)
        if other is None:
            lines.append(f"joint '{joint.name}': the policy needs it, the robot has {', '.join(robot.names)}")
            continue
        for key in ("lower", "upper", "actuated", "default"):
            a, b = getattr(joint, key), getattr(other, key)
            if a != b:
                lines.append(f"joint '{joint.name}' {key}: policy {a}, robot {b}")
    if any(j.actuated for j in theirs.values()):
        lines.append(f"joints: the robot's {', '.join(theirs)} are unknown to the policy")
    if policy.command.interface != robot.command.interface:
        lines.append(f"command.interface: policy {policy.command.interface}, robot {robot.command.interface}")
    kinds = {s.name: s.type for s in robot.sensors}
    for sensor in policy.sensors:
        if kinds.get(sensor.name) != sensor.type:
            lines.append(f"sensor '{sensor.name}': policy {sensor.type}, robot {kinds.get(sensor.name, 'has none')}")
    return lines


def _blind_spots(vision: Vision | None, robot: RobotSpec) -> list[str]:
    """What a policy wants to see and the robot's cameras do not show, one line each."""
    if vision is None:
        return []
    cameras, lines = {c.name: c for c in robot.cameras}, []
    for name in vision.cameras:
        camera = cameras.get(name)
        if camera is None:
            lines.append(f"camera '{name}': the policy sees through it, {robot.robot} has "
                         f"{', '.join(cameras) or 'none'}")
        elif vision.height > camera.height or vision.width * camera.height > camera.width * vision.height:
            lines.append(f"camera '{name}': its {camera.width}x{camera.height} pixels hold no larger picture of shape "
                         f"{vision.width}x{vision.height}, which the policy sees")
    return lines
