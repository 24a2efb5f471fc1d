"""Walking tasks: a quadruped goes as fast, and turns as fast, as it is told."""

from __future__ import annotations

from robot_rl.spec import ActionSpec, Failure, PolicySpec, Reward, RobotSpec, Steering, Term, policy_spec
from sim import task

RATE_HZ = 50.0
LIMIT_S = 20.0
REACH_RAD = {"hip": 0.25, "thigh": 0.5, "calf": 0.5}  # of a joint's target about its default pose, either way
FALLEN = -0.5  # of gravity along the trunk's own z: it leans by 60 degrees

SPEED = "truth.imu.linear_velocity"  # no sensor of the robot tells it
UPRIGHT = Term(name="upright", source="imu.orientation", transform="down", axes=("z",))  # -1 when it is


@task("quadruped-walk", robot="quadruped")
def walk(robot: RobotSpec) -> PolicySpec:
    """Follow a velocity that changes every 5 s, and stay on the feet; position targets at 50 Hz."""
    joints = tuple(j.name for j in robot.actuated)
    defaults = tuple(j.default for j in robot.actuated)
    reach = tuple(REACH_RAD[name.split("_")[1]] for name in joints)
    return policy_spec(
        robot, task="quadruped-walk", rate_hz=RATE_HZ, time_limit_s=LIMIT_S,
        observations=(
            Term(name="steering", source="steering", unit="m/s, m/s, rad/s"),
            Term(name="down", source="imu.orientation", transform="down", history=3),
            Term(name="turn", source="imu.angular_velocity", scale=0.25, history=3, unit="rad/s"),
            Term(name="joints", source="joints.position", history=3, unit="rad"),
            Term(name="speeds", source="joints.velocity", scale=0.05, unit="rad/s"),
            Term(name="action", source="action", history=2),
        ),
        action=ActionSpec(kind="absolute", joints=joints, scale=reach, offset=defaults),
        rewards=(
            Reward(term=Term(name="velocity", source="steering", minus=SPEED, axes=("x", "y"), transform="norm"),
                   weight=1.0, shape="tolerance", margin=0.6),
            Reward(term=Term(name="turning", source="steering", minus="imu.angular_velocity", axes=("z",)),
                   weight=0.4, shape="tolerance", margin=0.8),
            Reward(term=UPRIGHT, weight=0.2, shape="tolerance", lower=-1.0, upper=-0.98, margin=0.3),
            Reward(term=Term(name="bounce", source=SPEED, axes=("z",), transform="square"), weight=-0.3),
            Reward(term=Term(name="sway", source="imu.angular_velocity", axes=("x", "y"), transform="square"),
                   weight=-0.01),
            Reward(term=Term(name="jerk", source="action", transform="change"), weight=-0.015, shape="miss",
                   margin=1.0),
        ),
        failure=Failure(term=UPRIGHT, above=FALLEN),
        steering=Steering(lower=(-0.4, -0.3, -0.8), upper=(0.8, 0.3, 0.8)),
    )
