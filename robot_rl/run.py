"""A run's folder: what was asked for, the contract, the checkpoint and the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from robot_rl.log import write_atomic
from robot_rl.spec import Data, PolicySpec, SpecError


class RunConfig(Data, kw_only=True):
    """Everything that decides what a run does; the same configuration gives the same run."""

    task: str
    robot: str | None = None
    recipe: str
    options: dict[str, Any] = {}
    """Keyword arguments of the recipe that differ from its defaults."""
    defaults: dict[str, Any] = {}
    """Its other ones as they were when the run began, by which it goes on; older runs go by today's."""
    seed: int = 0
    steps: int
    learn_after: int
    evaluate_every: int
    evaluation_episodes: int
    checkpoint_every: int
    action_repeat: int = 1
    envs: int = 1
    """Environments at once, each in a process of its own where they are several."""
    capacity: int = 1_000_000
    prior: str | None = None
    """Folder of bags that part of each batch comes from."""
    prior_ratio: float | str = "0.5"
    """Which part, as `Ratio.parse` reads it; older runs wrote a number."""
    offline_updates: int = 0
    """Updates on those bags alone, before the first decision."""
    latency: str | None = None
    """File of a robot's delays that the environment draws from; the run keeps a copy, which is what it reads."""


class Run:
    """Paths and small files of a run."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.latency = self.folder / "latency.json"
        self._config, self._contract = self.folder / "run.json", self.folder / "contract.json"

    def demand_new(self) -> None:
        """Raise SpecError when a run is here already: nothing is overwritten."""
        if self._config.exists():
            raise SpecError(f"{self.folder} holds a run already; continue it with --resume or choose another --out")

    def create(self, config: RunConfig, contract: PolicySpec) -> None:
        """Start a run here. Raises SpecError when one is here already."""
        self.demand_new()
        self.folder.mkdir(parents=True, exist_ok=True)
        if config.latency is not None:
            write_atomic(self.latency, Path(config.latency).read_bytes())
        write_atomic(self._contract, contract.to_json().encode())
        self.write(config)

    def write(self, config: RunConfig) -> None:
        """Make `config` what the run was asked for."""
        write_atomic(self._config, msgspec.json.format(msgspec.json.encode(config), indent=2))

    def longer(self, steps: int) -> RunConfig:
        """The run's configuration with so many steps in all. Raises SpecError for fewer than it was asked for."""
        config = self.config
        if steps < config.steps:
            raise SpecError(f"--steps {steps}: {self.folder} was asked for {config.steps}, and takes no fewer")
        return msgspec.structs.replace(config, steps=steps)

    @property
    def config(self) -> RunConfig:
        """What the run was asked for. Raises SpecError when there is no run."""
        try:
            return msgspec.json.decode(self._config.read_bytes(), type=RunConfig)
        except FileNotFoundError as error:
            raise SpecError(f"{self.folder} is not a run: no {self._config.name}; make one with `robot-rl train`"
                            ) from error
        except msgspec.MsgspecError as error:
            raise SpecError(f"{self._config}: {error}") from error

    @property
    def contract(self) -> PolicySpec:
        """The contract that the run trains under."""
        return PolicySpec.from_json(self._contract.read_bytes(), str(self._contract))
