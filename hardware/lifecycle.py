"""The life cycle of a managed process: ROS 2's states and transitions, without ROS 2; both backends use this one."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol


class State(Enum):
    """Where a managed process stands between transitions."""

    UNCONFIGURED = "unconfigured"
    INACTIVE = "inactive"
    ACTIVE = "active"
    FINALIZED = "finalized"


class Managed(Protocol):
    """What a life cycle manages. Each may raise to refuse, and the state then stays."""

    def configure(self) -> None:
        """Load and check everything; nothing moves."""

    def activate(self) -> None:
        """Begin to act."""

    def deactivate(self) -> None:
        """Stop safely, then be silent."""

    def cleanup(self) -> None:
        """Let go of everything that `configure` loaded."""


TRANSITIONS = {
    "configure": ((State.UNCONFIGURED,), State.INACTIVE),
    "activate": ((State.INACTIVE,), State.ACTIVE),
    "deactivate": ((State.ACTIVE,), State.INACTIVE),
    "cleanup": ((State.INACTIVE,), State.UNCONFIGURED),
    "shutdown": ((State.UNCONFIGURED, State.INACTIVE, State.ACTIVE), State.FINALIZED),
}
"""By transition: from where, and to where."""


class LifeCycle:
    """A managed process with its state. Transitions are asked for in one thread."""

    def __init__(self, managed: Managed) -> None:
        self._managed = managed
        self.state = State.UNCONFIGURED
        self.error = ""
        """Why the last transition was refused, or what stopped the robot; '' once it is configured or active anew."""

    def go(self, transition: str) -> bool:
        """Do a transition; False when it was refused, of which `error` tells."""
        before, after = TRANSITIONS[transition]
        try:
            if self.state not in before:
                raise ValueError(f"it is {self.state.value}")
            self._do(transition)
        except Exception as error:  # whatever it is, the process lives on and tells
            self.error = f"{transition}: {error or type(error).__name__}"
            return False
        self.state = after
        if transition in ("configure", "activate"):
            self.error = ""
        return True

    def _do(self, transition: str) -> None:
        if transition != "shutdown":
            getattr(self._managed, transition)()
            return
        if self.state is State.ACTIVE:
            self._managed.deactivate()
        if self.state is not State.UNCONFIGURED:
            self._managed.cleanup()


class Operator:
    """What an operator asks of a life cycle: start, stop. `go` does a transition, here or in ROS 2's own machine."""

    def __init__(self, life: LifeCycle, go: Callable[[str], bool]) -> None:
        self._life, self._go = life, go

    def start(self) -> str:
        """Configure where that is still to be done, and activate. Raises RuntimeError with the reason against it."""
        if self._life.state is State.UNCONFIGURED:
            self._must("configure")
        self._must("activate")
        return self._life.state.value

    def stop(self) -> str:
        """Deactivate. A process that is not active has nothing to stop."""
        if self._life.state is State.ACTIVE:
            self._must("deactivate")
        return self._life.state.value

    def fail(self, reason: str) -> None:
        """The robot was stopped for a reason: inactive from now on."""
        if self._life.state is State.ACTIVE:
            self._go("deactivate")
        self._life.error = reason

    def _must(self, transition: str) -> None:
        if not self._go(transition):
            raise RuntimeError(self._life.error or f"{transition}: refused")
