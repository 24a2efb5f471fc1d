"""Safety filter: for any input its output stays within the limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robot_rl.observe import Readings
from robot_rl.safety import Reason, Safety
from tests.robots import robot

RATE = 20.0
anything = st.floats(allow_nan=True, allow_infinity=True, width=64)
finite = st.floats(-1e6, 1e6)


def readings(position, velocity=(0.0, 0.0, 0.0), tip=(0.0, 0.0, 0.0)) -> Readings:
    return Readings({"joints.position": np.array(position, float), "joints.velocity": np.array(velocity, float),
                     "joints.effort": np.zeros(3), "tip.position": np.array(tip, float),
                     "tip.orientation": np.array([0, 0, 0, 1.0])})


@settings(max_examples=400, deadline=None)
@given(arrays(float, 2, elements=anything), arrays(float, 2, elements=finite), arrays(float, 3, elements=anything))
def test_position_commands_never_leave_the_limits(target, last, position) -> None:
    body = robot()
    lower, upper = np.array([-1.0, -0.5]), np.array([1.0, 0.8])
    command, _ = Safety(body, RATE).limit(target, last, readings(np.nan_to_num(position)))
    assert np.isfinite(command).all()
    assert (command >= lower).all()
    assert (command <= upper).all()
    if (last >= lower).all() and (last <= upper).all():
        assert (np.abs(command - last) <= np.array([2.0, 1.0]) / RATE + 1e-9).all()


@settings(max_examples=400, deadline=None)
@given(arrays(float, 2, elements=anything), arrays(float, 2, elements=finite), arrays(float, 3, elements=finite),
       arrays(float, 3, elements=finite), st.sampled_from(["velocity", "effort"]))
def test_pushes_never_leave_the_limits_nor_push_outwards(target, last, position, velocity, interface) -> None:
    body = robot(interface)
    most = np.array([2.0, 1.0]) if interface == "velocity" else np.array([3.0, 1.0])
    command, _ = Safety(body, RATE).limit(target, last, readings(position, velocity))
    assert np.isfinite(command).all()
    assert (np.abs(command) <= most).all()
    if np.isfinite(target).all():
        assert not ((position[:2] >= [1.0, 0.8]) & (command > 0)).any()
        assert not ((position[:2] <= [-1.0, -0.5]) & (command < 0)).any()


@pytest.mark.parametrize(("target", "reason", "command"), [
    ((0.05, 0.0), Reason.NONE, (0.05, 0.0)),
    ((0.5, 0.0), Reason.EFFORT | Reason.RATE, (0.1, 0.0)),     # 2 rad/s at 20 Hz; 3 N·m / 10 N·m/rad ahead at most
    ((0.0, 9.0), Reason.POSITION | Reason.RATE, (0.0, 0.05)),  # 1 rad/s at 20 Hz
    ((np.nan, 0.0), Reason.NONFINITE, (0.0, 0.0)),
])
def test_reasons_say_what_was_changed(target, reason, command) -> None:
    got, why = Safety(robot(), RATE).limit(np.array(target), np.zeros(2), readings((0, 0, 0)))
    assert why == reason
    np.testing.assert_allclose(got, command)


def test_check_finds_each_fault() -> None:
    safety, good = Safety(robot(), RATE), readings((0, 0, 0))
    assert safety.check(good) == Reason.NONE
    assert safety.check(Readings({})) & Reason.MISSING
    assert safety.check(Readings(good.values, ages={"tip": 0.21})) == Reason.STALE
    assert safety.check(Readings(good.values, ages={"tip": 0.19})) == Reason.NONE
    assert safety.check(readings((np.nan, 0, 0))) == Reason.NONFINITE
    assert safety.check(readings((0, 0, 0), tip=(0, 0, 1.01))) == Reason.WORKSPACE


def test_stop_holds_the_measured_pose_and_never_makes_one_up() -> None:
    safety = Safety(robot(), RATE)
    np.testing.assert_array_equal(safety.stop(readings((0.3, 2.0, 0)), np.zeros(2)), [0.3, 0.8])
    np.testing.assert_array_equal(safety.stop(Readings({}), np.array([0.2, 0.1])), [0.2, 0.1])
    assert safety.stop(Readings({}), None) is None


def test_stop_of_effort_robots_is_zero_or_damping() -> None:
    np.testing.assert_array_equal(Safety(robot("effort"), RATE).stop(Readings({}), None), [0, 0])
    body = robot("effort", stop="damping", joints=[
        {"name": n, "lower": -1, "upper": 1, "velocity": 9, "effort": 1.0, "kd": 0.5} for n in "abc"])
    damped = Safety(body, RATE).stop(readings((0, 0, 0), (1.0, -4.0, 0)), None)
    np.testing.assert_allclose(damped, [-0.5, 1.0, 0.0])


def test_words_are_readable() -> None:
    assert (Reason.STALE | Reason.RATE).words() == "stale+rate"
    assert Reason.NONE.words() == "none"
