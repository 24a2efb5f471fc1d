"""Swing-up tasks: bring a pendulum upright and keep it there."""

from __future__ import annotations

from robot_rl.spec import ActionSpec, PolicySpec, Reward, RobotSpec, Success, Term, policy_spec
from sim import task

LIMIT_S = 10.0
UPRIGHT = 0.95  # cosine of the largest angle (18 degrees) that counts as upright


@task("furuta-swingup", robot="furuta")
def swingup(robot: RobotSpec) -> PolicySpec:
    """From hanging to upright by the arm's torque; upright for the last half of the episode is success."""
    upright = Term(name="upright", source="joints.position", joints=("pendulum",), transform="cos")
    torque = robot.actuated[0].effort
    return policy_spec(
        robot, task="furuta-swingup", rate_hz=100, time_limit_s=LIMIT_S,
        observations=(
            Term(name="arm", source="joints.position", joints=("arm",), unit="rad"),
            Term(name="pendulum", source="joints.position", joints=("pendulum",), transform="sin_cos"),
            Term(name="arm_speed", source="joints.velocity", joints=("arm",), scale=0.1, unit="rad/s"),
            Term(name="pendulum_speed", source="joints.velocity", joints=("pendulum",), scale=0.1, unit="rad/s"),
            Term(name="action", source="action"),
        ),
        action=ActionSpec(kind="absolute", joints=("arm",), scale=(torque,)),
        rewards=(
            Reward(term=upright, weight=0.5),
            Reward(term=upright, weight=0.5, shape="tolerance", lower=1.0, upper=1.0, margin=0.3),
            Reward(term=Term(name="arm", source="joints.position", joints=("arm",), transform="square"), weight=-0.1),
            Reward(term=Term(name="arm_speed", source="joints.velocity", joints=("arm",), transform="square"),
                   weight=-0.0005),
            Reward(term=Term(name="effort", source="action", transform="square"), weight=-0.02),
        ),
        success=Success(term=upright, above=UPRIGHT, hold_s=LIMIT_S / 2, ends_episode=False),
    )
