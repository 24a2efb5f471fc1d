"""What is asked of a process beside its control loop, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from hardware.bus import Bus

POLL_S = 0.05
PERIOD_S = 1.0

Answers = Mapping[str, Callable[[], str]]
"""By service: what does it, returns the answer, and raises to refuse."""


class Administration(threading.Thread):
    """Answers calls of std_srvs/Trigger services, and tells once a second how things are. A context manager."""

    def __init__(self, bus: Bus, answers: Answers, tell: Callable[[], None],
                 tend: Callable[[], None] = lambda: None, first: Callable[[], str] = str) -> None:
        """`tell` is called once a second, `tend` at every look, `first` once."""
        super().__init__(daemon=True, name="administration")
        self._services = [(bus.service(name), call) for name, call in answers.items()]
        self._tell, self._tend, self._first = tell, tend, first
        self._over = threading.Event()

    def __enter__(self) -> Administration:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()
        for service, _ in self._services:
            service.close()

    def run(self) -> None:
        """Until the context is left."""
        answer(self._first)
        due = time.monotonic()
        while not self._over.wait(POLL_S):
            for service, call in self._services:
                while (request := service.take()) is not None:
                    request.reply(*answer(call))
            self._tend()
            if time.monotonic() >= due:
                due += PERIOD_S
                self._tell()


def answer(call: Callable[[], str]) -> tuple[bool, str]:
    """(success, message) of a Trigger: a caller is told of every error, and nothing here ends by one."""
    try:
        return True, call()
    except Exception as error:
        return False, str(error) or type(error).__name__
