"""Both bus backends, one suite, between processes on loopback. `ros` is skipped, saying why, where rclpy is absent."""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hardware import messages
from hardware.bus import COMMAND, EVENTS, LATCHED, SENSOR, Bus, Reader, connect, resolve

STATE, TEXT, IMAGE = "sensor_msgs/msg/JointState", "std_msgs/msg/String", "sensor_msgs/msg/Image"
BACKENDS = ["dds", pytest.param("ros", marks=pytest.mark.skipif(
    importlib.util.find_spec("rclpy") is None, reason="rclpy is not installed: it comes with a ROS 2 install"))]
pytestmark = pytest.mark.parametrize("kind", BACKENDS)


def text(value: str) -> bytes:
    return messages.encode(messages.string(value))


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    assert found, "timed out"
    return found


def peer(kind: str, domain: int, ready: Any, stop: Any) -> None:
    """The other process: counts on `count`, answers `ping`, serves, keeps a latched `note`, echoes images."""
    with connect(kind, "peer", "arm", domain) as bus:
        note = bus.publisher("note", TEXT, LATCHED)
        note.publish(text("kept for who comes late"))
        count = bus.publisher("count", TEXT, EVENTS)
        pings, pong = bus.reader("ping", TEXT, COMMAND), bus.publisher("pong", TEXT, COMMAND)
        images, back = bus.reader("image", IMAGE, COMMAND), bus.publisher("image_back", IMAGE, COMMAND)
        quick, slow, held = bus.service("quick"), bus.service("slow"), []
        ready.set()
        while not stop.is_set():
            for sample in pings.take():
                pong.publish(sample.data)
                for i in range(5):
                    count.publish(text(str(i)))
            for sample in images.take():
                back.publish(sample.data)
            if (request := quick.take()) is not None:
                request.reply(False, "quick, and no: ☂")
            if (request := slow.take()) is not None:
                held.append((time.monotonic() + 0.3, request))
            while held and held[0][0] < time.monotonic():
                held.pop(0)[1].reply(True, "slow")
            time.sleep(0.001)


@pytest.fixture
def bus(kind: str, domain: int) -> Iterator[Bus]:
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=peer, args=(kind, domain, ready, stop))
    process.start()
    assert ready.wait(30)
    with connect(kind, "tester", "arm", domain) as mine:  # type: ignore[arg-type]
        yield mine
    stop.set()
    process.join(10)
    assert process.exitcode == 0


def ping(bus: Bus) -> tuple[bytes, Reader]:
    """One trip to the other process and back."""
    out, back = bus.publisher("ping", TEXT, COMMAND), bus.reader("pong", TEXT, COMMAND)
    until(lambda: out.matched() and back.matched())
    data = text("à bientôt")
    out.publish(data)
    assert back.wait(5)
    return data, back


def test_bytes_arrive_as_they_were_sent(bus: Bus) -> None:
    data, back = ping(bus)
    sample = back.newest()
    assert sample is not None
    assert messages.decode(sample.data, TEXT).data == messages.decode(data, TEXT).data
    assert abs(sample.stamp_ns - time.time_ns()) < 10e9


def test_newest_keeps_the_sample_and_its_first_arrival(bus: Bus) -> None:
    _, back = ping(bus)
    first = back.newest()
    assert first is not None
    time.sleep(0.05)
    assert back.newest() is first
    assert first.arrival_ns < time.monotonic_ns() - 40e6
    assert back.take() == []


def test_take_gives_everything_in_order_and_newest_the_last(bus: Bus) -> None:
    every, last = bus.reader("count", TEXT, EVENTS), bus.reader("count", TEXT, COMMAND)
    until(lambda: every.matched() and last.matched())
    ping(bus)
    got: list[str] = []
    until(lambda: got.extend(messages.decode(s.data, TEXT).data for s in every.take()) or len(got) >= 5)
    assert got == ["0", "1", "2", "3", "4"]
    newest = until(last.newest)
    assert messages.decode(newest.data, TEXT).data == "4"


def test_two_readers_see_the_same_source_stamps(bus: Bus) -> None:
    readers = [bus.reader("count", TEXT, EVENTS) for _ in range(2)]
    until(lambda: all(r.matched() for r in readers))
    ping(bus)
    time.sleep(0.3)
    stamps = [[s.stamp_ns for s in r.take()] for r in readers]
    assert len(stamps[0]) == 5
    assert stamps[0] == stamps[1]


def test_latched_samples_reach_who_joins_late(bus: Bus) -> None:
    reader = bus.reader("note", TEXT, LATCHED)
    assert reader.wait(5)
    assert messages.decode(reader.take()[0].data, TEXT).data == "kept for who comes late"


def test_a_volatile_reader_hears_a_latched_publisher_from_now_on_only(bus: Bus) -> None:
    reader = bus.reader("note", TEXT, SENSOR)
    until(reader.matched)
    time.sleep(0.2)
    assert reader.newest() is None


def test_incompatible_ends_do_not_connect(bus: Bus) -> None:
    demanding = bus.reader("loose", TEXT, COMMAND)
    loose = bus.publisher("loose", TEXT, SENSOR)
    wrong = bus.publisher("ping", STATE, COMMAND)
    time.sleep(0.5)
    assert (demanding.matched(), loose.matched(), wrong.matched()) == (0, 0, 0)


def test_images_come_through_whole(bus: Bus) -> None:
    out, back = bus.publisher("image", IMAGE, COMMAND), bus.reader("image_back", IMAGE, COMMAND)
    until(lambda: out.matched() and back.matched())
    picture = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    out.publish(messages.encode(messages.image(1, "eye", picture)))
    assert back.wait(10)
    np.testing.assert_array_equal(messages.pixels(messages.decode(back.take()[0].data, IMAGE)), picture)


def test_services_answer_now_or_later_or_not_at_all(bus: Bus) -> None:
    assert bus.call("quick", 5.0) == (False, "quick, and no: ☂")
    assert bus.call("slow", 5.0) == (True, "slow")
    assert bus.call("/arm/quick", 5.0)[0] is False
    with pytest.raises(TimeoutError, match="slow"):
        bus.call("slow", 0.1)
    assert bus.call("slow", 5.0) == (True, "slow")  # the late answer to the call before is not taken for this one
    with pytest.raises(TimeoutError, match=r"nobody serves.*|.*nobody serves it"):
        bus.call("nowhere", 0.2)


def test_namespaces(kind: str, bus: Bus, domain: int) -> None:
    with connect(kind, "other", "leg", domain) as other:  # type: ignore[arg-type]
        relative, absolute = other.reader("note", TEXT, LATCHED), other.reader("/arm/note", TEXT, LATCHED)
        assert absolute.wait(5)
        assert not relative.wait(0.1)
    assert resolve("a/b", "/arm/") == "arm/a/b"
    assert resolve("/a/b", "arm") == "a/b"
    assert resolve("a", "") == "a"


def test_closed_readers_are_gone(bus: Bus) -> None:
    publisher, reader = bus.publisher("brief", TEXT, COMMAND), bus.reader("brief", TEXT, COMMAND)
    until(publisher.matched)
    reader.close()
    until(lambda: publisher.matched() == 0)
    assert reader.newest() is None
