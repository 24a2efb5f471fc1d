"""`robot-rl bag`: what it tells of a bag, what it saves of a damaged one, and the page that it draws."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader

from hardware import messages
from hardware.bus import EVENTS, SENSOR
from robot_rl import bag, cli
from robot_rl.bag_info import describe, lines, repair
from robot_rl.inspect import inspect
from robot_rl.page.figures import outline
from robot_rl.page.signals import write_plot
from robot_rl.spec import SpecError
from robot_rl.steplog import EPISODE_TOPIC
from tests.test_report import record

STATE, TEXT = "sensor_msgs/msg/JointState", "std_msgs/msg/String"
SECOND = 10**9
START = 1_760_000_000 * SECOND


def write(folder: Path, killed: bool = False, ended: bool = True, **options: int | str) -> int:
    """100 Hz of states for 3 s with a hole of half a second, and an episode; returns how many messages."""
    writer = bag.BagWriter(folder, custom={"policy": "abc", "episode": "7"}, flush_s=1e9, **options)  # type: ignore[arg-type]
    writer.add_topic("/arm/joint_states", STATE, SENSOR)
    writer.add_topic(f"/arm/{EPISODE_TOPIC}", TEXT, EVENTS)
    writer.add_topic("/arm/never", TEXT, EVENTS)
    for tick in [*range(100), *range(150, 300)]:
        stamp = START + tick * SECOND // 100
        state = messages.joint_state(stamp, ["a", "b"], [np.sin(tick / 20), 0.5], [tick, 0.0])
        writer.write("/arm/joint_states", messages.encode(state), stamp + 1_000_000, stamp)
        if tick % 50 == 0:
            writer.flush()
    events = [{"event": "start", "episode": 7}, {"event": "end", "episode": 7, "success": False, "faults": "stop"}]
    for event in events[:1 + ended]:
        writer.write(f"/arm/{EPISODE_TOPIC}", messages.encode(messages.string(json.dumps(event))), stamp, stamp)
    writer.flush()
    if killed:
        writer._file.abandon()
    else:
        writer.close({"recorder_end": "episode end"})
    return 250 + 1 + ended


def test_info(tmp_path: Path) -> None:
    count = write(tmp_path / "ep", split_bytes=4_000)
    figures = describe(tmp_path / "ep")
    assert figures["messages"] == count
    assert figures["files"] > 2
    assert (figures["index"], figures["dropped_bytes"], figures["metadata_version"]) == ("complete", 0, "8")
    assert figures["seconds"] == pytest.approx(2.99)
    assert figures["policies"] == ["abc"]
    assert figures["episodes"] == [{"episode": 7, "outcome": "stopped (stop)"}]
    states = figures["topics"]["/arm/joint_states"]
    assert (states["type"], states["count"], states["gaps"]) == (STATE, 250, 1)
    assert states["rate_hz"] == pytest.approx(249 / 2.99)
    assert states["longest_s"] == pytest.approx(0.51)
    assert figures["topics"]["/arm/never"] == {"type": TEXT, "count": 0, "rate_hz": None, "gaps": 0, "longest_s": None}
    json.dumps(figures)
    told = lines(figures)
    assert told["topic /arm/joint_states"] == f"{STATE} x 250, 83.28 Hz, 1 gaps, the longest span 0.51 s"
    assert told["episode 7"] == "stopped (stop)"
    assert inspect(str(tmp_path / "ep"), None) == told, "one and the same"


def test_info_names_what_is_wrong(tmp_path: Path) -> None:
    write(tmp_path / "ep", killed=True, ended=False)
    figures = describe(tmp_path / "ep")
    assert "its writer did not finish" in figures["index"]
    assert figures["episodes"] == [{"episode": 7, "outcome": "recording broke off"}]
    write(tmp_path / "whole")
    metadata = tmp_path / "whole" / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("message_count: 252", "message_count: 251"))
    assert "message_count: 251, the files hold 252" in describe(tmp_path / "whole")["index"]
    metadata.write_text(metadata.read_text().replace("whole_0.mcap", "other_0.mcap"))
    assert "['other_0.mcap'], the folder holds ['whole_0.mcap']" in describe(tmp_path / "whole")["index"]
    metadata.unlink()
    assert "metadata.yaml is missing" in describe(tmp_path / "whole")["index"]


@pytest.mark.parametrize("compression", ["", "zstd", "lz4"])
def test_recover_elsewhere(tmp_path: Path, compression: str) -> None:
    """A killed recorder's last chunk is torn and metadata.yaml is gone; other tools read what is made of it."""
    write(tmp_path / "ep", killed=True, compression=compression)
    file = tmp_path / "ep" / "ep_0.mcap"
    torn = file.read_bytes()[:-1000]
    file.write_bytes(torn)
    (tmp_path / "ep" / "metadata.yaml").unlink()
    flushed = len(list(bag.read(tmp_path / "ep")))
    assert 0 < flushed < 252

    told = repair(tmp_path / "ep", tmp_path / "saved")
    assert file.read_bytes() == torn, "the original is as it was"
    assert (told["messages"], told["was_whole"]) == (flushed, False)
    assert 0 < told["lost_bytes"] < len(torn)
    assert "did not finish" in told["recorder_end"]
    saved = describe(tmp_path / "saved")
    assert (saved["index"], saved["messages"], saved["custom"][bag.LOST]) == (
        "complete", flushed, str(told["lost_bytes"]))
    with AnyReader([tmp_path / "saved"]) as reader:
        assert reader.message_count == flushed == sum(1 for _ in reader.messages())
    with (tmp_path / "saved" / "ep_0.mcap").open("rb") as stream:
        peer = make_reader(stream, validate_crcs=True)
        summary = peer.get_summary()
        assert summary is not None and summary.statistics is not None
        assert summary.statistics.message_count == flushed == sum(1 for _ in peer.iter_messages())
    with pytest.raises(bag.BagError, match="exists already"):
        repair(tmp_path / "ep", tmp_path / "saved")

    assert repair(tmp_path / "ep", None)["messages"] == flushed
    assert describe(tmp_path / "ep")["index"] == "complete"


def test_recover_a_damaged_chunk_and_leave_what_is_whole(tmp_path: Path) -> None:
    count = write(tmp_path / "ep", split_bytes=4_000)
    before = {file.name: file.read_bytes() for file in (tmp_path / "ep").iterdir()}
    told = repair(tmp_path / "ep", tmp_path / "copy")
    assert (told["messages"], told["lost_bytes"], told["was_whole"]) == (count, 0, True)
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in before} == before

    name = "ep_1.mcap"
    (tmp_path / "ep" / name).write_bytes(before[name][:300] + b"\xff" + before[name][301:])
    assert f"of {count} messages can be read" in describe(tmp_path / "ep")["index"]
    told = repair(tmp_path / "ep", tmp_path / "mended")
    assert 0 < told["messages"] < count
    assert told["lost_bytes"] > 0 and not told["was_whole"]
    assert describe(tmp_path / "mended")["index"] == "complete"
    assert (tmp_path / "mended" / "ep_0.mcap").read_bytes() == before["ep_0.mcap"]
    with AnyReader([tmp_path / "mended"]) as reader:
        assert sum(1 for _ in reader.messages()) == told["messages"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["robot-rl", "bag", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code in (0, 2)
        out = capsys.readouterr()
        return out.out + out.err

    count = write(tmp_path / "ep", killed=True)
    assert json.loads(run("info", str(tmp_path / "ep"), "--json"))["messages"] == count
    assert json.loads(run("recover", str(tmp_path / "ep"), "--json"))["recovered"] == str(tmp_path / "ep-recovered")
    assert "give one" in run("recover", str(tmp_path / "ep"), "--in-place", "--out", "x")
    assert "robot-rl:" in run("info", str(tmp_path / "none"))
    assert json.loads(run("plot", str(tmp_path / "ep"), "--json"))["plot"] == str(tmp_path / "ep" / "plot.html")


def test_plot_of_an_episode(tmp_path: Path) -> None:
    record(tmp_path, [False])
    told = write_plot(tmp_path / "episode_0000", tmp_path / "out" / "plot.html", [])
    assert told["sections"] == ["Joints", "Safety", "Steps"]
    page = (tmp_path / "out" / "plot.html").read_text()
    for word in ("shoulder_pan", "gripper", "command sent", "rate: cut at a speed limit", "reward", "lateness, ms",
                 "action wrist_roll", "failed"):
        assert word in page
    assert not re.search(r'(src|href)="(?!#)', page), "self-contained"
    joint = page.split("<b>shoulder_pan</b>")[1].split("</figure>")[0]
    assert len(re.findall('<path class="line fine (before|after)"', joint)) == 2
    assert joint.count(",") > 40, "with points"


def test_plot_of_chosen_fields(tmp_path: Path) -> None:
    write(tmp_path / "ep")
    shutil.copytree(tmp_path / "ep", tmp_path / "other")
    for folder in ("ep", "other"):
        told = write_plot(tmp_path / folder, tmp_path / f"{folder}.html", ["joint_states:velocity"])
        assert told["sections"] == ["velocity of /arm/joint_states"]
    page = (tmp_path / "ep.html").read_text()
    assert page.count("<figure>") == 2 and "<b>a</b>" in page, "by joint"
    told = write_plot(tmp_path / "ep", tmp_path / "ep.html", [])
    assert told["sections"] == ["position of /arm/joint_states"], "what there is of joints, without a policy"
    for field, said in (("joint_states", "give TOPIC:FIELD"), ("nothing:x", "TOPIC one of /arm/joint_states"),
                        ("joint_states:speed", "no field speed"), ("joint_states:name", "is str and no number")):
        with pytest.raises(SpecError, match=said):
            write_plot(tmp_path / "ep", tmp_path / "x.html", [field])
    assert not (tmp_path / "x.html").exists()


def test_outline_keeps_the_extremes() -> None:
    y = np.zeros(100_000)
    y[31_234], y[77_777], y[5] = 9.0, -9.0, np.nan
    x, few = outline(np.arange(100_000.0), y, 1_000)
    assert len(few) <= 1_001
    assert (np.nanmax(few), np.nanmin(few)) == (9.0, -9.0)
    assert (np.diff(x) > 0).all()
