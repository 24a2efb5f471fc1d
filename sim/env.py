"""A task on a simulated robot as a Gymnasium environment, under the same rules as on the robot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from robot_rl.episode import Command, Episode, Outcome
from robot_rl.observe import Observation, Readings
from robot_rl.safety import Reason
from robot_rl.spec import STEERING, PolicySpec
from sim.randomize import NO_LAGS, Gap, Lags
from sim.robot import SimRobot

SETTLE_S = 0.3  # servos sag under gravity: training starts, as the robot does, after they have


class RobotEnv(gymnasium.Env[Observation, np.ndarray]):
    """Observation as of the contract, action (A,) float32 in [-1, 1], `contract.rate_hz` decisions a second.

    `latency` is a file of delays that were measured on the robot (see `robot-rl latency`), drawn anew at every step.
    `info` holds `action` (A,), the action that the sent command amounts to, `success`, `faults` and, of a step,
    `reasons` and `rewards`, what each reward term gave.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(self, contract: PolicySpec, mjcf: str, joint_noise: float = 0.05, gap: Gap | None = None,
                 render_mode: str | None = None, latency: Path | None = None) -> None:
        assert contract.robot is not None
        self.contract = contract
        self.metadata = self.metadata | {"render_fps": round(contract.rate_hz)}  # type: ignore[misc]
        self.render_mode = render_mode
        self.observation_space = _space(contract)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (contract.action_size,), np.float32)
        lags = NO_LAGS if latency is None else Lags.training(latency, contract.robot, contract.cameras)
        self._robot = SimRobot(contract.robot, mjcf, gap, contract.vision, lags)
        self.episode = Episode(contract)
        self.goal: np.ndarray | None = None
        self.steering: np.ndarray | None = None
        """The velocity that is asked for now, (3,) as of the contract."""
        self._redraw = round(contract.steering.redraw_s * contract.rate_hz) if contract.steering else 0
        self.readings: Readings
        """What the sensors said last; with `outcome` and `command`, all there is to record of a step."""
        self.outcome: Outcome
        self.command: Command
        self._joint_noise = joint_noise
        self._holds = contract.robot.command.interface == "position"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[Observation, dict]:
        """Start near the default pose with a goal drawn from the contract; a seed fixes the whole episode."""
        super().reset(seed=seed)
        self._robot.reset(self.np_random, self._joint_noise)
        if self._holds:
            self._robot.step(SETTLE_S)
        self.goal = self.contract.goal.sample(self.np_random) if self.contract.goal else None
        self._robot.show_goal(self.goal)
        self.episode.begin(self.goal)
        self._steer()
        outcome = self._look()
        return outcome.observation, self._info(outcome, np.zeros(self.contract.action_size))

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """One decision: command, let its interval pass, look."""
        command = self.command = self.episode.act(action)
        self._robot.apply(command.sent)
        self._robot.step(1.0 / self.contract.rate_hz)
        if self._redraw and self.episode.steps % self._redraw == 0:
            self._steer()
        outcome = self._look()
        info = self._info(outcome, command.action) | {"reasons": command.reasons | outcome.faults,
                                                      "rewards": self.episode.rewards}
        return outcome.observation, outcome.reward, outcome.terminated, outcome.truncated, info

    def _steer(self) -> None:
        """Draw a velocity to ask for, where the contract has one."""
        self.steering = self.contract.steering.sample(self.np_random) if self.contract.steering else None

    def _look(self) -> Outcome:
        values = self._robot.readings()
        if self.steering is not None:
            values[STEERING] = self.steering
        self.readings = Readings(values, ages=self._robot.ages())
        self.outcome = self.episode.observe(self.readings)
        return self.outcome

    def render(self) -> np.ndarray:  # type: ignore[override]
        """(H, W, 3) uint8 rgb of the robot's first camera."""
        assert self.contract.robot is not None
        return self._robot.render(self.contract.robot.cameras[0].name)

    def close(self) -> None:
        """Free what the cameras hold."""
        self._robot.close()

    def _info(self, outcome: Outcome, action: np.ndarray) -> dict[str, Any]:
        return {"action": action, "success": outcome.success, "faults": outcome.faults or Reason.NONE}


def _space(contract: PolicySpec) -> gymnasium.spaces.Space[Any]:
    state = gymnasium.spaces.Box(-np.inf, np.inf, (contract.observation_size,), np.float32)
    if contract.vision is None:
        return state
    frames = gymnasium.spaces.Box(0, 255, contract.vision.shape, np.uint8)
    return gymnasium.spaces.Dict({"state": state, "frames": frames})
