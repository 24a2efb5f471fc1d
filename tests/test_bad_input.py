"""Malformed input of every kind: each parser raises its one error and nothing else, within bounded time and memory.

`python -m tests.fuzz TARGET` tries far more, guided by what the parser does.
"""

from __future__ import annotations

import contextlib
import logging
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardware import messages
from hardware.bus import SENSOR, connect
from hardware.either import BOOL, Switch, is_true
from hardware.robot_io import RobotIO
from robot_rl.mcap_reader import LARGEST_CHUNK
from robot_rl.mcap_writer import CHUNK, MAGIC, compressor
from robot_rl.spec import JOINT_STATE
from tests.fuzz.targets import LENGTHS, TARGETS, Target
from tests.robots import robot

ROOT = Path(__file__).parents[1]
EACH = {"onnx": 15, "metadata": 25, "robot": 30, "episode": 60, "contract": 60, "mcap": 100}
"""Examples of the slow ones; of the others there are more."""


def damaged(target: Target, whole: bytes, seed: int, edits: int) -> bytes:
    """A real input with some edits, most of them small, as bit rot, bugs and ill will make them."""
    rng, data = random.Random(seed), bytearray(whole)
    for _ in range(edits):
        at = rng.randrange(len(data) + 1)
        word = rng.choice([*target.words, *LENGTHS])
        match rng.randrange(6):
            case 0:
                data[at:at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at:at + len(word)] = word
            case 2:
                data[at:at] = word
            case 3:
                del data[at:at + rng.choice([1, 4, 30, len(data)])]
            case 4:
                start = rng.randrange(len(data) + 1)
                data[at:at] = data[start:start + rng.choice([4, 40, 400])]
            case _:
                data[at:at] = word * rng.choice([2, 50, 400])
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_one_error_for_bad_input(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    target = TARGETS[name]
    seeds = target.seeds()

    @settings(max_examples=EACH.get(name, 150), derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(whole=st.sampled_from(seeds) | st.binary(max_size=64), seed=st.integers(0, 1 << 32), edits=st.integers(1, 4))
    def check(whole: bytes, seed: int, edits: int) -> None:
        with contextlib.suppress(target.raises):
            target.parse(damaged(target, whole, seed, edits))

    check()
    target.parse(seeds[0])  # a real one is taken


BOMBS = """
import resource, sys
from tests.fuzz.targets import TARGETS
from tests.test_bad_input import bombs
inputs = bombs()
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20, resource.RLIM_INFINITY))
for target, name, data in inputs:
    print(target, name, flush=True)
    try:
        TARGETS[target].parse(data)
    except TARGETS[target].raises:
        pass
print("all", len(inputs))
"""


def chunk(compression: bytes, body: bytes, unpacked: int) -> bytes:
    """An MCAP file of one chunk that says it unpacks to so many bytes."""
    inside = struct.pack("<QQQII", 0, 0, unpacked, 0, len(compression)) + compression
    inside += struct.pack("<Q", len(body)) + body
    return MAGIC + struct.pack("<BQ", CHUNK, len(inside)) + inside


def bombs() -> list[tuple[str, str, bytes]]:
    """(target, name, input) of small inputs that ask for much."""
    zeros = bytes(LARGEST_CHUNK + 1)
    jpeg = bytearray(TARGETS["jpeg"].seeds()[0])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5:at + 9] = b"\xff\xff\xff\xff"
    states = struct.pack("<4sIII", b"\0\1\0\0", 0, 0, 1) + b"\0\0\0\0" + b"\xff\xff\xff\x7f"
    return [
        ("mcap", "zstd bomb", chunk(b"zstd", compressor("zstd")(zeros), len(zeros))),
        ("mcap", "zstd bomb that lies", chunk(b"zstd", compressor("zstd")(zeros), 1000)),
        ("mcap", "lz4 bomb that lies", chunk(b"lz4", compressor("lz4")(zeros), 1000)),
        ("jpeg", "JPEG of 65535 x 65535", bytes(jpeg)),
        ("readings", "2^31 names", b"\0" + states),
        ("metadata", "pit of brackets", b"[" * 200_000),
        ("robot", "pit of brackets", b"[" * 200_000),
        ("robot", "laughs", b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
            b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 20))),
        ("latency", "pit of brackets", b'{"inputs": ' + b"[" * 200_000),
        ("steps", "pit of brackets", b"\3" + struct.pack("<4sI", b"\0\1\0\0", 200_001) + b"[" * 200_000 + b"\0"),
    ]


def test_small_inputs_that_ask_for_much() -> None:
    """In a process of its own with 3 GiB of address space, a good part of which its libraries take."""
    run = subprocess.run([sys.executable, "-c", BOMBS, "3072"], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stdout[-200:] + run.stderr[-2000:]
    assert run.stdout.splitlines()[-1] == "all 10"


def test_garbage_is_a_silent_sensor_and_a_pressed_stop(domain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cyclone sends nothing that is no message, so the bytes are spoilt where a bus hands them over."""
    body, garbage = robot(), b"\0\1\0\0"
    with connect("dds", "reader", "bad", domain) as bus, connect("dds", "writer", "bad", domain) as other:
        wire, stop = RobotIO(body, bus), Switch(bus, "stop")
        states = other.publisher("joint_states", JOINT_STATE, SENSOR)
        switch = other.publisher("stop", BOOL, SENSOR)
        state = messages.encode(messages.joint_state(1, body.names, [0.1, 0.2, 0.3]))

        def heard(wanted: Callable[[], object]) -> None:
            end = time.monotonic() + 20.0
            while not wanted():
                assert time.monotonic() < end
                states.publish(state)
                switch.publish(messages.encode(messages.boolean(False)))
                time.sleep(0.02)

        heard(lambda: "joints.position" in wire.read().values and stop.samples())
        assert not wire.refused and not stop.on()
        with monkeypatch.context() as spoilt:
            kind = type(wire._sensors[0][1])
            newest = kind.newest
            spoilt.setattr(kind, "newest", lambda self: (one := newest(self)) and one._replace(data=garbage))
            heard(lambda: wire.read() and "joints" in wire.refused)
            said = "sensor 'joints' on joint_states: 4 bytes are no sensor_msgs/msg/JointState"
            assert said in wire.refused["joints"]
            assert "joints.position" not in wire.read().values, "what was heard before is not told of as if it were new"
            assert stop.on()
            assert not is_true(stop.samples()[0], otherwise=False)
        heard(lambda: "joints.position" in wire.read().values and not wire.refused)
        assert not stop.on()
