"""Small robots and contracts that tests share."""

from __future__ import annotations

from typing import Any

import msgspec

from robot_rl.spec import ActionSpec, Goal, PolicySpec, Reward, RobotSpec, Success, Term, policy_spec

CAMERAS = [{"name": name, "topic": f"{name}/image_raw", "width": 8, "height": 6, "rate_hz": 20, "frame": name,
            "stale_after_s": 0.3} for name in ("front", "wrist")]


def robot(interface: str = "position", **changes: Any) -> RobotSpec:
    """Three joints, the last one passive, with a pose sensor."""
    data = {
        "robot": "triple", "mjcf": "triple.xml", "stop": "hold" if interface == "position" else "zero",
        "joints": [
            {"name": "a", "lower": -1.0, "upper": 1.0, "velocity": 2.0, "effort": 3.0, "default": 0.1, "kp": 10.0},
            {"name": "b", "lower": -0.5, "upper": 0.8, "velocity": 1.0, "effort": 1.0, "acceleration": 20.0},
            {"name": "c", "velocity": 50.0, "effort": 1.0, "actuated": False},
        ],
        "command": {"interface": interface, "topic": "commands"},
        "sensors": [
            {"name": "joints", "topic": "joint_states", "type": "sensor_msgs/msg/JointState", "rate_hz": 100,
             "stale_after_s": 0.2},
            {"name": "tip", "topic": "tip_pose", "type": "geometry_msgs/msg/PoseStamped", "rate_hz": 100,
             "stale_after_s": 0.2},
        ],
        "workspace": {"sensor": "tip", "lower": [-1, -1, -1], "upper": [1, 1, 1]},
    }
    return msgspec.convert(data | changes, RobotSpec)


def contract(interface: str = "position", kind: str = "delta", body: RobotSpec | None = None,
             **changes: Any) -> PolicySpec:
    """Reach with the robot above, or with `body`: every kind of term is in it."""
    body = body or robot(interface)
    distance = Term(name="distance", source="goal.position", minus="tip.position", transform="norm", unit="m")
    given: dict[str, Any] = {
        "task": "triple-reach", "rate_hz": 20, "time_limit_s": 1.0,
        "observations": (
            Term(name="joints", source="joints.position", unit="rad"),
            Term(name="b_first", source="joints.velocity", joints=("b", "a"), scale=0.5),
            Term(name="turn", source="joints.position", joints=("c",), transform="sin_cos"),
            Term(name="action", source="action", history=3),
            Term(name="moved", source="command", transform="change"),
            Term(name="hold", source="hold", unit="s"),
            distance,
        ),
        "action": ActionSpec(kind=kind, joints=("b", "a"), scale=(0.04, 0.08)),
        "rewards": (Reward(term=distance, weight=1.0, shape="tolerance", upper=0.1, margin=0.5),
                    Reward(term=Term(name="effort", source="action", transform="square"), weight=-0.1)),
        "success": Success(term=distance, below=0.1, hold_s=0.1, ends_episode=True, bonus=5.0),
        "goal": Goal(lower=(0.1, -1.0, 0.0), upper=(0.3, 1.0, 0.2)),
    }
    return policy_spec(body, **(given | changes))
