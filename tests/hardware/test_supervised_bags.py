"""What is learned from behind a supervisor: what it let through, matched to the policy's steps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import yaml

from hardware import messages
from hardware.bus import connect
from robot_rl.bag import read
from robot_rl.finetune import bags_in
from robot_rl.safety import Reason
from robot_rl.spec import SUPERVISOR_STATE, mjcf_file, robot_file
from robot_rl.steplog import (
    SENT_TOPIC,
    STEP_TOPIC,
    SentRecord,
    StepRecord,
    join_ns,
    let_through,
    on_the_wire,
    read_episode,
    split_ns,
    supervisor_topics,
)
from tests.robots import robot

MS = 1_000_000
START = 1_700_000_000_000_000_000


def step(asked: float, sent: float, faults: Reason = Reason.NONE) -> StepRecord:
    one = np.atleast_1d
    return StepRecord(*(one(0.0) for _ in range(7)), one(float(faults)), one(asked), one(asked), one(sent), one(0.0),
                      one(0.0), one(0.0))


def sent(stamp_ns: int, value: float, reasons: Reason = Reason.NONE) -> SentRecord:
    stamp = np.array(split_ns(stamp_ns), float)
    return SentRecord(stamp, stamp, stamp, np.array([value]), np.array([float(reasons)]))


def test_records_survive_the_wire() -> None:
    record = sent(START + 7, 0.25, Reason.TOOL)
    again = SentRecord.decode(record.encode())
    for key in ("command", "heard", "stamp", "sent", "reasons"):
        np.testing.assert_array_equal(getattr(again, key), getattr(record, key))
    assert join_ns(*again.command) == START + 7


def test_what_was_sent_is_told_in_the_order_of_the_wire() -> None:
    """A policy may know the joints in another order: the topics and their joints stay the robot's."""
    body = robot(command={"interface": "position", "topic": "commands", "groups": [{"topic": "hand", "joints": ["a"]}]})
    np.testing.assert_array_equal(on_the_wire(body), [1, 0])
    a, b, c = body.joints
    turned = msgspec.structs.replace(body, joints=(b, c, a))
    np.testing.assert_array_equal(on_the_wire(turned), [0, 1])
    rows = supervisor_topics(msgspec.structs.replace(turned, supervised=True))
    assert [topic for topic, _, _ in rows] == ["supervisor/commands", "supervisor/hand", SENT_TOPIC, SUPERVISOR_STATE]
    assert not supervisor_topics(turned)


def test_steps_are_matched_to_what_was_let_through() -> None:
    """A step is told 1 ms after its command, one each 50 ms; the third command was held back."""
    commands = [START + i * 50 * MS for i in range(4)]
    steps = [(at + MS, step(0.1, 0.5)) for at in commands]
    steps[3] = (steps[3][0], step(np.nan, np.nan, Reason.STOP))
    through = {commands[0]: sent(commands[0], 0.5), commands[1]: sent(commands[1], 0.4, Reason.RATE)}
    old = START - 3_000 * MS  # of the episode before
    through[old] = sent(old, 9.0)
    first, second, third, last = (record for _, record in let_through(steps, through))
    assert (first.sent[0], first.faults[0], first.reasons[0]) == (0.5, 0, 0)
    assert (second.sent[0], second.faults[0], second.reasons[0]) == (0.4, 0, Reason.RATE)
    assert int(third.faults[0]) & Reason.STOP  # nothing is learned from there on
    assert int(last.faults[0]) == Reason.STOP
    (_, alone), *_ = let_through(steps, {old: sent(old, 9.0)})
    assert int(alone.faults[0]) & Reason.STOP


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An SO-101 whose supervisor is patient: how soon it stops a policy is not what is tried here."""
    data = yaml.safe_load(robot_file("so101").read_text())
    data["supervisor"]["heartbeat_s"] = 5.0
    shutil.copy(mjcf_file("so101"), tmp_path / data["mjcf"])
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "robot.yaml"


@pytest.fixture
def arm(domain: int, file: Path) -> Iterator[int]:
    """The simulated arm behind its supervisor, armed."""
    where = ["--bus", "dds", "--domain", str(domain)]
    processes = [subprocess.Popen([sys.executable, "-m", "robot_rl.cli", *words, *where], stdout=subprocess.PIPE,
                                  text=True) for words in (["sim-robot", file, "--no-cameras"],
                                                           ["supervisor", file])]
    for process in processes:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
    with connect("dds", "operator", "", domain) as bus:
        end = time.monotonic() + 60
        while not (answer := bus.call("supervisor/arm", 30.0))[0]:
            assert time.monotonic() < end, answer
            time.sleep(0.2)
        yield domain
    for process in reversed(processes):
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_a_supervised_episode_is_read_back_by_what_was_sent(arm: int, file: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "robot_rl.cli", "deploy", "so101-reach", "--robot", str(file), "--supervised",
         "--bus", "dds", "--domain", str(arm), "--no-cameras", "--record", str(tmp_path / "bags"), "--json"],
        capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1])["episodes"] == 1
    (folder,) = bags_in(tmp_path / "bags")
    log = read_episode(folder)
    assert log.spec.robot is not None and log.spec.robot.supervised
    told = [m for m in read(folder) if m.topic.endswith(SENT_TOPIC)]
    ours = {join_ns(*r.command): r for r in (SentRecord.decode(m.data) for m in told) if r.command.any()}
    theirs = [StepRecord.decode(m.data) for m in read(folder) if m.topic.endswith(STEP_TOPIC)]
    robots = [m for m in read(folder) if m.topic == "/forward_position_controller/commands"]
    numbers = [np.array(messages.decode(m.data, "std_msgs/msg/Float64MultiArray").data) for m in robots]
    moving = [r for r in log.records if np.isfinite(r.asked).all() and not int(r.faults[0])]
    assert len(moving) >= min(10, len(theirs) - 2)
    for record in moving:
        assert any(np.array_equal(record.sent, number) for number in numbers)  # what the robot was told
    assert len(ours) >= len(moving)
    for outcome, action in log.replayed():
        assert outcome.valid or outcome.truncated
        assert action is None or np.isfinite(action).all()
