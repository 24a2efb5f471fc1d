"""Feetech's serial servo protocol (STS series): packets as bytes, the registers in use, and a bus of servos.

A packet is FF FF, id, length, instruction (or, in a reply, the status bits), parameters, checksum; numbers are
little-endian, signed ones sign and magnitude. One wire carries both directions, so one request is open at a time.
"""

from __future__ import annotations

import termios
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import serial

BAUD = 1_000_000
TICKS = 4096  # of one turn
STS3215 = 777  # model number
BROADCAST = 254
LARGEST_ID = 253
PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x82, 0x83
HEADER = b"\xff\xff"
TIMEOUT_S = 0.05  # a servo answers within 0.5 ms; adapters and a busy computer take the rest
SILENT = "no answer from servo "
QUIET_S = 0.004  # the silence that ends a disturbance
LENGTHS = 4  # of the answers to the requests before one, from which its own differs
PATIENCE_S = (TIMEOUT_S, 0.1, 1.0)  # tries of everything but the rounds of a control loop, which has its next one soon
T = TypeVar("T")


class Register(NamedTuple):
    """Where a number lies in a servo's memory."""

    address: int
    size: int
    sign: int | None = None
    """The bit that means minus."""


MODEL = Register(3, 2)
ID = Register(5, 1)
RETURN_DELAY = Register(7, 1)
MIN_POSITION, MAX_POSITION = Register(9, 2), Register(11, 2)
MAX_TEMPERATURE = Register(13, 1)
PHASE = Register(18, 1)
SHUTDOWN = Register(19, 1)
GAIN_P, GAIN_D, GAIN_I = Register(21, 1), Register(22, 1), Register(23, 1)
OFFSET = Register(31, 2, 11)
MODE = Register(33, 1)
TORQUE_ENABLE = Register(40, 1)
ACCELERATION = Register(41, 1)
GOAL_POSITION = Register(42, 2, 15)
GOAL_SPEED = Register(46, 2, 15)
TORQUE_LIMIT = Register(48, 2)
LOCK = Register(55, 1)
POSITION = Register(56, 2, 15)
SPEED = Register(58, 2, 15)
LOAD = Register(60, 2, 10)
VOLTAGE = Register(62, 1)
TEMPERATURE = Register(63, 1)
STATUS = Register(65, 1)
EEPROM_END = 40  # what lies below is kept without power, and only while LOCK is 0
PHASE_FINE_SPEED = 4  # set in PHASE: speeds count ticks/s, else 50 of them
FEEDBACK = Register(POSITION.address, STATUS.address + STATUS.size - POSITION.address)
"""Position to status, read at once."""

FAULTS = {1: "voltage", 2: "encoder", 4: "overheated", 8: "overcurrent", 32: "overload"}


def faults(status: int) -> str:
    """The words for the bits of a status, or 'none'."""
    return "+".join(word for bit, word in FAULTS.items() if status & bit) or "none"


def number(register: Register, data: bytes) -> int:
    """The number in a register's bytes."""
    value = int.from_bytes(data, "little")
    if register.sign is not None and value >> register.sign & 1:
        return -(value & ~(1 << register.sign))
    return value


def octets(register: Register, value: int) -> bytes:
    """A register's bytes for a number. Raises ValueError when it does not fit."""
    bits = register.sign if register.sign is not None else 8 * register.size
    if abs(value) >= 1 << bits or (value < 0 and register.sign is None):
        raise ValueError(f"{value} does not fit into register {register.address}")
    return (abs(value) | (1 << bits if value < 0 else 0)).to_bytes(register.size, "little")


def packet(servo: int, code: int, parameters: bytes = b"") -> bytes:
    """The bytes of a request (`code` is an instruction) or of a reply (`code` is a status)."""
    body = bytes([servo, len(parameters) + 2, code]) + parameters
    return HEADER + body + bytes([~sum(body) & 0xFF])


class Packet(NamedTuple):
    """What came in one packet."""

    servo: int
    code: int
    parameters: bytes


class Parser:
    """Packets in a stream of bytes; whatever is none is skipped and counted."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.bad = 0
        """Packets with a wrong checksum, or with an impossible length, so far."""

    def clear(self) -> None:
        """Forget the beginning of a packet."""
        self._data.clear()

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that end within `data`, after what was fed before."""
        self._data += data
        found: list[Packet] = []
        while (start := self._data.find(HEADER)) >= 0:
            del self._data[:start]
            if len(self._data) < 4:
                return found
            servo, length = self._data[2:4]
            if servo == 0xFF:  # one more byte before the header
                del self._data[:1]
                continue
            if length >= 2 and len(self._data) < length + 4:
                return found
            body = bytes(self._data[2:length + 3])
            if length < 2 or self._data[length + 3] != ~sum(body) & 0xFF:
                self.bad += 1
                del self._data[:1]
                continue
            found.append(Packet(servo, body[2], body[3:]))
            del self._data[:length + 4]
        del self._data[:-1]  # it may be half a header
        return found


LOST = (OSError, termios.error)  # what pyserial raises when the device is gone


class BusError(Exception):
    """A servo did not answer as it should; the message says which and how."""


class NoAnswer(BusError):
    """Nothing came from a servo."""


class PortLost(BusError):
    """The serial port is gone."""


class Port(Protocol):
    """What is used of serial.Serial."""

    def read(self, size: int = 1) -> bytes: ...

    def write(self, b: bytes, /) -> int | None: ...

    def reset_input_buffer(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Counts:
    """What became of the requests."""

    requests: int = 0
    failed: int = 0
    """Requests without a full and correct answer."""


class ServoBus:
    """The servos on one serial port. Everything raises BusError when an answer is missing or wrong."""

    def __init__(self, port: str, baud: int = BAUD) -> None:
        try:
            self._port: Port = serial.Serial(port, baud, timeout=0.001, write_timeout=0, exclusive=True)
        except (*LOST, ValueError) as error:
            raise PortLost(f"port {port}: {error}") from error
        self.path = port
        self.counts = Counts()
        self._parser = Parser()
        self._unsettled = False
        self._patience = TIMEOUT_S
        self._more = 0

    def close(self) -> None:
        """Give the port back."""
        self._port.close()

    def ping(self, servo: int) -> int:
        """The status bits of a servo."""
        return self._ask(packet(servo, PING), {servo: 0})[servo].code

    def present(self, ids: Iterable[int] = range(1, 33)) -> list[int]:
        """The ids by which something answers; garbled counts, since two servos may share one. Raises PortLost."""
        found = []
        for servo in ids:
            try:
                self.ping(servo)
            except NoAnswer:
                continue
            except PortLost:
                raise
            except BusError:
                pass
            found.append(servo)
        return found

    def read(self, servo: int, register: Register) -> int:
        """A register of one servo; tried a few times."""
        return self.tried(lambda: number(register, self._read(
            lambda size: packet(servo, READ, bytes([register.address, size])), [servo], register)[servo]))

    def write(self, servo: int, register: Register, value: int) -> None:
        """Write a register of one servo and read it back; tried a few times."""
        data = bytes([register.address]) + octets(register, value)
        self.tried(lambda: self._ask(packet(servo, WRITE, data), {servo: 0}))
        if (got := self.read(servo, register)) != value:
            raise BusError(f"servo {servo}: register {register.address} reads {got} after {value} was written")

    def change_id(self, servo: int, new: int) -> None:
        """Give a servo another id; it answers by one or the other. Raises BusError unless it then has the new one."""
        with suppress(BusError):
            self._ask(packet(servo, WRITE, bytes([ID.address, new])), {servo: 0})
        if (got := self.read(new, ID)) != new:
            raise BusError(f"servo {new} says that its id is {got}")

    def sync_read(self, servos: Sequence[int], register: Register) -> dict[int, bytes]:
        """The bytes of a register of several servos, in one round; all or BusError."""
        return self._read(lambda size: packet(BROADCAST, SYNC_READ, bytes([register.address, size, *servos])), servos,
                          register)

    def sync_write(self, register: Register, values: dict[int, int]) -> None:
        """Write a register of several servos at once; nobody answers."""
        parts = b"".join(bytes([servo]) + octets(register, value) for servo, value in values.items())
        self._send(packet(BROADCAST, SYNC_WRITE, bytes([register.address, register.size]) + parts))

    def tried(self, ask: Callable[[], T]) -> T:
        """The result of `ask`, called again a few times while it raises BusError."""
        try:
            for self._patience in PATIENCE_S[:-1]:
                with suppress(BusError):
                    return ask()
            self._patience = PATIENCE_S[-1]
            return ask()
        finally:
            self._patience = TIMEOUT_S

    def _read(self, request: Callable[[int], bytes], servos: Sequence[int], register: Register) -> dict[int, bytes]:
        """A register of each servo, by a request for so many bytes.

        Each request is for another number of bytes than those before: a late answer is known by its length.
        """
        size = register.size + self._more
        self._more = (self._more + 1) % LENGTHS
        answers = self._ask(request(size), dict.fromkeys(servos, size))
        return {servo: answers[servo].parameters[:register.size] for servo in servos}

    def _send(self, request: bytes) -> None:
        try:
            if self._unsettled:  # a late answer must not be taken for that of the next request
                self._quiet()
            self._port.reset_input_buffer()
            self._parser.clear()
            sent = self._port.write(request)
        except LOST as error:
            raise PortLost(f"port {self.path}: {error}") from error
        if sent != len(request):
            raise BusError(f"port {self.path}: took {sent} of {len(request)} bytes")

    def _quiet(self) -> None:
        """Wait until nothing has come for a while."""
        now = time.monotonic()
        end, silent = now + TIMEOUT_S, now + QUIET_S
        while now < min(end, silent):
            got, now = self._port.read(256), time.monotonic()
            silent = now + QUIET_S if got else silent
        self._unsettled = False

    def _ask(self, request: bytes, sizes: dict[int, int]) -> dict[int, Packet]:
        """One reply of each servo, in order, with so many parameters; late ones of earlier requests are passed over."""
        self.counts.requests += 1
        self._send(request)
        bad, order, answers = self._parser.bad, list(sizes), dict[int, Packet]()
        wanted = sum(6 + size for size in sizes.values())
        end = time.monotonic() + self._patience
        why = late = ""
        while not why and len(answers) < len(sizes):
            try:
                got = self._port.read(wanted)
            except LOST as error:
                self.counts.failed += 1
                raise PortLost(f"port {self.path}: {error}") from error
            for reply in self._parser.feed(got):
                stray = f"an answer of servo {reply.servo} that was not due"
                if len(reply.parameters) != sizes.get(reply.servo):
                    late = stray
                    continue
                if reply.servo in answers:
                    why = stray
                elif reply.servo != order[len(answers)]:
                    why = SILENT + ", ".join(map(str, order[len(answers):order.index(reply.servo)]))
                if why:
                    break
                answers[reply.servo] = reply
            if self._parser.bad > bad:
                why = "bytes that are no packet"
            elif time.monotonic() > end:
                why = late or SILENT + ", ".join(str(s) for s in order if s not in answers)
        if why:
            self.counts.failed += 1
            self._unsettled = True
            raise (NoAnswer if why.startswith(SILENT) else BusError)(f"port {self.path}: {why}")
        return answers
