"""The servo protocol: bytes as the maker documents them, and a parser and a bus that no bytes can upset."""

from __future__ import annotations

import os
import random
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware import feetech
from hardware.feetech import BusError, NoAnswer, Packet, Parser, PortLost, Register, ServoBus, packet

packets = st.builds(Packet, st.integers(0, 253), st.integers(0, 255), st.binary(max_size=20))


def test_packets_are_those_of_the_manual() -> None:
    assert packet(1, feetech.PING).hex(" ") == "ff ff 01 02 01 fb"
    assert packet(1, feetech.READ, bytes([0x38, 2])).hex(" ") == "ff ff 01 04 02 38 02 be"
    assert packet(254, feetech.WRITE, bytes([5, 1])).hex(" ") == "ff ff fe 04 03 05 01 f4"


@given(st.integers(-4095, 4095))
def test_signed_numbers_come_back(value: int) -> None:
    assert feetech.number(feetech.SPEED, feetech.octets(feetech.SPEED, value)) == value


def test_numbers_are_sign_and_magnitude() -> None:
    assert feetech.octets(feetech.OFFSET, -1) == bytes([1, 8])
    assert feetech.number(feetech.LOAD, bytes([10, 4])) == -10


@pytest.mark.parametrize("register, value", [(feetech.OFFSET, 2048), (feetech.OFFSET, -2048), (feetech.ID, 256),
                                             (feetech.TORQUE_LIMIT, -1)])
def test_a_number_that_does_not_fit_is_refused(register: Register, value: int) -> None:
    with pytest.raises(ValueError, match=f"{value} does not fit"):
        feetech.octets(register, value)


@given(st.lists(packets, max_size=6), st.randoms())
def test_packets_come_out_however_they_arrive(sent: list[Packet], chance: random.Random) -> None:
    data = b"".join(packet(*one) for one in sent)
    parser, found = Parser(), []
    while data:
        size = chance.randint(1, len(data))
        found += parser.feed(data[:size])
        data = data[size:]
    assert found == sent
    assert parser.bad == 0


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_bytes_upset_the_parser(pieces: list[bytes]) -> None:
    parser = Parser()
    for piece in pieces:
        for found in parser.feed(piece):
            assert packet(*found) in b"".join(pieces)  # nothing is made up
    parser.clear()
    assert parser.feed(packet(3, 0, b"\x01")) == [Packet(3, 0, b"\x01")]


@given(packets, st.data())
def test_a_packet_with_one_wrong_byte_is_none(sent: Packet, data: st.DataObject) -> None:
    good = packet(*sent)
    at = data.draw(st.integers(2, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1:]
    assert sent not in Parser().feed(bad)


@contextmanager
def far_end(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A port whose other end says `answer(request)` to each request."""
    main, port = os.openpty()
    tty.setraw(port)

    def serve() -> None:
        while True:
            try:
                request = os.read(main, 4096)
            except OSError:
                return
            if request and (said := answer(request)):
                os.write(main, said)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield os.ttyname(port)
    os.close(port)  # the far end then reads its end
    thread.join(5)
    os.close(main)


def test_random_answers_never_hang_the_bus_nor_pass_for_true_ones() -> None:
    chance = random.Random(0)
    with far_end(lambda request: chance.randbytes(chance.randint(0, 60))) as path:
        bus = ServoBus(path)
        began = time.monotonic()
        for _ in range(30):
            with pytest.raises(BusError):
                bus.sync_read([1, 2, 3], feetech.FEEDBACK)
        assert time.monotonic() - began < 20
        assert bus.counts.failed == bus.counts.requests == 30
        bus.close()


def reply(servo: int, *data: int) -> bytes:
    return packet(servo, 0, bytes(data))


@pytest.mark.parametrize("said, words", [
    (reply(1, 5, 0) + reply(2, 6, 0)[:-1] + b"\x00", "no packet"),
    (reply(1, 5, 0), "no answer from servo 2"),
    (reply(2, 6, 0) + reply(1, 5, 0), "no answer from servo 1$"),
    (reply(1, 5, 0) + reply(1, 5, 0) + reply(2, 6, 0), "servo 1 that was not due"),
    (reply(1, 5, 0) + reply(2, 6), "servo 2 that was not due"),
    (reply(1, 5, 0) + reply(7, 6, 0), "servo 7 that was not due"),
    (b"", "no answer from servo 1, 2"),
], ids=["checksum", "lost", "order", "twice", "short", "stranger", "silence"])
def test_a_round_with_anything_wrong_is_no_round(said: bytes, words: str) -> None:
    with far_end(lambda request: said) as path:
        bus = ServoBus(path)
        with pytest.raises(BusError, match=words) as failed:
            bus.sync_read([1, 2], feetech.POSITION)
        assert isinstance(failed.value, NoAnswer) is words.startswith("no answer")
        bus.close()


def test_answers_that_come_late_are_not_taken_for_others() -> None:
    """Each answer comes with the request after its own, before that one's own answer."""
    held: list[bytes] = []

    def answer(request: bytes) -> bytes:
        size = request[6]
        held.append(b"".join(reply(i, *[len(held)] * size) for i in (1, 2)))
        return held[-2] + held[-1] if len(held) in (2, 3) else held[-1] if len(held) > 3 else b""
    with far_end(answer) as path:
        bus = ServoBus(path)
        with pytest.raises(NoAnswer):
            bus.sync_read([1, 2], feetech.POSITION)
        for number in (1, 2, 3):  # behind what came late
            assert bus.sync_read([1, 2], feetech.POSITION) == dict.fromkeys((1, 2), bytes([number] * 2))
        bus.close()


def test_no_port_and_a_port_that_goes_are_said() -> None:
    with pytest.raises(PortLost, match="/dev/no-such-port"):
        ServoBus("/dev/no-such-port")
    main, port = os.openpty()
    tty.setraw(port)
    bus = ServoBus(os.ttyname(port))
    os.close(port)
    os.close(main)
    with pytest.raises(PortLost, match="port /dev/pts"):
        bus.ping(1)
    bus.close()
