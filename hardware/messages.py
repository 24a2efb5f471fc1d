"""ROS 2 messages as CDR bytes: encode, decode, type hashes, definitions and small constructors.

Layouts come from rosbags; the ones it lacks are registered here and nowhere else. Arrays inside messages are numpy.
Units and frames are ROS's (REP 103): SI, quaternions x, y, z, w. MuJoCo's w, x, y, z is converted here only.
"""

from __future__ import annotations

import copy
import struct
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

NANO = 1_000_000_000
IDENTITY = (1, 0, 0), (0, 1, 0), (0, 0, 1)
VIEWED = 4096  # bytes; rosbags copies bytes before it reads, which only small messages can afford

# Layouts of the ros2_control and std_srvs packages that rosbags does not ship.
LAYOUTS = {
    "control_msgs/msg/InterfaceValue": "string[] interface_names\nfloat64[] values\n",
    "control_msgs/msg/DynamicJointState":
        "std_msgs/Header header\nstring[] joint_names\ncontrol_msgs/InterfaceValue[] interface_values\n",
    "control_msgs/msg/MultiDOFCommand": "string[] dof_names\nfloat64[] values\nfloat64[] values_dot\n",
    "control_msgs/msg/Keys": "std_msgs/Header header\nstring[] keys\n",
    "control_msgs/msg/Float64Values": "std_msgs/Header header\nfloat64[] values\n",
}
SERVICE_LAYOUTS = {
    "std_srvs/srv/Trigger_Request": "",
    "std_srvs/srv/Trigger_Response": "bool success\nstring message\n",
}


def _typestore() -> Any:
    """The rosbags store with every layout of this file registered."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in LAYOUTS.items():
        store.register(get_types_from_msg(text, name))
    for name, text in SERVICE_LAYOUTS.items():  # rosbags' parser would move these below msg/
        (layout,) = get_types_from_msg(text, name).values()
        store.register({name: layout})
    return store


STORE = _typestore()


def layout(type: str) -> list[tuple[str, Any]]:
    """Fields of a type as rosbags (name, descriptor) pairs. Raises KeyError naming an unknown type."""
    if type not in STORE.fielddefs:
        raise KeyError(f"message type {type!r} is unknown: not in rosbags' ROS 2 types nor in hardware/messages.py")
    return list(STORE.fielddefs[type][1])


def new(type: str, **fields: Any) -> Any:
    """A message of a type from all its fields; numeric arrays become numpy of the field's width."""
    made, widths = _maker(type)
    for field, width in widths.items():
        if field in fields:
            fields[field] = np.ascontiguousarray(fields[field], width)
    return made(**fields)


@cache
def _maker(type: str) -> tuple[Any, dict[str, str]]:
    """The class of a type and the numpy widths of its numeric arrays: rosbags would write others as they lie."""
    widths = {}
    for field, (kind, detail) in layout(type):
        if kind in (Nodetype.ARRAY, Nodetype.SEQUENCE) and detail[0][0] == Nodetype.BASE:
            name = detail[0][1][0]
            widths[field] = {"byte": "uint8", "char": "uint8"}.get(name, name)
    widths = {field: name for field, name in widths.items() if name != "string"}
    return STORE.types[type], widths


def encode(message: Any) -> bytes:
    """CDR bytes (encapsulation header first, little-endian on little-endian machines)."""
    type = message.__msgtype__
    octets = _last_octets(type)
    if octets is None or len(getattr(message, octets)) < VIEWED:
        return bytes(STORE.serialize_cdr(message, type))
    head, data = copy.copy(message), np.ascontiguousarray(getattr(message, octets), np.uint8)
    setattr(head, octets, data[:0])
    count = len(data).to_bytes(4, sys.byteorder)
    return b"".join((STORE.serialize_cdr(head, type)[:-4], count, data.data))  # copied once; else it would be twice


@cache
def _last_octets(type: str) -> str | None:
    """The last field of a type when it is uint8[], as in images: its bytes then end the CDR as they are."""
    field, description = layout(type)[-1]
    return field if description == (Nodetype.SEQUENCE, ((Nodetype.BASE, ("uint8", 0)), 0)) else None


def decode(data: bytes, type: str) -> Any:
    """The message in CDR bytes; numeric arrays are read-only views of them.

    Raises ValueError for bytes that are none, and KeyError naming an unknown type.
    """
    try:
        return STORE.deserialize_cdr(data if len(data) < VIEWED else memoryview(data), type)
    except Exception as error:  # outside bytes, and rosbags has no one error for them
        layout(type)
        raise ValueError(f"{len(data)} bytes are no {type}: {error}") from error


@cache
def type_hash(type: str) -> str:
    """REP 2011 hash of a type, 'RIHS01_' and 64 hex digits."""
    layout(type)
    return str(STORE.hash_rihs01(type))


@cache
def definition(type: str) -> str:
    """ros2msg text of a type, its dependencies after lines of 80 '='."""
    layout(type)
    return str(STORE.generate_msgdef(type, ros_version=2)[0])


def time(stamp_ns: int) -> Any:
    """builtin_interfaces/Time of nanoseconds since the Unix epoch."""
    return new("builtin_interfaces/msg/Time", sec=stamp_ns // NANO, nanosec=stamp_ns % NANO)


def duration(seconds: float) -> Any:
    """builtin_interfaces/Duration of seconds."""
    whole, rest = divmod(round(seconds * NANO), NANO)
    return new("builtin_interfaces/msg/Duration", sec=whole, nanosec=rest)


def header(stamp_ns: int, frame: str = "") -> Any:
    """std_msgs/Header: acquisition stamp in ns since the Unix epoch, frame name."""
    return new("std_msgs/msg/Header", stamp=time(stamp_ns), frame_id=frame)


def stamp_ns(header: Any) -> int:
    """Nanoseconds since the Unix epoch of a header, or of a message that has one."""
    stamp = getattr(header, "header", header).stamp
    return int(stamp.sec) * NANO + int(stamp.nanosec)


def xyzw(quaternion_wxyz: ArrayLike) -> NDArray[np.float64]:
    """(..., 4) MuJoCo's w, x, y, z to ROS's x, y, z, w."""
    return _quaternions(quaternion_wxyz)[..., [1, 2, 3, 0]]


def wxyz(quaternion_xyzw: ArrayLike) -> NDArray[np.float64]:
    """(..., 4) ROS's x, y, z, w to MuJoCo's w, x, y, z."""
    return _quaternions(quaternion_xyzw)[..., [3, 0, 1, 2]]


def _quaternions(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim == 0 or array.shape[-1] != 4:
        raise ValueError(f"a quaternion has 4 numbers on its last axis, not shape {array.shape}")
    return array


def joint_state(stamp_ns: int, names: Sequence[str], position: ArrayLike = (), velocity: ArrayLike = (),
                effort: ArrayLike = ()) -> Any:
    """sensor_msgs/JointState: (J,) rad or m, rad/s or m/s, N m or N; an array may be empty."""
    arrays = {"position": _floats(position), "velocity": _floats(velocity), "effort": _floats(effort)}
    for key, array in arrays.items():
        if array.size not in (0, len(names)):
            raise ValueError(f"JointState {key} has {array.size} values for {len(names)} names")
    return new("sensor_msgs/msg/JointState", header=header(stamp_ns), name=list(names), **arrays)


def joint_trajectory(names: Sequence[str], position: ArrayLike = (), velocity: ArrayLike = (), effort: ArrayLike = (),
                     times_s: ArrayLike = 0.0, stamp_ns: int = 0) -> Any:
    """trajectory_msgs/JointTrajectory: (J,) for one point or (T, J), rad, rad/s, N m; an array may be empty.

    times_s: (T,) s after the stamp at which each point is to be reached; stamp 0 starts on arrival.
    """
    times = _floats(times_s)
    given = {"positions": position, "velocities": velocity, "effort": effort}
    rows = {key: np.atleast_2d(_floats(values, 2)) for key, values in given.items()}
    for key, array in rows.items():
        if array.size and array.shape != (times.size, len(names)):
            raise ValueError(f"JointTrajectory {key} has shape {array.shape} for {times.size} times and "
                             f"{len(names)} names")
    points = [new("trajectory_msgs/msg/JointTrajectoryPoint", accelerations=(), time_from_start=duration(float(t)),
                  **{key: array[i] if array.size else () for key, array in rows.items()}) for i, t in enumerate(times)]
    return new("trajectory_msgs/msg/JointTrajectory", header=header(stamp_ns), joint_names=list(names), points=points)


def joint_interfaces(stamp_ns: int, names: Sequence[str], interfaces: Sequence[str], values: ArrayLike) -> Any:
    """control_msgs/DynamicJointState: (J, I) values, the same interfaces of every joint."""
    rows = _floats(values, 2)
    if rows.shape != (len(names), len(interfaces)):
        raise ValueError(f"DynamicJointState has values {rows.shape} for {len(names)} names and "
                         f"{len(interfaces)} interfaces")
    return new("control_msgs/msg/DynamicJointState", header=header(stamp_ns), joint_names=list(names),
               interface_values=[new("control_msgs/msg/InterfaceValue", interface_names=list(interfaces), values=row)
                                 for row in rows])


def float64s(values: ArrayLike, labels: Sequence[tuple[str, int]] | None = None) -> Any:
    """std_msgs/Float64MultiArray of (N,) values; labels name consecutive segments as (name, size) in layout.dim."""
    data = _floats(values)
    if labels is not None and sum(size for _, size in labels) != data.size:
        raise ValueError(f"labels {list(labels)} cover {sum(size for _, size in labels)} values of {data.size}")
    dim = [new("std_msgs/msg/MultiArrayDimension", label=label, size=size, stride=size) for label, size in labels or ()]
    return new("std_msgs/msg/Float64MultiArray", data=data,
               layout=new("std_msgs/msg/MultiArrayLayout", dim=dim, data_offset=0))


def segments(message: Any) -> dict[str, NDArray[np.float64]]:
    """The labelled segments of a Float64MultiArray made by `float64s`, each (size,). ValueError where they lie."""
    out, start = {}, int(message.layout.data_offset)
    sizes = [dim.size for dim in message.layout.dim]
    if start + sum(sizes) != len(message.data):
        raise ValueError(f"a layout of {sizes} from {start} on for {len(message.data)} numbers")
    for dim in message.layout.dim:
        out[dim.label] = message.data[start:start + dim.size]
        start += dim.size
    return out


def pose_stamped(stamp_ns: int, frame: str, position: ArrayLike, quaternion_xyzw: ArrayLike) -> Any:
    """geometry_msgs/PoseStamped: position (3,) m and orientation (4,) x, y, z, w in a frame."""
    x, y, z = (float(v) for v in _floats(position))
    qx, qy, qz, qw = (float(v) for v in _quaternions(quaternion_xyzw))
    pose = new("geometry_msgs/msg/Pose", position=new("geometry_msgs/msg/Point", x=x, y=y, z=z),
               orientation=new("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw))
    return new("geometry_msgs/msg/PoseStamped", header=header(stamp_ns, frame), pose=pose)


def acquired_ns(data: bytes) -> int:
    """The header's stamp, ns since the Unix epoch, in the CDR bytes of a message that begins with a header.

    Raises ValueError for bytes that are too few.
    """
    if len(data) < 12:
        raise ValueError(f"{len(data)} bytes hold no header")
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(sec) * NANO + int(nanosec)


def twist(velocity: ArrayLike, stamp_ns: int | None = None, frame: str = "base_link") -> Any:
    """geometry_msgs/Twist of (3,) forward and left m/s and turning left rad/s; with a stamp, a TwistStamped."""
    x, y, turn = (float(v) for v in _floats(velocity))
    made = new("geometry_msgs/msg/Twist", linear=new("geometry_msgs/msg/Vector3", x=x, y=y, z=0.0),
               angular=new("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=turn))
    if stamp_ns is None:
        return made
    return new("geometry_msgs/msg/TwistStamped", header=header(stamp_ns, frame), twist=made)


def _vector(values: ArrayLike) -> Any:
    """geometry_msgs/Vector3 of (3,)."""
    return new("geometry_msgs/msg/Vector3", **dict(zip("xyz", map(float, _floats(values)), strict=True)))


def imu(stamp_ns: int, frame: str, quaternion_xyzw: ArrayLike, angular_velocity: ArrayLike,
        linear_acceleration: ArrayLike) -> Any:
    """sensor_msgs/Imu: orientation (4,) in a world whose z is up; (3,) rad/s and m/s², at rest +g up, in its frame."""
    x, y, z, w = (float(v) for v in _quaternions(quaternion_xyzw))
    vectors = [_vector(v) for v in (angular_velocity, linear_acceleration)]
    unknown = np.zeros(9)  # covariances of 0 say that they are not known, REP 145
    return new("sensor_msgs/msg/Imu", header=header(stamp_ns, frame), orientation_covariance=unknown,
               orientation=new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w), angular_velocity=vectors[0],
               angular_velocity_covariance=unknown, linear_acceleration=vectors[1],
               linear_acceleration_covariance=unknown)


def odometry(stamp_ns: int, child_frame: str, position: ArrayLike, quaternion_xyzw: ArrayLike,
             linear_velocity: ArrayLike, angular_velocity: ArrayLike, frame: str = "odom") -> Any:
    """nav_msgs/Odometry: (3,) m and (4,) of the child frame in `frame`; (3,) m/s and rad/s in the child frame."""
    unknown = np.zeros(36)
    return new("nav_msgs/msg/Odometry", header=header(stamp_ns, frame), child_frame_id=child_frame,
               pose=new("geometry_msgs/msg/PoseWithCovariance", covariance=unknown,
                        pose=pose_stamped(stamp_ns, frame, position, quaternion_xyzw).pose),
               twist=new("geometry_msgs/msg/TwistWithCovariance", covariance=unknown,
                         twist=new("geometry_msgs/msg/Twist", linear=_vector(linear_velocity),
                                   angular=_vector(angular_velocity))))


def image(stamp_ns: int, frame: str, array: NDArray[np.uint8], encoding: str = "rgb8") -> Any:
    """sensor_msgs/Image, rgb8 or bgr8, from (H, W, 3) uint8; frame is the camera's optical frame."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"an {encoding} image is (H, W, 3) uint8, not {array.shape} {array.dtype}")
    height, width, _ = array.shape
    return new("sensor_msgs/msg/Image", header=header(stamp_ns, frame), height=height, width=width, encoding=encoding,
               is_bigendian=0, step=3 * width, data=np.ascontiguousarray(array).reshape(-1))


def compressed_image(stamp_ns: int, frame: str, jpeg: NDArray[np.uint8]) -> Any:
    """sensor_msgs/CompressedImage of (N,) bytes of a JPEG, its format in image_transport's words."""
    return new("sensor_msgs/msg/CompressedImage", header=header(stamp_ns, frame),
               format="bgr8; jpeg compressed bgr8", data=jpeg)


def pixels(message: Any) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an rgb8 or bgr8 sensor_msgs/Image, without its row padding. Raises ValueError."""
    if message.encoding not in ("rgb8", "bgr8"):
        raise ValueError(f"image encoding {message.encoding!r}: only rgb8 and bgr8 are read")
    if message.step < 3 * message.width or len(message.data) != message.height * message.step:
        raise ValueError(f"an image of {message.width}x{message.height} pixels in rows of {message.step} bytes has "
                         f"{len(message.data)} bytes")
    rows = message.data.reshape(message.height, message.step)[:, :3 * message.width]
    array = rows.reshape(message.height, message.width, 3)
    return array if message.encoding == "rgb8" else array[..., ::-1]


def pinhole(width: int, height: int, fovy: float) -> NDArray[np.float64]:
    """(3, 3) intrinsics, pixels, of an ideal camera with a vertical field of view in rad."""
    focal = height / (2 * np.tan(fovy / 2))
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def camera_info(stamp_ns: int, frame: str, width: int, height: int, intrinsics: ArrayLike,
                distortion: ArrayLike = (0, 0, 0, 0, 0), model: str = "plumb_bob", rectification: ArrayLike = IDENTITY,
                projection: ArrayLike | None = None) -> Any:
    """sensor_msgs/CameraInfo; stamp and frame equal the image's.

    Intrinsics are (3, 3) in pixels, all zeros for a camera that was not calibrated; rectification (3, 3) and
    projection (3, 4) are those of an unrectified single camera unless given.
    """
    k = _floats(intrinsics, 2)
    if k.shape != (3, 3):
        raise ValueError(f"intrinsics are (3, 3), not {k.shape}")
    p = np.hstack([k, np.zeros((3, 1))]) if projection is None else _floats(projection, 2)
    roi = new("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return new("sensor_msgs/msg/CameraInfo", header=header(stamp_ns, frame), height=height, width=width,
               distortion_model=model, d=_floats(distortion), k=k.reshape(-1), r=_floats(rectification, 2).reshape(-1),
               p=p.reshape(-1), binning_x=0, binning_y=0, roi=roi)


def string(text: str) -> Any:
    """std_msgs/String."""
    return new("std_msgs/msg/String", data=text)


def boolean(value: bool) -> Any:
    """std_msgs/Bool."""
    return new("std_msgs/msg/Bool", data=bool(value))


def _floats(values: ArrayLike, ndim: int = 1) -> NDArray[np.float64]:
    """Contiguous float64, at least one axis, at most `ndim`."""
    array = np.atleast_1d(np.ascontiguousarray(values, np.float64))
    if array.ndim > ndim:
        raise ValueError(f"expected at most {ndim} axes, got shape {array.shape}")
    return array
