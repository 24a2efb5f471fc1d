"""The other process of the bus tests: does on its own bus what it is told over a pipe."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

from hardware.bus import Bus, connect


class Peer:
    """A process with a bus. `ask` waits for what it returns; `tell` does not, `answer` does later."""

    def __init__(self, kind: str, domain: int, namespace: str = "arm") -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_obey, args=(theirs, kind, domain, namespace), daemon=True)
        self.process.start()

    def ask(self, verb: str, *args: Any) -> Any:
        self.tell(verb, *args)
        return self.answer()

    def tell(self, verb: str, *args: Any) -> None:
        self.pipe.send((verb, *args))

    def answer(self) -> Any:
        assert self.pipe.poll(30), "the other process does not answer"
        value = self.pipe.recv()
        if isinstance(value, Exception):
            raise value
        return value

    def stop(self) -> int | None:
        """End it in order; returns its exit status."""
        self.tell("stop")
        self.process.join(10)
        return self.process.exitcode


class Verbs:
    """What the other process can do. Ends are kept by the key that the test gives them."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.ends: dict[str, Any] = {}

    def publisher(self, key: str, *args: Any) -> None:
        self.ends[key] = self.bus.publisher(*args)

    def reader(self, key: str, *args: Any) -> None:
        self.ends[key] = self.bus.reader(*args)

    def publish(self, key: str, *messages: bytes) -> list[int]:
        return [self.ends[key].publish(data) for data in messages]

    def on(self, key: str, method: str, *args: Any) -> Any:
        return getattr(self.ends[key], method)(*args)

    def serve(self, name: str, answers: list[tuple[float, bool, str]]) -> int:
        """Answer as many calls as there are answers (delay s, success, message); returns how many came in 5 s."""
        service = self.ends.setdefault(f"service {name}", self.bus.service(name))
        end = time.monotonic() + 5
        for done, (delay, success, message) in enumerate(answers):
            while (request := service.take()) is None:
                if time.monotonic() > end:
                    return done
                time.sleep(0.001)
            time.sleep(delay)
            request.reply(success, message)
        return len(answers)

    def call(self, name: str, timeout_s: float) -> tuple[bool, str]:
        return self.bus.call(name, timeout_s)


def _obey(pipe: Connection, kind: str, domain: int, namespace: str) -> None:
    with connect(kind, "peer", namespace, domain, "lo") as bus:  # type: ignore[arg-type]
        verbs = Verbs(bus)
        while (order := pipe.recv())[0] != "stop":
            try:
                pipe.send(getattr(verbs, order[0])(*order[1:]))
            except Exception as error:  # told to the test, which fails with it
                pipe.send(error)
