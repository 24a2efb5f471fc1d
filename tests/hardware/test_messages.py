"""Messages: constructors, CDR, hashes, definitions, quaternions."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_typestore

from hardware import messages

STAMP = 1_795_000_000_123_456_789
K = messages.pinhole(640, 480, 1.0)
PICTURE = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
MADE = {
    "sensor_msgs/msg/JointState": messages.joint_state(STAMP, ["a", "b"], [0.5, -1.5], [0.25, 2.0], [1.0, -2.0]),
    "trajectory_msgs/msg/JointTrajectory": messages.joint_trajectory(
        ["a", "b"], [[0, 1], [2, 3]], velocity=[[4, 5], [6, 7]], times_s=[0.05, 1.25], stamp_ns=STAMP),
    "std_msgs/msg/Float64MultiArray": messages.float64s([1, 2, 3], [("action", 2), ("reward", 1)]),
    "geometry_msgs/msg/PoseStamped": messages.pose_stamped(STAMP, "base_link", [1, 2, 3], [0.1, 0.2, 0.3, 0.9]),
    "sensor_msgs/msg/Imu": messages.imu(STAMP, "imu_link", [0.1, 0.2, 0.3, 0.9], [1, 2, 3], [4, 5, 6]),
    "nav_msgs/msg/Odometry": messages.odometry(
        STAMP, "base_link", [1, 2, 3], [0.1, 0.2, 0.3, 0.9], [4, 5, 6], [7, 8, 9]),
    "control_msgs/msg/DynamicJointState": messages.joint_interfaces(
        STAMP, ["a", "b"], ["position", "kp"], [[1, 2], [3, 4]]),
    "sensor_msgs/msg/Image": messages.image(STAMP, "front_optical_frame", PICTURE),
    "sensor_msgs/msg/CameraInfo": messages.camera_info(STAMP, "front_optical_frame", 640, 480, K),
    "std_msgs/msg/String": messages.string("à bientôt"),
    "std_msgs/msg/Bool": messages.boolean(True),
}


def same(one: Any, two: Any) -> bool:
    """Whether two messages are equal field by field, arrays included."""
    if hasattr(one, "__msgtype__"):
        return one.__msgtype__ == two.__msgtype__ and all(
            same(getattr(one, field), getattr(two, field)) for field in one.__dataclass_fields__)
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@pytest.mark.parametrize("type", MADE)
def test_every_constructor_survives_the_wire(type: str) -> None:
    message = MADE[type]
    assert message.__msgtype__ == type
    data = messages.encode(message)
    assert isinstance(data, bytes)
    assert data[:4] == b"\x00\x01\x00\x00"
    assert same(messages.decode(data, type), message)
    assert same(messages.decode(data + bytes(-len(data) % 4), type), message), "with the padding of DDS"


@pytest.mark.parametrize("type", MADE)
def test_cdr_is_that_of_rosbags(type: str) -> None:
    plain = messages.STORE if type in messages.LAYOUTS else get_typestore(Stores.ROS2_JAZZY)
    data = messages.encode(MADE[type])
    assert data == bytes(plain.serialize_cdr(plain.deserialize_cdr(data, type), type))
    assert messages.type_hash(type) == plain.hash_rihs01(type)


@pytest.mark.parametrize("shape", [(48, 64, 3), (31, 67, 3)])
def test_large_images_are_encoded_as_rosbags_does(shape: tuple[int, ...]) -> None:
    message = messages.image(STAMP, "front_optical_frame", np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    plain = get_typestore(Stores.ROS2_JAZZY)
    data = messages.encode(message)
    assert data == bytes(plain.serialize_cdr(message, message.__msgtype__))
    assert same(messages.decode(data, message.__msgtype__), message)


def test_a_known_message_byte_by_byte() -> None:
    data = messages.encode(messages.joint_state(3_000_000_007, ["ab"], [0.5]))
    expected = struct.pack("<iI", 3, 7)  # header.stamp
    expected += struct.pack("<I", 1) + b"\0" + 3 * b"\0"  # header.frame_id, aligned
    expected += struct.pack("<II", 1, 3) + b"ab\0" + b"\0"  # name
    expected += struct.pack("<Id", 1, 0.5)  # position: its numbers happen to lie at a multiple of 8
    expected += struct.pack("<II", 0, 0)  # velocity, effort: nothing to align
    assert data == b"\x00\x01\x00\x00" + expected


def test_known_hashes() -> None:
    """As `ros2 topic info -v` shows them."""
    assert messages.type_hash("std_msgs/msg/String") == (
        "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18")
    assert messages.type_hash("std_msgs/msg/Empty") == (
        "RIHS01_20b625256f32d5dbc0d04fee44f43c41e51c70d3502f84b4a08e7a9c26a96312")
    for type in (*messages.LAYOUTS, *messages.SERVICE_LAYOUTS):
        assert len(messages.type_hash(type)) == 71


def test_layouts_of_our_own_are_complete() -> None:
    value = messages.new("control_msgs/msg/InterfaceValue", interface_names=["position"], values=[1])
    state = messages.new("control_msgs/msg/DynamicJointState", header=messages.header(STAMP), joint_names=["a"],
                         interface_values=[value])
    assert same(messages.decode(messages.encode(state), state.__msgtype__), state)


def test_definitions_carry_their_dependencies() -> None:
    text = messages.definition("sensor_msgs/msg/JointState")
    parts = text.split("=" * 80 + "\n")
    assert parts[0].splitlines() == ["std_msgs/Header header", "string[] name", "float64[] position",
                                     "float64[] velocity", "float64[] effort"]
    assert [part.splitlines()[0] for part in parts[1:]] == ["MSG: std_msgs/Header", "MSG: builtin_interfaces/Time"]


def test_an_unknown_type_is_named() -> None:
    for ask in (messages.type_hash, messages.definition, messages.layout, messages.new):
        with pytest.raises(KeyError, match="sensor_msgs/msg/Nothing"):
            ask("sensor_msgs/msg/Nothing")


@given(st.integers(0, (2**31 - 1) * 10**9))
def test_stamps_are_exact(stamp: int) -> None:
    head = messages.header(stamp, "map")
    assert messages.stamp_ns(head) == stamp
    assert 0 <= head.stamp.nanosec < 10**9
    assert messages.stamp_ns(messages.image(stamp, "map", PICTURE)) == stamp


@given(st.floats(-1e6, 1e6))
def test_durations_are_exact_to_a_nanosecond(seconds: float) -> None:
    made = messages.duration(seconds)
    assert 0 <= made.nanosec < 10**9
    assert made.sec * 10**9 + made.nanosec == round(seconds * 10**9)


def test_quaternions_turn_between_ros_and_mujoco() -> None:
    np.testing.assert_array_equal(messages.xyzw([1, 2, 3, 4]), [2, 3, 4, 1])
    np.testing.assert_array_equal(messages.wxyz([1, 2, 3, 4]), [4, 1, 2, 3])
    batch = np.random.default_rng(0).normal(size=(5, 2, 4))
    np.testing.assert_array_equal(messages.wxyz(messages.xyzw(batch)), batch)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        messages.xyzw([1, 2, 3])
    pose = messages.pose_stamped(0, "map", [0, 0, 0], messages.xyzw([1, 0, 0, 0])).pose
    assert (pose.orientation.x, pose.orientation.w) == (0.0, 1.0)


def test_segments_come_back_by_name() -> None:
    message = messages.float64s([1, 2, 3, 4], [("a", 1), ("none", 0), ("b", 3)])
    got = messages.segments(messages.decode(messages.encode(message), "std_msgs/msg/Float64MultiArray"))
    assert {name: list(values) for name, values in got.items()} == {"a": [1], "none": [], "b": [2, 3, 4]}
    with pytest.raises(ValueError, match="cover 2 values of 3"):
        messages.float64s([1, 2, 3], [("a", 2)])


def test_arrays_are_written_in_the_width_of_the_field() -> None:
    whole = messages.decode(messages.encode(messages.new(
        "std_msgs/msg/Float64MultiArray", data=np.array([1, 2], np.int32), layout=messages.float64s([]).layout)),
        "std_msgs/msg/Float64MultiArray")
    assert whole.data.dtype == np.float64
    assert list(whole.data) == [1.0, 2.0]
    strided = messages.joint_state(0, ["a", "b"], np.arange(4.0)[::2])
    assert list(messages.decode(messages.encode(strided), strided.__msgtype__).position) == [0.0, 2.0]


def test_images_keep_their_pixels() -> None:
    flipped = PICTURE[:, ::-1]  # not contiguous
    image = messages.image(STAMP, "eye", flipped)
    assert (image.height, image.width, image.step, image.encoding) == (2, 4, 12, "rgb8")
    np.testing.assert_array_equal(messages.pixels(messages.decode(messages.encode(image), image.__msgtype__)), flipped)
    image.encoding = "bgr8"
    np.testing.assert_array_equal(messages.pixels(image), flipped[..., ::-1])
    padded = messages.new("sensor_msgs/msg/Image", header=messages.header(0), height=2, width=1, encoding="rgb8",
                          is_bigendian=0, step=4, data=[1, 2, 3, 0, 4, 5, 6, 0])
    np.testing.assert_array_equal(messages.pixels(padded), [[[1, 2, 3]], [[4, 5, 6]]])
    image.encoding = "mono8"
    with pytest.raises(ValueError, match="mono8"):
        messages.pixels(image)
    with pytest.raises(ValueError, match="float32"):
        messages.image(0, "eye", PICTURE.astype(np.float32))  # type: ignore[arg-type]


def test_a_pinhole_sees_its_field_of_view() -> None:
    info = MADE["sensor_msgs/msg/CameraInfo"]
    np.testing.assert_allclose(K @ [0, np.tan(0.5), 1], [320, 480, 1])  # the lower edge is fovy / 2 down
    np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], K)
    np.testing.assert_array_equal(info.k.reshape(3, 3), K)


def test_trajectories_have_one_point_or_many() -> None:
    one = messages.joint_trajectory(["a", "b"], velocity=[1, 2])
    assert [list(p.velocities) for p in one.points] == [[1, 2]]
    assert one.points[0].positions.size == 0
    many = MADE["trajectory_msgs/msg/JointTrajectory"]
    assert [list(p.positions) for p in many.points] == [[0, 1], [2, 3]]
    after = [p.time_from_start for p in many.points]
    assert [(t.sec, t.nanosec) for t in after] == [(0, 50_000_000), (1, 250_000_000)]
    with pytest.raises(ValueError, match=r"positions has shape \(1, 3\) for 1 times and 2 names"):
        messages.joint_trajectory(["a", "b"], [1, 2, 3])
    with pytest.raises(ValueError, match="velocity has 1 values for 2 names"):
        messages.joint_state(0, ["a", "b"], velocity=[1])
