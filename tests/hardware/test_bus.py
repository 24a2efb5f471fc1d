"""Both bus backends, one suite, between processes on loopback. `ros` is skipped, saying why, where rclpy is absent.

Where it is present the backends are tested against each other too: `dds-ros` is this process on dds, the other on ros.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hardware import messages
from hardware.bus import COMMAND, EVENTS, LATCHED, SENSOR, Bus, Qos, Reader, Sample, connect
from tests.hardware.bus_peer import Peer
from tests.processes import wait_for

STATE, TEXT, IMAGE = "sensor_msgs/msg/JointState", "std_msgs/msg/String", "sensor_msgs/msg/Image"
NO_ROS = pytest.mark.skipif(importlib.util.find_spec("rclpy") is None,
                            reason="rclpy is not installed: it comes with a ROS 2 install, not from a package index")
KINDS = ["dds", *(pytest.param(kind, marks=NO_ROS) for kind in ("ros", "dds-ros", "ros-dds"))]
DOMAIN = 110 + os.getpid() % 100


def text(value: str) -> bytes:
    return messages.encode(messages.string(value))


def read(data: bytes) -> str:
    return str(messages.decode(data, TEXT).data)


def state(count: float = 0.0) -> bytes:
    names = [f"joint_{i}" for i in range(12)]
    return messages.encode(messages.joint_state(1, names, count + np.arange(12), np.zeros(12), np.ones(12)))


def collect(reader: Reader, count: int) -> list[Sample]:
    """At least so many samples."""
    got: list[Sample] = []

    def more() -> bool:
        got.extend(reader.take())
        return len(got) >= count

    wait_for(more)
    return got


@pytest.fixture(scope="module", params=KINDS)
def kinds(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The backends of this process and of the other."""
    mine, _, theirs = request.param.partition("-")
    return mine, theirs or mine


@pytest.fixture(scope="module")
def peer(kinds: tuple[str, str]) -> Iterator[Peer]:
    one = Peer(kinds[1], DOMAIN)
    yield one
    assert one.stop() == 0


@pytest.fixture(scope="module")
def bus(kinds: tuple[str, str], peer: Peer) -> Iterator[Bus]:
    with connect(kinds[0], "tester", "arm", DOMAIN, "lo") as one:  # type: ignore[arg-type]
        yield one


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic of the test's own."""
    return str(request.node.originalname)


def heard(bus: Bus, peer: Peer, topic: str, type: str, sent: Qos, read: Qos, readers: int = 1) -> list[Any]:
    """Readers here of a topic that the other process publishes under the same key, connected."""
    peer.ask("publisher", topic, topic, type, sent)
    mine = [bus.reader(topic, type, read) for _ in range(readers)]
    wait_for(lambda: all(r.matched() for r in mine) and peer.ask("on", topic, "matched") >= readers)
    return mine


@pytest.mark.parametrize("data", [state(), text("not a multiple of 4: à bientôt"), text("")],
                         ids=["state", "text", "empty"])
def test_bytes_arrive_as_they_were_sent(bus: Bus, peer: Peer, topic: str, data: bytes) -> None:
    type = STATE if len(data) > 100 else TEXT
    key = f"{topic}_{len(data)}"
    [reader] = heard(bus, peer, key, type, COMMAND, COMMAND)
    back = bus.publisher(f"{key}_back", type, COMMAND)
    peer.ask("reader", f"{key}_back", f"{key}_back", type, COMMAND)
    wait_for(lambda: back.matched() and peer.ask("on", f"{key}_back", "matched"))
    peer.ask("publish", key, data)
    back.publish(data)
    assert reader.wait(5)
    assert peer.ask("on", f"{key}_back", "wait", 5.0)
    for sample in (reader.newest(), peer.ask("on", f"{key}_back", "newest")):
        assert sample.data[:len(data)] == data
        assert sample.data[len(data):] == bytes(-len(data) % 4), "DDS pads to a multiple of 4, with zeros"
        assert abs(sample.stamp_ns - time.time_ns()) < 10e9


def test_newest_is_the_same_sample_until_a_newer_comes(bus: Bus, peer: Peer, topic: str) -> None:
    [reader] = heard(bus, peer, topic, TEXT, COMMAND, SENSOR)
    assert reader.newest() is None
    before = time.monotonic_ns()
    peer.ask("publish", topic, text("first"))
    first = wait_for(reader.newest)
    assert before < first.arrival_ns <= time.monotonic_ns()
    time.sleep(0.02)
    assert reader.newest() is first, "with its first arrival"
    assert reader.take() == []
    peer.ask("publish", topic, text("second"))
    second = wait_for(lambda: (s := reader.newest()) is not first and s)
    assert read(second.data) == "second"
    assert second.arrival_ns > first.arrival_ns
    assert second.stamp_ns > first.stamp_ns


def test_arrival_is_that_of_the_take_not_of_the_wire(bus: Bus, peer: Peer, topic: str) -> None:
    [reader] = heard(bus, peer, topic, TEXT, COMMAND, SENSOR)
    peer.ask("publish", topic, text("x"))
    assert reader.wait(5)
    looked = time.monotonic_ns()
    sample = reader.newest()
    assert sample is not None
    assert sample.arrival_ns >= looked


def test_take_gives_everything_in_order_and_newest_the_last(bus: Bus, peer: Peer, topic: str) -> None:
    [every] = heard(bus, peer, topic, TEXT, EVENTS, EVENTS)
    last = bus.reader(topic, TEXT, COMMAND)
    wait_for(lambda: peer.ask("on", topic, "matched") == 2 and last.matched())
    peer.ask("publish", topic, *(text(str(i)) for i in range(500)))
    assert [read(s.data) for s in collect(every, 500)] == [str(i) for i in range(500)]
    wait_for(lambda: (s := last.newest()) and read(s.data) == "499")
    assert every.take() == []
    assert read(every.newest().data) == "499"


def test_a_history_keeps_the_last_samples(bus: Bus, peer: Peer, topic: str) -> None:
    [reader] = heard(bus, peer, topic, TEXT, EVENTS, Qos(reliable=True, depth=3))
    [all_of_it] = heard(bus, peer, topic + "_end", TEXT, COMMAND, COMMAND)
    peer.ask("publish", topic, *(text(str(i)) for i in range(10)))
    peer.ask("publish", topic + "_end", text("end"))
    assert all_of_it.wait(5)
    time.sleep(0.1)
    assert [read(s.data) for s in reader.take()] == ["7", "8", "9"]


def test_source_stamps_are_one_truth(bus: Bus, peer: Peer, topic: str, kinds: tuple[str, str]) -> None:
    first, second = heard(bus, peer, topic, TEXT, EVENTS, EVENTS, readers=2)
    begun = time.time_ns()
    returned = peer.ask("publish", topic, *(text(str(i)) for i in range(20)))
    ended = time.time_ns()
    stamps = [s.stamp_ns for s in collect(first, 20)]
    assert stamps == [s.stamp_ns for s in collect(second, 20)]
    if kinds[1] == "dds":
        assert returned == stamps
    else:  # rclpy cannot be told the stamp: its own falls within the call
        following = [*returned[1:], ended]
        assert all(a <= b <= c for a, b, c in zip(returned, stamps, following, strict=True))
    assert begun <= returned[0] <= stamps[-1] <= ended


def test_latched_samples_reach_who_joins_late(bus: Bus, peer: Peer, topic: str) -> None:
    peer.ask("publisher", topic, topic, TEXT, LATCHED)
    peer.ask("publish", topic, text("old"), text("kept"))
    volatile = bus.reader(topic, TEXT, COMMAND)
    wait_for(volatile.matched)
    time.sleep(0.1)
    assert volatile.newest() is None, "a volatile reader hears from now on only"
    late = bus.reader(topic, TEXT, LATCHED)
    assert late.wait(5)
    assert [read(s.data) for s in late.take()] == ["kept"]


def test_ends_that_promise_too_little_do_not_connect(bus: Bus, topic: str) -> None:
    demanding, modest = bus.reader(topic, TEXT, COMMAND), bus.reader(topic, TEXT, SENSOR)
    latched, wrong = bus.reader(topic, TEXT, LATCHED), bus.reader(topic, STATE, SENSOR)
    sensor = bus.publisher(topic, TEXT, SENSOR)
    wait_for(modest.matched)
    command = bus.publisher(topic, TEXT, COMMAND)
    wait_for(lambda: demanding.matched() == 1 and modest.matched() == 2 and command.matched() == 2)
    time.sleep(0.2)
    assert (demanding.matched(), modest.matched(), latched.matched(), wrong.matched()) == (1, 2, 0, 0)
    assert (sensor.matched(), command.matched()) == (1, 2)


def test_a_command_nobody_takes_is_seen_to_go_nowhere(bus: Bus, topic: str) -> None:
    command = bus.publisher(topic, TEXT, COMMAND)
    assert command.publish(text("anybody?")) > 0
    assert command.matched() == 0


def test_topics_tells_the_types_on_the_network(bus: Bus, peer: Peer, topic: str) -> None:
    peer.ask("publisher", topic, topic, TEXT, SENSOR)
    reader = bus.reader(topic, STATE, SENSOR)
    wait_for(lambda: bus.topics().get(f"/arm/{topic}") == [STATE, TEXT])
    assert reader.matched() == 0


def test_namespaces(kinds: tuple[str, str], bus: Bus, peer: Peer, topic: str) -> None:
    keys = {f"{topic}": f"/arm/{topic}", f"/{topic}": f"/{topic}", f"~/{topic}": f"/arm/peer/{topic}"}
    for name in keys:
        peer.ask("publisher", name, name, TEXT, LATCHED)
        peer.ask("publish", name, text(name))
    with connect(kinds[0], "other", "/leg/", DOMAIN, "lo") as other:  # type: ignore[arg-type]
        assert (other.kind, other.node, other.namespace) == (kinds[0], "other", "leg")
        for name, absolute in keys.items():
            reader = other.reader(absolute, TEXT, LATCHED)
            assert reader.wait(5)
            assert read(reader.take()[0].data) == name
        assert not other.reader(topic, TEXT, LATCHED).wait(0.1), "leg is not arm"


def test_services_answer_now_or_later(bus: Bus, peer: Peer, topic: str) -> None:
    peer.tell("serve", topic, [(0.0, False, "no: ☂"), (0.3, True, ""), (0.0, True, "x" * 300)])
    assert bus.call(topic, 5.0) == (False, "no: ☂")
    begun = time.monotonic()
    assert bus.call(f"/arm/{topic}", 5.0) == (True, "")
    assert time.monotonic() - begun > 0.25
    assert bus.call(topic, 5.0) == (True, "x" * 300)
    assert peer.answer() == 3


def test_a_late_answer_is_not_taken_for_the_next_call(bus: Bus, peer: Peer, topic: str) -> None:
    peer.tell("serve", topic, [(0.0, True, "connected"), (0.4, True, "late"), (0.0, True, "own")])
    assert bus.call(topic, 5.0) == (True, "connected")
    with pytest.raises(TimeoutError, match=f"'{topic}': no answer within 0.1 s"):
        bus.call(topic, 0.1)
    assert bus.call(topic, 5.0) == (True, "own")
    assert peer.answer() == 3


def test_a_service_nobody_serves_is_named(bus: Bus, topic: str) -> None:
    with pytest.raises(TimeoutError, match=f"'{topic}': nobody serves it"):
        bus.call(topic, 0.2)


def test_requests_are_pulled_and_answered_in_any_order(bus: Bus, peer: Peer, topic: str) -> None:
    service = bus.service(topic)
    assert service.take() is None
    other = Peer(bus.kind, DOMAIN)  # before the first call, which must not time out while this one starts
    peer.tell("call", topic, 30.0)
    first = wait_for(service.take)
    assert service.take() is None, "a call is given once"
    other.tell("call", topic, 30.0)
    second = wait_for(service.take, 30.0)
    second.reply(False, "second")
    first.reply(True, "first")
    assert (peer.answer(), other.answer()) == ((True, "first"), (False, "second"))
    assert other.stop() == 0


@pytest.mark.parametrize("qos", [COMMAND, SENSOR], ids=["reliable", "best-effort"])
def test_a_large_image_comes_through_whole(bus: Bus, peer: Peer, topic: str, qos: Qos) -> None:
    key = f"{topic}_{qos.reliable}"
    [reader] = heard(bus, peer, key, IMAGE, qos, qos)
    picture = np.random.default_rng(0).integers(0, 256, (720, 960, 3), np.uint8)  # 2 MB
    data = messages.encode(messages.image(1, "eye", picture))
    for _ in range(5):  # best-effort may lose one
        peer.ask("publish", key, data)
        if reader.wait(1):
            break
    np.testing.assert_array_equal(messages.pixels(messages.decode(reader.newest().data, IMAGE)), picture)


def test_many_topics(bus: Bus, peer: Peer, topic: str) -> None:
    names = [f"{topic}/n{i}" for i in range(40)]
    readers = {name: bus.reader(name, STATE, COMMAND) for name in names}
    for name in names:
        peer.ask("publisher", name, name, STATE, COMMAND)
    wait_for(lambda: all(r.matched() for r in readers.values()) and all(peer.ask("on", n, "matched") for n in names))
    for i, name in enumerate(names):
        peer.ask("publish", name, state(i))
    for i, reader in enumerate(readers.values()):
        assert wait_for(reader.newest).data == state(i)


def test_closed_ends_are_gone(bus: Bus, peer: Peer, topic: str) -> None:
    publisher, reader = bus.publisher(topic, TEXT, COMMAND), bus.reader(topic, TEXT, COMMAND)
    wait_for(lambda: publisher.matched() and reader.matched())
    publisher.publish(text("last"))
    last = wait_for(reader.newest)
    reader.close()
    wait_for(lambda: publisher.matched() == 0)
    assert reader.newest() is last
    assert (reader.take(), reader.matched(), reader.wait(0.01)) == ([], 0, False)
    publisher.close()
    assert publisher.matched() == 0
    with pytest.raises(RuntimeError, match="published after close"):
        publisher.publish(text("x"))
    reader.close()
    publisher.close()


def test_a_reader_outlives_its_publisher(bus: Bus, peer: Peer, topic: str) -> None:
    [reader] = heard(bus, peer, topic, TEXT, COMMAND, COMMAND)
    peer.ask("publish", topic, text("last"))
    last = wait_for(reader.newest)
    peer.ask("on", topic, "close")
    wait_for(lambda: reader.matched() == 0)
    assert reader.newest() is last, "that the publisher left is no message"
    peer.ask("publisher", topic, topic, TEXT, COMMAND)
    wait_for(lambda: reader.matched() and peer.ask("on", topic, "matched"))
    peer.ask("publish", topic, text("back"))
    wait_for(lambda: read(reader.newest().data) == "back")


def test_a_closed_bus_is_gone(kinds: tuple[str, str], peer: Peer, topic: str) -> None:
    peer.ask("reader", topic, topic, TEXT, SENSOR)
    brief = connect(kinds[0], "brief", "arm", DOMAIN, "lo")  # type: ignore[arg-type]
    brief.publisher(topic, TEXT, SENSOR)
    wait_for(lambda: peer.ask("on", topic, "matched") == 1)
    brief.close()
    wait_for(lambda: peer.ask("on", topic, "matched") == 0)
    with pytest.raises(RuntimeError, match="closed"):
        brief.reader(topic, TEXT, SENSOR)
    brief.close()


def test_domains_do_not_hear_each_other(kinds: tuple[str, str], peer: Peer, topic: str,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    peer.ask("publisher", topic, topic, TEXT, LATCHED)
    peer.ask("publish", topic, text("x"))
    with connect(kinds[0], "elsewhere", "arm", DOMAIN + 1, "lo") as other:  # type: ignore[arg-type]
        assert not other.reader(topic, TEXT, LATCHED).wait(0.3)
    monkeypatch.setenv("ROS_DOMAIN_ID", str(DOMAIN))
    with connect(kinds[0], "here", "arm", interface="lo") as here:  # type: ignore[arg-type]
        assert here.reader(topic, TEXT, LATCHED).wait(5)


def test_a_killed_process_leaves_the_newest_sample(kinds: tuple[str, str], bus: Bus, topic: str) -> None:
    victim = Peer(kinds[1], DOMAIN)
    [reader] = heard(bus, victim, topic, TEXT, COMMAND, COMMAND)
    victim.ask("publish", topic, text("last"))
    last = wait_for(reader.newest)
    victim.process.kill()
    victim.process.join()
    time.sleep(0.2)
    assert reader.newest() is last


def test_a_reader_that_hangs_does_not_hold_the_publisher(bus: Bus, topic: str) -> None:
    stuck = Peer("dds", DOMAIN)
    stuck.ask("reader", topic, topic, TEXT, EVENTS)
    publisher = bus.publisher(topic, TEXT, EVENTS)
    wait_for(lambda: publisher.matched() and stuck.ask("on", topic, "matched"))
    assert stuck.process.pid is not None
    os.kill(stuck.process.pid, signal.SIGSTOP)
    data, slowest = text("x" * 2000), 0.0
    for _ in range(3000):  # 6 MB: far beyond the history of 1000
        begun = time.monotonic()
        publisher.publish(data)
        slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 0.5
    os.kill(stuck.process.pid, signal.SIGCONT)
    end = time.monotonic() + 10
    while not (got := stuck.ask("on", topic, "take")) and time.monotonic() < end:
        time.sleep(0.05)
    assert got, "what fits the history still arrives"
    assert stuck.stop() == 0
