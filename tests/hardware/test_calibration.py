"""Calibrations: what a sweep means, what is refused, and the whole of it with an operator at a simulated arm."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

from hardware.calibrate import calibrate, understand
from hardware.calibration import RADIAN, load_calibration, save_calibration
from robot_rl.spec import Joint, SpecError, load_robot, mjcf_file
from tests.hardware.servo_arm import SimServos

ELBOW = Joint(name="elbow", lower=-1.0, upper=1.5, velocity=1.0, effort=1.0)


def sweep(*turns: float) -> list[int]:
    """Ticks on the way through joint positions that begin at the middle, for a servo that counts upwards."""
    corners = [2048, *(2048 + round((turn - 0.25) * RADIAN) for turn in turns)]
    legs = [np.linspace(a, b, 20) for a, b in itertools.pairwise(corners)]
    return [round(t) for t in np.concatenate(legs)]


def test_a_sweep_gives_range_direction_and_zero() -> None:
    found, direction, zero = understand(ELBOW, sweep(1.52, -1.02))
    assert direction == 1
    assert zero == pytest.approx(2048 - 0.25 * RADIAN, abs=1)
    assert (found.lower, found.upper) == (sweep(-1.02)[-1], sweep(1.52)[-1])


def test_a_servo_that_counts_downwards_is_seen() -> None:
    _, direction, zero = understand(ELBOW, [4096 - t for t in sweep(1.5, -1.0)])
    assert direction == -1
    assert zero == pytest.approx(2048 + 0.25 * RADIAN, abs=1)


def test_ends_correct_a_middle_that_was_shown_a_little_off() -> None:
    _, _, zero = understand(ELBOW, [t + 100 for t in sweep(1.5, -1.0)])
    assert zero == pytest.approx(2148 - 0.25 * RADIAN, abs=1)


def test_a_joint_without_stops_keeps_the_middle_that_was_shown() -> None:
    _, _, zero = understand(ELBOW, sweep(2.2, -1.2))
    assert zero == pytest.approx(2048 - 0.25 * RADIAN, abs=1)


@pytest.mark.parametrize("ticks, words", [
    ([2048] * 9, "joint 'elbow': it was moved over 0.000 rad, the robot file says"),
    (sweep(0.8, -0.5), r"moved over 1.30\d rad, the robot file says lower: -1.0, upper: 1.5, which is 2.500"),
    (sweep(1.5, -1.0, 0.3), "left 52% into its range, not at its negative end"),
    ([2048, 4000, 4095, 3, 500], "over the end of the servo's turn, from 4095 to 3 ticks"),
    ([t + 300 for t in sweep(1.5, -1.0)], r"the middle that was shown is 0.46\d rad from that of its range"),
    (sweep(3.2, -0.7), "reaches -0.699 to 3.200 rad, but the robot file says lower: -1.0, upper: 1.5"),
], ids=["still", "short", "left in between", "wrap", "lopsided", "one side"])
def test_a_sweep_that_makes_no_sense_is_refused(ticks: list[int], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        understand(ELBOW, ticks)


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A calibrated simulated arm; its file has been written."""
    with SimServos(tmp_path_factory.mktemp("servos"), calibrated=True) as servos:
        yield servos


def test_a_calibration_is_read_back_as_it_was_written(arm: SimServos, tmp_path: Path) -> None:
    read = load_calibration(arm.calibration, load_robot("so101"))
    save_calibration(read, tmp_path / "again.yaml")
    assert load_calibration(tmp_path / "again.yaml", load_robot("so101")) == read
    there = np.array([0.5, -0.4, 0.3, 0.2, -0.1, 1.0])
    np.testing.assert_allclose(read.position(read.ticks(there)), there, atol=0.5 / RADIAN)
    far = read.position(read.ticks(np.full(6, 9.0)))
    assert np.all(far < 3.0)  # never beyond what the joint reached


def spoiled(change: dict[str, Any] | None, **elbow: Any) -> Any:
    def spoil(body: dict[str, Any]) -> dict[str, Any]:
        body["joints"]["elbow_flex"] |= elbow
        return body | (change or {})
    return spoil


def renamed(body: dict[str, Any]) -> dict[str, Any]:
    body["joints"]["elbow"] = body["joints"].pop("elbow_flex")
    return body


@pytest.mark.parametrize("spoil, words", [
    (renamed, "made for robot 'so101' with joints elbow, .*; robot 'so101' has .*elbow_flex"),
    (spoiled(None, id=2), r"id=2 is that of another joint too"),
    (spoiled(None, direction=2), "direction"),
    (spoiled(None, torque_limit=1.5), r"torque_limit=1.5 is outside \(0, 1\]"),
    (spoiled(None, lower=1800), "joints.elbow_flex: it reaches .* but the robot file says lower: -1.69"),
    (spoiled(None, upper=4200), "upper=4200 must be ticks of one turn"),
    (spoiled(None, zero=100), "zero=100 is outside"),
    (spoiled(None, angle=1), "angle"),
    (spoiled({"schema": 2}), "schema=2; this version reads schema 1"),
])
def test_a_file_that_makes_no_sense_is_refused(arm: SimServos, tmp_path: Path, spoil: Any, words: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(spoil(yaml.safe_load(arm.calibration.read_text()))))
    with pytest.raises(SpecError, match=words) as refused:
        load_calibration(file, load_robot("so101"))
    assert "bad.yaml" in str(refused.value)


def test_no_file_and_no_yaml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none.yaml: cannot be read: No such file.*robot-rl calibrate"):
        load_calibration(tmp_path / "none.yaml", load_robot("so101"))
    (tmp_path / "bad.yaml").write_text("joints: [")
    with pytest.raises(SpecError, match=r"bad.yaml"):
        load_calibration(tmp_path / "bad.yaml", load_robot("so101"))


def test_what_cannot_be_calibrated_is_refused_before_torque_changes(arm: SimServos, tmp_path: Path) -> None:
    robot, port, out = load_robot("so101"), str(arm.port), tmp_path / "arm.yaml"
    for given, words in (({"ids": [1, 2, 3]}, "needs 6 different ones"), ({"ids": [1, 2, 3, 4, 5, 5]}, "needs 6"),
                         ({"torque": {"jaw": 0.5}}, "--torque-limit jaw=0.5.*gripper"),
                         ({"ids": [1, 2, 3, 4, 5, 9]}, r"'gripper': id 9 does not answer; the ids that do are \[1")):
        with pytest.raises(SpecError, match=words):
            calibrate(robot, port, out, **given)
    assert not out.exists()


def test_two_servos_of_one_id_are_noticed(tmp_path: Path) -> None:
    with SimServos(tmp_path) as servos:
        servos.do("twin 3")
        with pytest.raises(SpecError, match=r"joint 'elbow_flex': 5 of 5 answers of id 3 are garbled: do two servos"):
            calibrate(load_robot("so101"), str(servos.port), tmp_path / "arm.yaml")


OUT_OF_THE_WAY = {"shoulder_lift": {"elbow_flex": -1.6}, "elbow_flex": {"shoulder_lift": -1.5},
                  "wrist_flex": {"shoulder_lift": 0.0, "elbow_flex": -1.0}}
"""Where an operator holds other joints, so that a joint reaches its ends before the arm meets the table."""


def test_an_operator_calibrates_an_arm_and_the_file_says_where_it_is(tmp_path: Path) -> None:
    """The arm's servos are mounted anyhow; afterwards their ticks tell the joints' true positions."""
    robot, out = load_robot("so101"), tmp_path / "arm.yaml"
    with SimServos(tmp_path, seed=11) as servos:
        for joint in robot.joints:
            servos.do(f"hand {joint.name} {(joint.lower + joint.upper) / 2}")
        process = subprocess.Popen(
            [sys.executable, "-m", "robot_rl.cli", "calibrate", "so101", "--port", str(servos.port), "--out", str(out),
             "--arm", "bench", "--torque-limit", "gripper=0.5", "--gains", "16,0,32"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert "middle of its range" in process.stdout.readline()
        enter(process)
        for joint in robot.joints:
            assert f"move {joint.name} to its positive end ({joint.positive})" in process.stdout.readline()
            if joint.name == "elbow_flex":  # once the wrong way round, which is asked for again
                enter(process)
                assert f"move {joint.name}" in process.stdout.readline()
            for other, at in OUT_OF_THE_WAY.get(joint.name, {}).items():
                servos.do(f"hand {other} {at}")
            servos.do(f"hand {joint.name} {joint.upper + 0.02}")
            servos.do(f"hand {joint.name} {joint.lower - 0.02}")
            enter(process)
        assert "rest without torque" in process.stdout.readline()
        for joint in robot.joints:
            servos.do(f"hand {joint.name} {joint.default}")
        enter(process)
        said, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert f"{out} written" in said
        assert "joint 'elbow_flex': it was moved over 0.0" in err
        made = load_calibration(out, robot)
        assert made.arm == "bench"
        assert made.joints["gripper"].torque_limit == 0.5
        assert made.joints["gripper"].gains == (16, 0, 32)
        truth = servos.where()
        from hardware.arm import Arm
        arm = Arm(robot, made, out, str(servos.port))
        np.testing.assert_allclose(arm.read().position, truth, atol=0.03)
        np.testing.assert_allclose(arm.rest, truth, atol=0.05)
        arm.bus.close()


def test_an_operator_who_leaves_leaves_no_file(tmp_path: Path) -> None:
    with SimServos(tmp_path) as servos:
        got = subprocess.run(
            [sys.executable, "-m", "robot_rl.cli", "calibrate", "so101", "--port", str(servos.port), "--out",
             str(tmp_path / "arm.yaml")], input="\n", capture_output=True, text=True, timeout=60)
    assert got.returncode == 2
    assert "the input has ended" in got.stderr
    assert not (tmp_path / "arm.yaml").exists()


def test_a_new_servo_gets_an_id_only_when_it_is_alone(arm: SimServos, tmp_path: Path) -> None:
    got = subprocess.run([sys.executable, "-m", "robot_rl.cli", "calibrate", "so101", "--port", str(arm.port),
                          "--new-id", "7"], capture_output=True, text=True, timeout=120)
    assert got.returncode == 2
    assert "connect one servo alone" in got.stderr
    assert "the ids that answer" in got.stderr
    body = msgspec.to_builtins(load_robot("so101"))
    body["joints"], body["sensors"] = body["joints"][:1], body["sensors"][:1]
    del body["workspace"], body["cameras"]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(body))
    (tmp_path / "so101.xml").write_bytes(mjcf_file("so101").read_bytes())
    with SimServos(tmp_path, robot=str(tmp_path / "one.yaml")) as single:
        got = subprocess.run([sys.executable, "-m", "robot_rl.cli", "calibrate", "so101", "--port", str(single.port),
                              "--new-id", "7"], capture_output=True, text=True, timeout=120)
        assert got.stdout.strip() == "calibrate: servo 1 is servo 7 now", got.stderr


def enter(process: subprocess.Popen) -> None:
    assert process.poll() is None, process.stderr.read()
    process.stdin.write("\n")
    process.stdin.flush()


