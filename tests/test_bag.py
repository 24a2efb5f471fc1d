"""Bags: what is written is what any reader gets back, and damage costs only what is damaged."""

from __future__ import annotations

import logging
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.writer import CompressionType
from mcap.writer import Writer as PeerWriter
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from hardware import messages
from hardware.bus import LATCHED, SENSOR
from robot_rl import bag

STATE, TEXT = "sensor_msgs/msg/JointState", "std_msgs/msg/String"
START = 1_760_000_000_000_000_000  # a wall time, ns
EVERY = 20  # messages between two flushes of the killed bag
MANY = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
Row = tuple[str, str, bytes, int, int]


def joint_state(tick: int) -> bytes:
    """A message that tells which one it is."""
    return messages.encode(messages.joint_state(START + tick, ["a", "b"], position=[tick, -tick]))


def rows(count: int) -> list[Row]:
    """`count` states 10 ms apart, a text with every tenth, distinguishable by content and times."""
    out: list[Row] = []
    for tick in range(count):
        log = START + 10_000_000 * tick
        out.append(("/arm/joint_states", STATE, joint_state(tick), log, log - 1000 - tick))
        if tick % 10 == 0:
            out.append(("/policy/info", TEXT, messages.encode(messages.string(f"tick {tick}")), log, log - 1))
    return out


def write(folder: Path, content: list[Row], flush_every: int = 0, **options: Any) -> list[tuple[int, int]]:
    """Write a bag, left open like a killed process leaves it; returns (bytes on disk, messages) after every flush."""
    writer = bag.BagWriter(folder, flush_s=1e9, **options)
    writer.add_topic("/arm/joint_states", STATE, SENSOR)
    writer.add_topic("/policy/info", TEXT, LATCHED)
    marks = []
    for number, (topic, _, data, log, publish) in enumerate(content, 1):
        writer.write(topic, data, log, publish)
        if flush_every and number % flush_every == 0:
            writer.flush()
            marks.append((sum(file.stat().st_size for file in folder.glob("*.mcap")), number))
    if flush_every:
        writer._file.abandon()
    else:
        writer.close({"success": "true", "note": 'a "quoted": \n text, é'})
    return marks


def test_round_trip(tmp_path: Path) -> None:
    content = rows(200)
    write(tmp_path / "ep", content)
    assert [tuple(message) for message in bag.read(tmp_path / "ep")] == content
    assert [tuple(message) for message in bag.read(tmp_path / "ep" / "ep_0.mcap")] == content
    texts = [message.data for message in bag.read(tmp_path / "ep", topics={"/policy/info"})]
    assert texts == [data for topic, _, data, _, _ in content if topic == "/policy/info"]
    found = bag.info(tmp_path / "ep")
    assert found.closed
    assert found.dropped == 0
    assert found.messages == len(content) == 220
    assert found.topics == {"/arm/joint_states": bag.Topic(STATE, 200), "/policy/info": bag.Topic(TEXT, 20)}
    assert (found.start_ns, found.end_ns) == (content[0][3], content[-1][3])
    assert found.custom == {"success": "true", "note": 'a "quoted": \n text, é'}


@pytest.mark.parametrize("compression", ["", "zstd", "lz4"])
def test_other_readers_agree(tmp_path: Path, compression: str) -> None:
    content = rows(500)
    write(tmp_path / "ep", content, chunk_bytes=4096, compression=compression)  # many chunks
    assert [tuple(message) for message in bag.read(tmp_path / "ep")] == content
    with AnyReader([tmp_path / "ep"]) as reader:
        assert [(c.topic, c.msgtype, bytes(d), t) for c, t, d in reader.messages()] == [row[:4] for row in content]
        connection, _, data = next(reader.messages(connections=[c for c in reader.connections if c.msgtype == STATE]))
        state: Any = reader.deserialize(data, STATE)
        assert state.name == ["a", "b"]
        assert connection.digest == messages.type_hash(STATE)
    with (tmp_path / "ep" / "ep_0.mcap").open("rb") as stream:
        peer = make_reader(stream, validate_crcs=True)
        assert peer.get_header().profile == "ros2"
        got = [(c.topic, s.name, m.data, m.log_time, m.publish_time) for s, c, m in peer.iter_messages() if s]
        assert got == content
        summary = peer.get_summary()
        assert summary
        assert summary.statistics
        assert summary.statistics.message_count == len(content)
        assert len(summary.chunk_indexes) > 5
        assert [note.name for note in peer.iter_metadata()] == ["rosbag2"]


def test_metadata_is_version_8_with_text_qos_from_the_start(tmp_path: Path) -> None:
    write(tmp_path / "ep", rows(20), flush_every=5, custom={"episode": "7"})
    root = yaml.safe_load((tmp_path / "ep" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert root["version"] == 8
    assert root["storage_identifier"] == "mcap"
    assert root["custom_data"] == {"episode": "7"}
    assert root["relative_file_paths"] == ["ep_0.mcap"]
    assert root["ros_distro"] == ""
    profiles = {}
    for entry in root["topics_with_message_count"]:
        assert isinstance(entry["topic_metadata"]["offered_qos_profiles"], str)
        (profiles[entry["topic_metadata"]["name"]],) = yaml.safe_load(entry["topic_metadata"]["offered_qos_profiles"])
    # rmw's numbers: reliability 1 reliable, 2 best effort; durability 1 transient local, 2 volatile
    assert (profiles["/arm/joint_states"]["reliability"], profiles["/arm/joint_states"]["durability"]) == (2, 2)
    assert (profiles["/policy/info"]["reliability"], profiles["/policy/info"]["durability"]) == (1, 1)


def test_read_sorts_by_log_time_across_chunks(tmp_path: Path) -> None:
    content = rows(300)
    order = np.random.default_rng(0).permutation(len(content))
    write(tmp_path / "ep", [content[i] for i in order], chunk_bytes=3000)
    times = [message.log_ns for message in bag.read(tmp_path / "ep")]
    assert times == sorted(times)
    assert len(times) == len(content)
    assert sorted(map(tuple, bag.read(tmp_path / "ep"))) == sorted(content)


def test_split_by_size(tmp_path: Path) -> None:
    content = rows(400)
    write(tmp_path / "ep", content, chunk_bytes=2000, split_bytes=10_000)
    assert len(bag.info(tmp_path / "ep").files) > 3
    assert [tuple(message) for message in bag.read(tmp_path / "ep")] == content
    with AnyReader([tmp_path / "ep"]) as reader:
        assert [(c.topic, t, bytes(d)) for c, t, d in reader.messages()] == [(r[0], r[3], r[2]) for r in content]


@pytest.mark.parametrize("mode", [CompressionMode.NONE, CompressionMode.STORAGE])
def test_reads_what_others_write(tmp_path: Path, mode: CompressionMode) -> None:
    content = rows(50)
    writer = Writer(tmp_path / "other", version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        topics = {name: writer.add_connection(name, type, typestore=messages.STORE)
                  for name, type in ((row[0], row[1]) for row in content[:2])}
        for topic, _, data, log, _ in content:
            writer.write(topics[topic], log, data)
    assert [tuple(m)[:4] for m in bag.read(tmp_path / "other")] == [row[:4] for row in content]
    assert bag.info(tmp_path / "other").messages == len(content)


@pytest.mark.parametrize(("chunked", "kind"),
                         [(True, CompressionType.LZ4), (True, CompressionType.NONE), (False, None)])
def test_reads_mcap_of_other_layouts(tmp_path: Path, chunked: bool, kind: CompressionType | None) -> None:
    path = tmp_path / "other.mcap"
    with path.open("wb") as stream:
        peer = PeerWriter(stream, chunk_size=1000, compression=kind or CompressionType.NONE, use_chunking=chunked)
        peer.start("ros2")
        schema = peer.register_schema(STATE, "ros2msg", messages.definition(STATE).encode())
        channel = peer.register_channel("/arm/joint_states", "cdr", schema)
        states = [row for row in rows(60) if row[1] == STATE]
        for _, _, data, log, publish in states:
            peer.add_message(channel, log, data, publish)
        peer.finish()
    assert [tuple(message) for message in bag.read(path)] == states
    assert bag.info(path).closed


class Killed:
    """A bag as a killed process leaves it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.content = folder, rows(200)
        self.marks = write(folder, self.content, flush_every=EVERY)
        """(bytes on disk, messages written) after every flush."""
        self.mcap = (folder / "ep_0.mcap").read_bytes()

    def copy(self, folder: Path) -> Path:
        """Put the bag into `folder`, in place of what is there."""
        shutil.rmtree(folder / "ep", ignore_errors=True)
        shutil.copytree(self.folder, folder / "ep")
        return folder / "ep"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """One for all tests of this file."""
    return Killed(tmp_path_factory.mktemp("killed") / "ep")


@MANY
@given(data=st.data())
def test_truncated_anywhere(killed: Killed, tmp_path: Path, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(killed.mcap)) | st.sampled_from([at for at, _ in killed.marks]))
    target = killed.copy(tmp_path)
    (target / "ep_0.mcap").write_bytes(killed.mcap[:cut])

    got = [tuple(message) for message in bag.read(target)]
    assert got == killed.content[: len(got)], "a prefix"
    flushed = max([count for at, count in killed.marks if at <= cut], default=0)
    assert flushed <= len(got) <= flushed + EVERY, "all that was flushed before the cut"
    found = bag.info(target)
    assert found.messages == len(got)
    assert not found.closed

    recovered = bag.recover(target)
    assert recovered.closed
    assert recovered.messages == len(got)
    assert recovered.dropped == 0
    assert [tuple(message) for message in bag.read(target)] == got
    with AnyReader([target]) as reader:
        assert reader.message_count == len(got)
        assert [bytes(d) for _, _, d in reader.messages()] == [row[2] for row in got]
    before = {file.name: (file.stat().st_ino, file.read_bytes()) for file in target.iterdir()}
    bag.recover(target)
    assert before == {file.name: (file.stat().st_ino, file.read_bytes()) for file in target.iterdir()}, "idempotent"


@MANY
@given(position=st.integers(8, 1 << 20), flip=st.integers(1, 255), closed=st.booleans())
def test_damaged_bytes_never_come_through(killed: Killed, tmp_path: Path, position: int, flip: int,
                                          closed: bool) -> None:
    path = killed.copy(tmp_path) / "ep_0.mcap"
    if closed:
        bag.recover(tmp_path / "ep")
    damaged = bytearray(path.read_bytes())
    damaged[8 + position % (len(damaged) - 8)] ^= flip
    path.write_bytes(damaged)
    got = [tuple(message) for message in bag.read(path)]
    assert set(got) <= set(killed.content)
    bag.info(tmp_path / "ep")
    assert [tuple(message) for message in bag.read(bag.recover(tmp_path / "ep").path)] == got


@MANY
@given(noise=st.lists(st.tuples(st.integers(0, 20), st.binary(max_size=90)), max_size=8))
def test_nonsense_is_read_as_nothing(tmp_path: Path, noise: list[tuple[int, bytes]]) -> None:
    records = b"".join(struct.pack("<BQ", opcode, len(body)) + body for opcode, body in noise)
    (tmp_path / "x.mcap").write_bytes(b"\x89MCAP0\r\n" + records)
    assert list(bag.read(tmp_path / "x.mcap")) == []
    bag.info(tmp_path / "x.mcap")


def test_recover_after_a_killed_recover(killed: Killed, tmp_path: Path) -> None:
    folder = killed.copy(tmp_path)
    (folder / ".ep_0.mcap.recover").write_bytes(b"half")
    (folder / "metadata.yaml").unlink()
    bag.recover(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["ep_0.mcap", "metadata.yaml"]
    with AnyReader([folder]) as reader:
        assert reader.message_count == len(killed.content)


def test_dropped_bytes_are_told(killed: Killed, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    size, count = killed.marks[3]
    (tmp_path / "x.mcap").write_bytes(killed.mcap[: size + 17])
    with caplog.at_level(logging.WARNING):
        assert len(list(bag.read(tmp_path / "x.mcap"))) == count
    assert "17 bytes dropped" in caplog.text


def test_errors_at_the_door(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none", "no such bag"), (tmp_path, "holds no .mcap file")):
        with pytest.raises(bag.BagError, match=said):
            bag.read(path)
    (tmp_path / "x.mcap").write_bytes(b"not an mcap file")
    with pytest.raises(bag.BagError, match="not an MCAP file"):
        bag.read(tmp_path / "x.mcap")
    writer = bag.BagWriter(tmp_path / "ep")
    with pytest.raises(bag.BagError, match="exists already"):
        bag.BagWriter(tmp_path / "ep")
    with pytest.raises(bag.BagError, match="still being written"):
        bag.recover(tmp_path / "ep")
    writer.close()
    assert bag.recover(tmp_path / "ep").messages == 0
    with pytest.raises(ValueError, match="compression gzip: known are zstd, lz4"):
        bag.BagWriter(tmp_path / "new", compression="gzip")
    assert not (tmp_path / "new").exists()


FULL_DISK = """
import os, resource, sys
from hardware.bus import SENSOR
from robot_rl import bag
folder, room = sys.argv[1], int(sys.argv[2])
writer = bag.BagWriter(folder, flush_s=1e9, chunk_bytes=5000)
writer.add_topic('/x', 'std_msgs/msg/String', SENSOR)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
count = 0
try:
    while True:
        writer.write('/x', count.to_bytes(4, 'little') + bytes(996), count, count)
        count += 1
except OSError:
    print(count)
size = os.path.getsize(folder + '/ep_0.mcap')
resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
try:
    writer.close({'k': 'v'})
    print('closed')
except OSError:
    print('not closed')
"""


@pytest.mark.parametrize(("room", "closed"), [(20_000, True), (100, False)])
def test_full_disk_leaves_whole_chunks(tmp_path: Path, room: int, closed: bool) -> None:
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "ep"), str(room)], capture_output=True,
                         text=True, check=True, cwd=Path(__file__).parents[1])
    offered, last = run.stdout.splitlines()
    assert last == ("closed" if closed else "not closed")
    found = bag.info(tmp_path / "ep")
    assert found.closed == closed
    assert found.dropped == 0
    assert 25 <= found.messages <= int(offered) <= 40
    assert found.custom == {"k": "v"}
    numbers = [int.from_bytes(message.data[:4], "little") for message in bag.read(tmp_path / "ep")]
    assert numbers == list(range(found.messages))
