"""The contract: what a robot is, what a task adds, and the JSON that travels inside every exported policy.

SI units and ROS frames (REP 103) throughout; quaternions are xyzw. Every class here is plain, frozen data.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import yaml

from robot_rl.stop import actions

SCHEMA = 1

POSE = "geometry_msgs/msg/PoseStamped"
JOINT_STATE = "sensor_msgs/msg/JointState"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
GOAL = "goal.position"  # the source of a term that reads the goal
SUPERVISOR_STOPPED, SUPERVISOR_STATE = "supervisor/stopped", "supervisor/state"
COMMAND_TYPES = ("std_msgs/msg/Float64MultiArray", JOINT_STATE, "trajectory_msgs/msg/JointTrajectory")


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
    positive: str = ""
    """Which way is positive, for the person who calibrates it."""

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


class CommandInterface(Data, kw_only=True):
    """How the robot is moved: one number for each actuated joint, in the order of `joints`."""

    interface: Literal["position", "velocity", "effort"]
    topic: str
    type: str = COMMAND_TYPES[0]

    def __post_init__(self) -> None:
        if self.type not in COMMAND_TYPES:
            raise ValueError(f"command.type={self.type}: known are {', '.join(COMMAND_TYPES)}")


class Sensor(Data, kw_only=True):
    """A state topic: JointState (mapped by joint name) or PoseStamped."""

    name: str
    topic: str
    type: str
    rate_hz: float
    stale_after_s: float
    frame: str = "base_link"
    site: str | None = None
    """The MJCF site whose pose the simulated robot publishes here, as a motion-capture system would."""

    def __post_init__(self) -> None:
        if self.type not in (JOINT_STATE, POSE):
            raise ValueError(f"sensor {self.name}: type={self.type}: known are {JOINT_STATE}, {POSE}")


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
    """The MJCF body, which has a free joint."""
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
        if sum(s.type == JOINT_STATE for s in self.sensors) != 1:
            raise ValueError(f"sensors: exactly one {JOINT_STATE} is needed, found "
                             f"{[s.name for s in self.sensors if s.type == JOINT_STATE]}")
        if (self.stop == "hold") != (self.command.interface == "position"):
            raise ValueError(f"stop={self.stop} does not suit command.interface={self.command.interface}: "
                             "position robots hold; velocity and effort robots take zero or damping")
        if self.stop == "damping" and self.command.interface != "effort":
            raise ValueError(f"stop=damping needs command.interface=effort, not {self.command.interface}")
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
    def joint_sensor(self) -> Sensor:
        """The JointState topic."""
        return next(s for s in self.sensors if s.type == JOINT_STATE)


class Term(Data, kw_only=True):
    """One quantity: `scale * transform(source - minus)`, of the chosen joints, with its newest `history` values.

    Sources: `<sensor>.position|velocity|effort` of the JointState, `<sensor>.position|orientation` of a pose,
    `goal.position`, `command` (last sent, by joint), `action` (last sent, in [-1, 1]), `hold` (s).
    History is oldest first and is filled with the first value of an episode.
    """

    name: str
    source: str
    minus: str | None = None
    joints: tuple[str, ...] = ()
    """For joint-valued sources: which, in this order; empty means all."""
    axes: tuple[Literal["x", "y", "z"], ...] = ()
    """For positions: which coordinates, in this order; empty means all."""
    transform: Literal["identity", "sin_cos", "cos", "norm", "square", "change"] = "identity"
    """`change` is the difference to the previous step (zero on the first)."""
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


class Success(Data, kw_only=True):
    """The term (one number) stays below or above a bound for `hold_s` without a break."""

    term: Term
    below: float | None = None
    above: float | None = None
    hold_s: float
    ends_episode: bool
    """True: the episode ends there (terminated). False: it must hold when the time is up."""
    bonus: float = 0.0
    """Reward paid once when the episode ends in success."""

    def __post_init__(self) -> None:
        if (self.below is None) == (self.above is None):
            raise ValueError(f"success {self.term.name}: below={self.below}, above={self.above}: give exactly one")


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
    goal: Goal | None = None
    vision: Vision | None = None
    """None for policies that see numbers only."""
    trained: dict[str, Any] = {}
    """Recipe, its arguments, seed, steps and code version."""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema={self.schema}; this version reads schema {SCHEMA}")

    @property
    def inputs(self) -> tuple[Sensor | Camera, ...]:
        """What is read at each step: every sensor of the robot, then the cameras in use."""
        return (*(self.robot.sensors if self.robot else ()), *self.cameras)

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
        return msgspec.structs.replace(self, robot=msgspec.structs.replace(robot, joints=ours))


def policy_spec(robot: RobotSpec, *, task: str, rate_hz: float, time_limit_s: float, observations: tuple[Term, ...],
                action: ActionSpec, rewards: tuple[Reward, ...], success: Success | None = None,
                goal: Goal | None = None, vision: Vision | None = None) -> PolicySpec:
    """Join a robot and a task into a contract: sizes are filled in and every name is checked. Raises SpecError."""
    actuated = {j.name for j in robot.actuated}
    for name in action.joints:
        if name not in actuated:
            raise SpecError(f"task {task}: action joint '{name}' is not an actuated joint of {robot.robot} "
                            f"({', '.join(sorted(actuated))})")
    for fault in _blind_spots(vision, robot):
        raise SpecError(f"task {task}: {fault}")
    size = len(action.joints)
    goals = goal is not None
    filled = tuple(msgspec.structs.replace(t, size=term_size(t, robot, size, goals) * t.history) for t in observations)
    for term in [r.term for r in rewards] + ([success.term] if success else []):
        term_size(term, robot, size, goals)
    return PolicySpec(task=task, rate_hz=rate_hz, time_limit_s=time_limit_s, robot=robot, observations=filled,
                      observation_size=sum(t.size for t in filled), action=action, action_size=size,
                      rewards=rewards, success=success, goal=goal, vision=vision)


def term_size(term: Term, robot: RobotSpec, actions: int, goal: bool) -> int:
    """How many numbers one step of a term has. Raises SpecError for a source that the robot does not offer."""
    sizes = {"action": actions, "hold": 1, "command": len(robot.actuated)}
    for sensor in robot.sensors:
        if sensor.type == JOINT_STATE:
            sizes |= {f"{sensor.name}.{field}": len(robot.joints) for field in ("position", "velocity", "effort")}
        else:
            sizes |= {f"{sensor.name}.position": 3, f"{sensor.name}.orientation": 4}
    if goal:
        sizes[GOAL] = 3
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
    positions = [f"{s.name}.position" for s in robot.sensors if s.type == POSE] + [GOAL]
    wrong = [source for source in (term.source, term.minus) if term.axes and source and source not in positions]
    if wrong:
        raise SpecError(f"term {term.name}: axes={term.axes} choose among the coordinates of a position, not of "
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


def policy_file(policy: str) -> Path:
    """Path of a policy file: a path as given, or `models/policies/<name>.onnx` for a name. Raises SpecError."""
    path = Path(policy)
    if path.suffix != ".onnx":
        path = Path(str(files("models"))) / "policies" / f"{policy}.onnx"
    if not path.is_file():
        known = sorted(p.stem for p in Path(str(files("models"))).glob("policies/*.onnx"))
        raise SpecError(f"policy '{policy}': no file {path}; policies that come with the package: {', '.join(known)}")
    return path


def load_robot(robot: str) -> RobotSpec:
    """Read a robot by name or by the path of its robot.yaml. Raises SpecError naming file, key and value."""
    path = robot_file(robot)
    try:
        return msgspec.convert(yaml.safe_load(path.read_text()), RobotSpec)
    except (msgspec.ValidationError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: {error}") from error


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
