"""Command topics: every kind of controller gets what it reads, joint by joint, and a simulated robot obeys the same."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from hardware import messages
from hardware.robot_io import Order, decode, decode_command, encode, encode_command
from robot_rl.episode import Episode
from robot_rl.observe import Readings
from robot_rl.safety import Safety
from robot_rl.spec import JOINT_STATE, PD, TRAJECTORY, PolicySpec, RobotSpec, Term, load_robot
from sim.robot import SimRobot
from tests.robots import contract, robot

FLOATS = "std_msgs/msg/Float64MultiArray"
COMMAND = np.array([0.25, -0.5])
GAINS = [{"name": "a", "lower": -1.0, "upper": 1.0, "velocity": 2.0, "effort": 3.0, "kp": 10.0, "kd": 0.5,
          "stop_kd": 4.0},
         {"name": "b", "lower": -0.5, "upper": 0.8, "velocity": 1.0, "effort": 1.0, "kp": 20.0, "kd": 0.25}]


def commanded(interface: str = "position", **command: Any) -> RobotSpec:
    return robot(interface, command={"interface": interface, "topic": "commands"} | command)


def legged(**changes: Any) -> RobotSpec:
    given: dict[str, Any] = {"joints": GAINS, "stop": "damping",
                             "command": {"interface": "position", "topic": "legs", "type": PD}}
    return robot(**(given | changes))


def sent(body: RobotSpec, braking: bool = False) -> dict[str, Any]:
    types = {to.topic: to.type for to in body.command_topics}
    return {topic: messages.decode(data, types[topic])
            for topic, data in encode_command(body, COMMAND, braking=braking)}


def obeyed(body: RobotSpec) -> dict[str, Order]:
    """What the controllers of a robot read, by joint."""
    data = dict(encode_command(body, COMMAND))
    return {to.topic: decode_command(body, to, data[to.topic]) for to in body.command_topics}


@pytest.mark.parametrize("interface", ["position", "velocity", "effort"])
@pytest.mark.parametrize("type", [FLOATS, JOINT_STATE])
def test_forward_controllers_of_every_interface(interface: str, type: str) -> None:
    body = commanded(interface, type=type)
    np.testing.assert_array_equal(obeyed(body)["commands"].target, COMMAND)
    message = sent(body)["commands"]
    if type == FLOATS:
        assert list(message.data) == [0.25, -0.5]
    else:
        assert (list(message.name), list(getattr(message, interface))) == (["a", "b"], [0.25, -0.5])
        assert sum(len(getattr(message, key)) for key in ("position", "velocity", "effort")) == 2


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_trajectory_controller_gets_one_point_and_the_time_to_be_there(seconds: float) -> None:
    body = commanded(type=TRAJECTORY, time_from_start_s=seconds)
    message = sent(body)["commands"]
    point, = message.points
    assert (list(message.joint_names), list(point.positions)) == (["a", "b"], [0.25, -0.5])
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (0, 0)  # now, by the controller's clock
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (0, round(seconds * 1e9))
    # an end at speed, and efforts for another interface, would be refused
    assert len(point.velocities) == len(point.accelerations) == len(point.effort) == 0
    assert obeyed(body)["commands"].time_s == seconds


def test_a_gripper_has_a_topic_of_its_own() -> None:
    body = commanded(type=TRAJECTORY, time_from_start_s=0.1, groups=[{"topic": "gripper/commands", "joints": ["b"]}])
    messages_sent = sent(body)
    assert list(messages_sent["commands"].joint_names) == ["a"]
    assert list(messages_sent["gripper/commands"].data) == [-0.5]
    assert [list(order.target) for order in obeyed(body).values()] == [[0.25], [-0.5]]


@pytest.mark.parametrize("type", [FLOATS, JOINT_STATE, TRAJECTORY])
def test_the_order_on_the_wire_is_the_controllers(type: str) -> None:
    body = commanded(type=type, joints=["b", "a"])
    np.testing.assert_array_equal(obeyed(body)["commands"].target, [-0.5, 0.25])
    if type == FLOATS:
        assert list(sent(body)["commands"].data) == [-0.5, 0.25]


def test_a_policy_that_knows_the_joints_in_another_order_moves_the_right_ones() -> None:
    body = robot()
    turned = msgspec.structs.replace(body, joints=body.joints[::-1])
    ours = contract().on(turned).robot
    assert ours is not None
    assert [j.name for j in ours.actuated] == ["a", "b"]  # as the policy has them
    message = messages.decode(encode_command(ours, COMMAND)[0][1], FLOATS)
    assert list(message.data) == [-0.5, 0.25]  # b, then a, as the robot has them


def test_motors_that_take_gains_get_them_and_stop_by_their_brake() -> None:
    body = legged()
    message = sent(body)["legs"]
    assert list(message.joint_names) == ["a", "b"]
    assert [list(v.interface_names) for v in message.interface_values] == [["position", "kp", "kd"]] * 2
    assert [list(v.values) for v in message.interface_values] == [[0.25, 10.0, 0.5], [-0.5, 20.0, 0.25]]
    assert [list(v.values)[1:] for v in sent(body, True)["legs"].interface_values] == [[0.0, 4.0], [0.0, 0.25]]
    gains = obeyed(body)["legs"].gains
    assert gains is not None
    np.testing.assert_array_equal(gains, [[10.0, 20.0], [0.5, 0.25]])
    # its brake needs no measurement, so there is always a command to stop with
    stop = Safety(body, 50.0).stop(Readings({}), None)
    assert stop is not None and np.isfinite(stop).all()


@pytest.mark.parametrize(("body", "message", "words"), [
    (commanded(), messages.float64s([1.0]), "1 numbers for 2 joints"),
    (commanded(type=JOINT_STATE), messages.joint_state(0, ["a", "c"], [0, 0]), r"\['a', 'c'\], expected \['a', 'b'\]"),
    (commanded(type=JOINT_STATE), messages.joint_state(0, ["a", "b"]), "0 values in position for 2 joints"),
    (commanded(type=TRAJECTORY), messages.joint_trajectory(["a", "b"], [[0, 0], [1, 1]], times_s=[0.1, 0.2]),
     "2 points, expected one"),
    (commanded(type=TRAJECTORY), messages.joint_trajectory(["a", "b"], velocity=[0, 0]), "0 values in positions"),
    (legged(), messages.joint_interfaces(0, ["a", "b"], ["position", "kp"], np.zeros((2, 2))), "lacks 'kd'"),
])
def test_a_message_that_a_controller_would_refuse_is_refused(body: RobotSpec, message: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        decode_command(body, body.command_topics[0], messages.encode(message))
    assert body.command.topic in str(refused.value)


# a robot file that cannot be meant

@pytest.mark.parametrize(("make", "words"), [
    (lambda: commanded(type="std_msgs/msg/String"), ["type=std_msgs/msg/String", FLOATS]),
    (lambda: commanded(tpoic="x"), ["tpoic"]),
    (lambda: commanded(groups=[{"topic": "g", "joints": ["z"]}]), ["a, b, z", "actuated joints are a, b"]),
    (lambda: commanded(groups=[{"topic": "g", "joints": ["b", "b"]}]), ["g: joints", "named twice: b"]),
    (lambda: commanded(groups=[{"topic": "g", "joints": ["a"]}, {"topic": "h", "joints": ["a"]}]), ["named twice: a"]),
    (lambda: commanded(groups=[{"topic": "commands", "joints": ["a"]}]), ["command topics", "twice: commands"]),
    (lambda: commanded(groups=[{"topic": "g"}]), ["g: joints=[]"]),
    (lambda: commanded(groups=[{"topic": "g", "joints": ["a", "b"]}]), ["command.topic=commands", "every actuated"]),
    (lambda: commanded(joints=["a"]), ["joints a", "a, b"]),
    (lambda: commanded("effort", type=TRAJECTORY), ["JointTrajectory", "interface=effort"]),
    (lambda: commanded(time_from_start_s=0.1), ["time_from_start_s=0.1", FLOATS]),
    (lambda: legged(stop="zero"), ["stop=zero", "hold or damping"]),
    (lambda: legged(joints=[GAINS[0], GAINS[1] | {"kd": 0.0}]), ["joint b", "kd=0.0"]),
    (lambda: robot(stop="damping"), ["stop=damping", "interface=position", "takes hold"]),
])
def test_commands_that_no_controller_takes_are_refused(make: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the words are checked)
        make()
    for word in words:
        assert word in str(refused.value)


# joint states

def told(body: RobotSpec, *fields: Any) -> dict[str, np.ndarray]:
    return decode(body.joint_sensor, messages.encode(messages.joint_state(0, *fields)), body)


def test_joint_states_are_mapped_by_name_in_any_order_and_with_more_joints_than_ours() -> None:
    values = told(robot(), ["x", "c", "a", "b"], [9, 3, 1, 2], [90, 30, 10, 20], [7, 6, 4, 5])
    assert [list(values[f"joints.{key}"]) for key in ("position", "velocity", "effort")] == [
        [1, 2, 3], [10, 20, 30], [4, 5, 6]]


def test_what_joint_states_lack_reads_nan_and_absent_efforts_read_0() -> None:
    values = told(robot(), ["a", "b"], [1, 2])
    np.testing.assert_array_equal(values["joints.position"], [1, 2, np.nan])
    assert np.isnan(values["joints.velocity"]).all()
    assert list(values["joints.effort"]) == [0, 0, 0]


@pytest.mark.parametrize("unknown", ["orientation", "angular_velocity", "linear_acceleration"])
def test_what_an_imu_says_it_does_not_know_reads_nan(unknown: str) -> None:
    body = load_robot("quadruped")
    sensor = next(s for s in body.sensors if s.name == "imu")
    given = {"imu.orientation": np.array([0, 0, 0, 1.0]), "imu.angular_velocity": np.array([1.0, 2, 3]),
             "imu.linear_acceleration": np.array([0, 0, 9.81])}
    message = messages.decode(encode(sensor, given, 5, body), sensor.type)
    assert message.header.frame_id == "imu_link"
    for key, value in decode(sensor, messages.encode(message), body).items():
        np.testing.assert_array_equal(value, given[key])
    covariance = np.zeros(9)
    covariance[0] = -1
    setattr(message, f"{unknown}_covariance", covariance)
    values = decode(sensor, messages.encode(message), body)
    assert [key for key, value in values.items() if np.isnan(value).all()] == [f"imu.{unknown}"]


def derived() -> PolicySpec:
    body = robot()
    sensors = tuple(msgspec.structs.replace(s, velocity="derived") if s.name == "joints" else s for s in body.sensors)
    return contract(body=msgspec.structs.replace(body, sensors=sensors), goal=None, success=None, rewards=(),
                    observations=(Term(name="speed", source="joints.velocity"),))


def test_derived_speeds_come_from_positions_and_stamps_and_from_nothing_else() -> None:
    spec = derived()
    assert spec.robot is not None
    values = told(spec.robot, ["a", "b", "c"], [0.1, 0.2, 0.3], [9, 9, 9])
    assert "joints.velocity" not in values  # whatever the message says
    episode = Episode(spec)
    episode.begin()
    seen = []
    tip = {"tip.position": np.zeros(3), "tip.orientation": np.array([0, 0, 0, 1.0])}
    for at, stamp in ((0.1, 0), (0.2, 40_000_000), (0.2, 40_000_000), (0.1, 140_000_000)):
        moved = {"joints.position": np.array([at, 0.0, 0.0]), "joints.effort": np.zeros(3)}
        outcome = episode.observe(Readings(tip | moved, {"joints": stamp}))
        assert outcome.valid
        seen.append(float(outcome.observation[0]))
    np.testing.assert_allclose(seen, [0.0, 2.5, 2.5, -1.0], rtol=1e-6)


def test_a_simulated_robot_of_derived_speeds_tells_none() -> None:
    spec = derived().robot
    assert spec is not None
    message = messages.decode(encode(spec.joint_sensor, {"joints.position": np.ones(3), "joints.effort": np.ones(3)},
                                     0, spec), JOINT_STATE)
    assert (len(message.position), len(message.velocity)) == (3, 0)


# the simulated robot under them

ARM = """<mujoco>
  <compiler angle="radian"/>
  <option gravity="0 0 0" integrator="implicitfast"/>
  <worldbody>
    <body name="base_link">
      <site name="tip"/>
      <body>
        <joint name="a" axis="0 0 1" range="-1 1" limited="true"/>
        <geom type="box" size="0.1 0.01 0.01" mass="0.5"/>
        <body>
          <joint name="b" axis="0 0 1" range="-0.5 0.8" limited="true"/>
          <geom type="box" size="0.1 0.01 0.01" mass="0.5" contype="0" conaffinity="0"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>{actuators}</actuator>
</mujoco>"""
SERVOS = '<position joint="a" kp="200" kv="8"/><position joint="b" kp="200" kv="8"/>'
MOTORS = '<motor joint="a"/><motor joint="b"/>'


def simulated(tmp_path: Any, body: RobotSpec, actuators: str) -> SimRobot:
    (tmp_path / "arm.xml").write_text(ARM.replace("{actuators}", actuators))
    sensors = tuple(msgspec.structs.replace(s, site="tip") if s.name == "tip" else s for s in body.sensors)
    return SimRobot(msgspec.structs.replace(body, sensors=sensors), tmp_path / "arm.xml")


def path(sim: SimRobot, command: np.ndarray, steps: int = 10) -> np.ndarray:
    sim.apply(command)
    rows = []
    for _ in range(steps):
        sim.step(0.02)
        rows.append(sim.readings()["joints.position"].copy())
    return np.array(rows)


def test_a_timed_point_is_reached_in_a_straight_line_and_an_untimed_one_at_once(tmp_path: Any) -> None:
    two = [{"name": n, "lower": low, "upper": high, "velocity": 2.0, "effort": 50.0}
           for n, low, high in (("a", -1.0, 1.0), ("b", -0.5, 0.8))]
    command = {"interface": "position", "topic": "arm", "type": TRAJECTORY, "time_from_start_s": 0.2,
               "groups": [{"topic": "gripper", "joints": ["b"]}]}
    timed = path(simulated(tmp_path, robot(joints=two, command=command), SERVOS), np.array([0.2, 0.2]))
    at_once = path(simulated(tmp_path, robot(joints=two), SERVOS), np.array([0.2, 0.2]))
    lag = 8 / 200  # a servo follows a ramp by kv / kp later
    np.testing.assert_allclose(timed[4:9, 0], 0.02 * np.arange(5, 10) - 0.2 / 0.2 * lag, atol=0.005)
    assert timed[2, 1] > 0.1 > timed[2, 0]  # the gripper's controller knows no time
    assert at_once[2, 0] > 0.1
    np.testing.assert_allclose(timed[-1, 0], 0.2 - lag, atol=0.01)


def test_without_gain_a_joint_coasts_against_its_brake(tmp_path: Any) -> None:
    sim = simulated(tmp_path, legged(), MOTORS)
    path(sim, np.array([0.0, 0.0]), 50)
    sim.apply(np.array([0.5, 0.0]), kp=np.zeros(2), kd=np.array([4.0, 0.25]))
    sim.step(0.5)
    assert abs(sim.readings()["joints.position"][0]) < 0.01  # not where it was told
    sim.apply(np.array([0.5, 0.0]))
    sim.step(2.0)
    assert sim.readings()["joints.position"][0] == pytest.approx(0.5, abs=0.02)
