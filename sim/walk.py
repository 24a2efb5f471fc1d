"""Walking tasks: a quadruped goes as fast, and turns as fast, as it is told. With a script that shows how."""

from __future__ import annotations

import mujoco
import numpy as np

from robot_rl.act import ActionMap
from robot_rl.observe import Values
from robot_rl.spec import ActionSpec, Failure, PolicySpec, Reward, RobotSpec, Steering, Term, policy_spec
from sim import task

RATE_HZ = 50.0
LIMIT_S = 20.0
REACH_RAD = {"hip": 0.25, "thigh": 0.5, "calf": 0.5}  # of a joint's target about its default pose, either way
FALLEN = -0.5  # of gravity along the trunk's own z: it leans by 60 degrees

STRIDE_S = 2 / 7  # of a leg, from one step to the next; policies see where in it they are
SPEED = "odometry.linear_velocity"
UPRIGHT = Term(name="upright", source="imu.orientation", transform="down", axes=("z",))  # -1 when it is


@task("quadruped-walk", robot="quadruped")
def walk(robot: RobotSpec) -> PolicySpec:
    """Follow a velocity that changes every 5 s, and stay on the feet; position targets at 50 Hz."""
    joints = tuple(j.name for j in robot.actuated)
    knees = tuple(name for name in joints if "calf" in name)  # one that crouches does not fall, nor does it walk
    defaults = tuple(j.default for j in robot.actuated)
    reach = tuple(REACH_RAD[name.split("_")[1]] for name in joints)
    return policy_spec(
        robot, task="quadruped-walk", rate_hz=RATE_HZ, time_limit_s=LIMIT_S,
        observations=(
            Term(name="steering", source="steering", unit="m/s, m/s, rad/s"),
            Term(name="down", source="imu.orientation", transform="down", history=3),
            Term(name="speed", source=SPEED, history=3, unit="m/s"),
            Term(name="turn", source="imu.angular_velocity", scale=0.25, history=3, unit="rad/s"),
            Term(name="joints", source="joints.position", history=3, unit="rad"),
            Term(name="speeds", source="joints.velocity", scale=0.05, unit="rad/s"),
            Term(name="action", source="action", history=2),
            Term(name="stride", source="clock", period_s=STRIDE_S, transform="sin_cos"),
        ),
        action=ActionSpec(kind="absolute", joints=joints, scale=reach, offset=defaults),
        rewards=(
            # what is missed costs in proportion: a tolerance is flat far from what is asked for, where standing pays
            Reward(term=Term(name="velocity", source="steering", minus=SPEED, axes=("x", "y"), transform="norm"),
                   weight=-1.5),
            Reward(term=Term(name="turning", source="steering", minus="imu.angular_velocity", axes=("z",),
                             transform="norm"), weight=-0.4),
            Reward(term=UPRIGHT, weight=0.8, shape="tolerance", lower=-1.0, upper=-0.98, margin=0.3),
            Reward(term=Term(name="height", source="joints.position", joints=knees), weight=0.1, shape="tolerance",
                   lower=-1.9, upper=-1.2, margin=0.4),
            Reward(term=Term(name="bounce", source=SPEED, axes=("z",), transform="square"), weight=-0.3),
            Reward(term=Term(name="sway", source="imu.angular_velocity", axes=("x", "y"), transform="square"),
                   weight=-0.01),
            Reward(term=Term(name="jerk", source="action", transform="change"), weight=-0.015, shape="miss",
                   margin=1.0),
        ),
        failure=Failure(term=UPRIGHT, above=FALLEN),
        steering=Steering(lower=(-0.4, -0.3, -0.8), upper=(0.8, 0.3, 0.8)),
    )


LEGS = ("FL", "FR", "RL", "RR")
LINK_M = 0.213  # thigh and calf are as long
AHEAD_M, ASIDE_M = np.array([0.19, 0.19, -0.19, -0.19]), np.array([0.14, -0.14, 0.14, -0.14])  # feet from the trunk
LIFT_M, PRESS_M = 0.08, 0.03  # how high, and how far below the ground, feet aim
LEAN_S = 0.15  # feet stand so much further ahead, m, for every m/s too fast
MEMORY = 0.9  # of what was measured, from one decision to the next
NOISE = 0.05  # standard deviation of every action


class Trotter:
    """A trot: diagonal legs step together, as far as the velocity asks for, and lean against what it misses."""

    def __init__(self, contract: PolicySpec, model: mujoco.MjModel) -> None:
        assert contract.robot is not None and contract.action is not None
        joints = contract.robot.actuated
        names, defaults = [j.name for j in joints], np.array([j.default for j in joints])
        self._map = ActionMap(contract.action, contract.robot)
        self._places = np.array([[names.index(f"{leg}_{part}_joint") for leg in LEGS] for part in REACH_RAD])
        self._hips, thighs, calves = defaults[self._places]
        self._x = -LINK_M * (np.sin(thighs) + np.sin(thighs + calves))
        self._z = -LINK_M * (np.cos(thighs) + np.cos(thighs + calves))
        self._stride = 1 / (STRIDE_S * contract.rate_hz)

    def begin(self, values: Values, rng: np.random.Generator) -> None:
        """Start an episode; `rng` draws what differs from one demonstration to the next."""
        self._rng, self._phase, self._speed = rng, 0.0, np.zeros(2)

    def act(self, values: Values, last: np.ndarray) -> np.ndarray:
        """The action (A,) in [-1, 1]."""
        asked = values["steering"]
        self._speed += (1 - MEMORY) * (values["odometry.linear_velocity"][:2] - self._speed)
        lean = LEAN_S * (self._speed - asked[:2])
        self._phase = (self._phase + self._stride) % 1.0
        phase = (self._phase + np.array([0.0, 0.5, 0.5, 0.0])) % 1.0
        swing = np.maximum(0.0, 2 * phase - 1)  # of a foot in the air, 0 to 1; on the ground 0
        lift = LIFT_M * np.sin(np.pi * swing)
        way = np.where(phase < 0.5, 0.5 - 2 * phase, swing - 0.5)  # of its stride, from the middle
        if not asked.any():
            lift, way = np.zeros(4), np.zeros(4)
        step = 0.5 * STRIDE_S
        x = self._x + way * (asked[0] - asked[2] * ASIDE_M) * step + lean[0]
        y = way * (asked[1] + asked[2] * AHEAD_M) * step + lean[1]
        z = self._z + np.where(phase < 0.5, -PRESS_M, lift)
        command = np.empty(len(last))
        calves = -np.arccos(np.clip((x * x + z * z) / (2 * LINK_M**2) - 1, -1, 1))
        command[self._places] = self._hips + np.arctan2(y, -z), np.arctan2(-x, -z) - calves / 2, calves
        action = self._map.inverse(command, last)
        return np.clip(action + self._rng.normal(0.0, NOISE, len(action)), -1.0, 1.0)
