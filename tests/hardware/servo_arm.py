"""A simulated arm on serial servos, as a process of its own, for tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np


class SimServos:
    """`robot-rl sim-servos`: a context manager. The port keeps its name when the cable is pulled."""

    def __init__(self, folder: Path, robot: str = "so101", calibrated: bool = False, seed: int = 0) -> None:
        self.port, self.calibration = folder / f"tty{seed}", folder / f"arm{seed}.yaml"
        given = ["--calibration", self.calibration] if calibrated else []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "robot_rl.cli", "sim-servos", robot, "--link", self.port, "--seed", str(seed),
             *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> SimServos:
        assert "sim-servos" in self._line()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        assert self._process.wait(20) == 0
        assert not self.port.exists()

    def do(self, line: str) -> None:
        """Something that happens to the arm; returns when it has."""
        self._say(line)
        assert (said := self._line()) == "ok", said

    def where(self) -> np.ndarray:
        """(C,) rad, where the joints truly are."""
        self._say("where")
        return np.array([float(word) for word in self._line().split()])

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
