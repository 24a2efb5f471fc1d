"""Lifting tasks: grasp a cube that lies anywhere before the arm, and lift it. With a script that shows how."""

from __future__ import annotations

import mujoco
import numpy as np

from hardware.messages import wxyz
from robot_rl.act import ActionMap
from robot_rl.observe import Values
from robot_rl.spec import ActionSpec, PolicySpec, Reward, RobotSpec, Success, Term, Vision, policy_spec
from sim import task
from sim.kinematics import Kinematics

HALF_M = 0.015  # of the cube's edge
RESTING_M = 0.0126  # height of its centre on the table, in the base frame
LIFTED_M = RESTING_M + 0.05
HOLD_S = 0.25
LIMIT_S = 5.0
STEP_RAD = 0.12  # largest change of a joint target in one decision (2.4 rad/s at 20 Hz)
GRIP_STEP_RAD = 0.2
ARM = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
GRIPPER = "gripper"

HEIGHT = Term(name="height", source="cube.position", axes=("z",), unit="m")
APART = Term(name="apart", source="cube.position", minus="tip.position", transform="norm", unit="m")
WAY = (  # costs, not gains: an episode that success ends must not be worth less than one that hovers nearby
    Reward(term=APART, weight=-0.3, shape="miss", upper=0.02, margin=0.15),
    Reward(term=HEIGHT, weight=-0.7, shape="miss", lower=LIFTED_M, upper=1.0, margin=0.05),
    Reward(term=Term(name="effort", source="action", transform="square"), weight=-0.005),
)

OWN = (
    Term(name="joints", source="joints.position", unit="rad"),
    Term(name="speeds", source="joints.velocity", scale=0.2, unit="rad/s"),
    Term(name="lead", source="command", minus="joints.position", scale=5.0, unit="rad"),
    Term(name="action", source="action"),
    Term(name="tip", source="tip.position", scale=5.0, unit="m"),
    Term(name="tip_turn", source="tip.orientation"),
)
CUBE = (
    Term(name="cube", source="cube.position", scale=5.0, unit="m"),
    Term(name="cube_turn", source="cube.orientation"),
    Term(name="to_cube", source="cube.position", minus="tip.position", scale=10.0, unit="m"),
)
HOLD = Term(name="hold", source="hold", scale=4.0, unit="s")
EYES = Vision(cameras=("front", "wrist"), height=64, width=64)
BONUS = 10.0


def lift(robot: RobotSpec, name: str, rewards: tuple[Reward, ...] = (), vision: Vision | None = None) -> PolicySpec:
    """Cube 5 cm above the table for 0.25 s, in at most 5 s, from a random pose; all five joints and the gripper.

    With vision the policy is told of itself only, and has to see the cube; reward and success are told of it.
    """
    return policy_spec(
        robot, task=name, rate_hz=20, time_limit_s=LIMIT_S, vision=vision,
        observations=(*OWN, *(CUBE if vision is None else ()), HOLD),
        action=ActionSpec(kind="delta", joints=(*ARM, GRIPPER), scale=(STEP_RAD,) * len(ARM) + (GRIP_STEP_RAD,)),
        rewards=rewards,
        success=Success(term=HEIGHT, above=LIFTED_M, hold_s=HOLD_S, ends_episode=True, bonus=BONUS),
    )


@task("so101-lift", robot="so101-cube")
def sparse(robot: RobotSpec) -> PolicySpec:
    """Reward for success and for nothing else: to be learned from demonstrations."""
    return lift(robot, "so101-lift")


@task("so101-lift-dense", robot="so101-cube")
def dense(robot: RobotSpec) -> PolicySpec:
    """Costs of the way from the tip to the cube and from the cube to its height, and the bonus."""
    return lift(robot, "so101-lift-dense", WAY)


@task("so101-lift-camera", robot="so101-cube")
def sparse_camera(robot: RobotSpec) -> PolicySpec:
    """The sparse task, through two cameras."""
    return lift(robot, "so101-lift-camera", vision=EYES)


@task("so101-lift-camera-dense", robot="so101-cube")
def dense_camera(robot: RobotSpec) -> PolicySpec:
    """The dense task, through two cameras."""
    return lift(robot, "so101-lift-camera-dense", WAY, EYES)


OPEN_RAD, CLOSED_RAD = 0.7, -0.17
CLEAR_M = 0.007  # between the fixed finger and the cube before the jaw closes
ABOVE_M, AT_M, RAISED_M = 0.06, 0.004, 0.075  # of the tip: over the cube, at the table, and once more with the cube
AXIS_X_M = 0.0388  # of the pan joint, in the base frame
SPEED_M_S, TURN_RAD_S = 0.25, 2.0
CLOSING_S = 0.35
GAIN = 0.25  # share of the tip's error that is made up in one decision
NOISE = 0.05  # standard deviation of every action


class Lifter:
    """Over the cube, down, close, up: a script that sees what a policy sees and answers with actions.

    Readings are the robot's; the model serves for kinematics and weights only, and is not the one that moves.
    """

    def __init__(self, contract: PolicySpec, model: mujoco.MjModel) -> None:
        assert contract.robot is not None and contract.action is not None
        robot = contract.robot
        self._map = ActionMap(contract.action, robot)
        self._arm = Kinematics(model, "tip", ARM)
        self._index = np.array([robot.names.index(name) for name in ARM])
        self._gripper = robot.names.index(GRIPPER)
        self._gain = np.array([j.kp for j in robot.joints])[self._index]
        self._period = 1.0 / contract.rate_hz

    def begin(self, values: Values, rng: np.random.Generator) -> None:
        """Plan an episode from its first readings; `rng` draws what differs from one demonstration to the next."""
        self._rng = rng
        self._joints = values["joints.position"][self._index]
        cube, turn = values["cube.position"], values["cube.orientation"]
        axes = self._grasp_axes(cube, turn)
        side = -axes[:, 2] * (HALF_M + CLEAR_M + rng.uniform(-0.002, 0.002))
        at = cube + side + rng.normal(0.0, 0.001, 3)
        at[2] = cube[2] - RESTING_M + AT_M + rng.uniform(0.0, 0.004)
        over, raised = at.copy(), at.copy()
        over[2] += ABOVE_M - AT_M + rng.uniform(-0.01, 0.01)
        raised[2] += RAISED_M
        self._wanted, _ = self._arm.pose(self._joints)
        self._axes, self._missing = axes, np.zeros(3)
        self._plan = [(over, OPEN_RAD, 0.0), (at, OPEN_RAD, 0.0), (at, CLOSED_RAD, CLOSING_S),
                      (raised, CLOSED_RAD, LIMIT_S)]
        self._stayed = 0.0

    def act(self, values: Values, last: np.ndarray) -> np.ndarray:
        """The action (A,) in [-1, 1] after the last sent command (C,)."""
        place, grip, stay = self._plan[0]
        way = place - self._wanted
        length = float(np.linalg.norm(way))
        self._wanted = place if length == 0 else self._wanted + way * min(1.0, SPEED_M_S * self._period / length)
        joints = self._arm.solve(self._joints, self._wanted + self._missing, self._axes)
        most = TURN_RAD_S * self._period
        self._joints = np.clip(joints, self._joints - most, self._joints + most)
        arrived = length < 1e-9 and bool(np.all(np.abs(joints - self._joints) < 1e-3))
        error = place - values["tip.position"]
        if length < 1e-9:  # gravity is reckoned with, friction and play are not
            self._missing = np.clip(self._missing + GAIN * error, -0.02, 0.02)
        command = last.copy()
        command[self._index] = self._joints + self._arm.gravity(self._joints) / self._gain
        command[self._gripper] = grip
        self._stayed += self._period if arrived else 0.0
        if arrived and self._stayed > stay and (stay > 0 or np.linalg.norm(error) < 0.004):
            self._plan, self._stayed = self._plan[1:], 0.0
        action = self._map.inverse(command, last)
        return np.clip(action + self._rng.normal(0.0, NOISE, len(action)), -1.0, 1.0)

    def _grasp_axes(self, cube: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """(3, 3) the tip's axes in columns: fingers down, jaws along the cube's edges, the jaw that moves outside."""
        outward = np.array([cube[0] - AXIS_X_M, cube[1]])
        sides = np.empty(9)
        mujoco.mju_quat2Mat(sides, wxyz(turn))
        level = sides.reshape(3, 3)[:2]  # (2, 3) how far each of its sides points along x and y
        along = np.hstack([level, -level])
        best = along[:, np.argmax(outward @ along)]
        z = np.array([*best / np.linalg.norm(best), 0.0])
        x = np.array([0.0, 0.0, -1.0])
        return np.column_stack([x, np.cross(z, x), z])
