"""Reaching tasks: bring an arm's tip to a point and keep it there."""

from __future__ import annotations

from robot_rl.spec import ActionSpec, Goal, PolicySpec, Reward, RobotSpec, Success, Term, policy_spec
from sim import task

RADIUS_M = 0.01
HOLD_S = 0.5
STEP_RAD = 0.12  # largest change of a joint target in one decision (2.4 rad/s at 20 Hz)
ARM = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")


@task("so101-reach", robot="so101")
def reach(robot: RobotSpec) -> PolicySpec:
    """Tip within 1 cm of a random goal for 0.5 s, in at most 3 s; the gripper is held."""
    distance = Term(name="distance", source="goal.position", minus="tip.position", transform="norm", unit="m")
    effort = Term(name="effort", source="action", transform="square")
    return policy_spec(
        robot, task="so101-reach", rate_hz=20, time_limit_s=3.0,
        observations=(
            Term(name="joints", source="joints.position", joints=ARM, unit="rad"),
            Term(name="speeds", source="joints.velocity", joints=ARM, scale=0.2, unit="rad/s"),
            Term(name="lead", source="command", minus="joints.position", joints=ARM, scale=5.0, unit="rad"),
            Term(name="action", source="action", history=2),
            Term(name="error", source="goal.position", minus="tip.position", scale=10.0, unit="m"),
            Term(name="tip", source="tip.position", scale=5.0, unit="m"),
            Term(name="hold", source="hold", unit="s"),
        ),
        action=ActionSpec(kind="delta", joints=ARM, scale=(STEP_RAD,) * len(ARM)),
        rewards=(
            # costs, not gains: an episode that success ends must not be worth less than one that hovers nearby
            Reward(term=distance, weight=-0.5, shape="miss", margin=0.3),
            Reward(term=distance, weight=-0.5, shape="miss", upper=0.005, margin=0.03),
            Reward(term=effort, weight=-0.01),
        ),
        success=Success(term=distance, below=RADIUS_M, hold_s=HOLD_S, ends_episode=True, bonus=5.0),
        goal=Goal(lower=(0.18, -1.2, 0.06), upper=(0.34, 1.2, 0.28)),
    )
