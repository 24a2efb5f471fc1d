"""The servo driver against a simulated arm on a pseudo-terminal: what moves, what is refused, what goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

from hardware import feetech, messages
from hardware.arm import Arm
from hardware.bus import COMMAND, LATCHED, SENSOR, Bus, connect
from hardware.calibration import load_calibration
from hardware.either import BOOL
from hardware.feetech import BusError
from hardware.servo_driver import JUMP, Options, ServoDriver
from robot_rl.spec import POSE, RobotSpec, SpecError, load_robot, mjcf_file
from tests.hardware.servo_arm import SimServos
from tests.processes import wait_for

COMMANDS, FLOATS = "forward_position_controller/commands", "std_msgs/msg/Float64MultiArray"
HOME = np.array([0.0, -0.6, 0.6, 0.7, 0.0, 0.0])
DROOP = 0.08  # rad that the simulated servos hang under gravity


@pytest.fixture(scope="module")
def one_arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimServos]:
    with SimServos(tmp_path_factory.mktemp("servos"), calibrated=True) as arm:
        yield arm


@pytest.fixture
def servos(one_arm: SimServos, tmp_path: Path) -> SimServos:
    """The arm, mended and without torque, and a copy of its calibration."""
    one_arm.do("heal")
    copy = tmp_path / "arm.yaml"
    original = one_arm.port.with_name("arm0.yaml")
    copy.write_bytes(original.read_bytes())
    one_arm.calibration = copy
    return one_arm


class Bench:
    """A driver in a thread, and an operator's bus beside it."""

    def __init__(self, servos: SimServos, domain: int, robot: str = "so101", **options: Any) -> None:
        self.servos, self.spec = servos, load_robot(robot)
        self._wire = connect("dds", "driver", "", domain)
        self.driver = ServoDriver(self.spec, mjcf_file(robot), servos.calibration, str(servos.port), self._wire,
                                  Options(**options))
        self.bus: Bus = connect("dds", "operator", "", domain)
        self._states = self.bus.reader("joint_states", "sensor_msgs/msg/JointState", SENSOR)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.driver.run, args=(self._stop.is_set,))

    def __enter__(self) -> Bench:
        self._thread.start()
        wait_for(self._states.newest)
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        self.bus.close()
        self._wire.close()

    def end(self) -> None:
        """End the driver as a signal does."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def call(self, service: str, works: bool = True) -> str:
        """What a service answers."""
        done, said = self.bus.call(service, 40)
        assert done is works, said
        return said

    def state(self) -> np.ndarray:
        """(J,) rad, the newest that was published."""
        return np.array(messages.decode(self._states.newest().data, "sensor_msgs/msg/JointState").position)

    def speaks(self) -> bool:
        """Whether joint states come."""
        before = self._states.newest()
        time.sleep(0.3)
        return self._states.newest() is not before

    def mode(self, mode: str) -> None:
        """Wait until the driver is in a mode."""
        wait_for(lambda: self.driver.mode == mode)

    def stopped(self) -> Callable[[], bool]:
        """Whether the protective stop is pressed, as a policy sees it."""
        reader = self.bus.reader("safety/protective_stop", BOOL, LATCHED)
        return lambda: (s := reader.newest()) is not None and bool(messages.decode(s.data, BOOL).data)


class Stream:
    """Commands at 20 Hz from a thread; a context manager."""

    def __init__(self, bus: Bus, goal: np.ndarray) -> None:
        self._publisher, self.goal = bus.publisher(COMMANDS, FLOATS, COMMAND), goal
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.wait(0.05):
            self._publisher.publish(messages.encode(messages.float64s(self.goal)))

    def __enter__(self) -> Stream:
        wait_for(self._publisher.matched)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._publisher.close()


def test_one_day_of_an_arm(servos, domain, capfd) -> None:
    with Bench(servos, domain) as bench:
        limp = bench.state()
        np.testing.assert_allclose(limp, servos.where(), atol=0.1)
        with Stream(bench.bus, HOME):  # nothing moves before it is asked for
            time.sleep(0.5)
            assert bench.driver.mode == "limp"
        before = servos.where()
        assert bench.call("arm") == "holding the pose"
        time.sleep(0.3)
        np.testing.assert_allclose(servos.where(), before, atol=DROOP)  # no jump
        assert bench.call("reset") == "at the default pose"
        np.testing.assert_allclose(servos.where(), HOME, atol=DROOP)
        tip = bench.bus.reader("tip_pose", POSE, SENSOR)
        wait_for(tip.newest)
        assert messages.decode(tip.newest().data, POSE).pose.position.z == pytest.approx(0.2, abs=0.15)
        there = HOME + np.array([0.3, 0.1, -0.1, 0.1, 0.2, 0.3])
        with Stream(bench.bus, there) as stream:
            wait_for(lambda: np.allclose(servos.where(), there, atol=DROOP))
            stream.goal = there + np.array([9.0, 0, 0, 0, 0, 0])  # the driver has limits of its own
            wait_for(lambda: servos.where()[0] > 1.85)
            time.sleep(0.3)
            assert servos.where()[0] < 1.93
        wait_for(lambda: "no command for" in capfd.readouterr().err)  # and now it holds
        held = servos.where()
        time.sleep(0.5)
        np.testing.assert_allclose(servos.where(), held, atol=DROOP)
        assert bench.call("park") == "parked, torque off"
        assert bench.driver.mode == "limp"
        assert bench.call("park") == "there was no torque"


def test_a_first_command_far_away_and_bad_ones_are_refused(servos, domain, capfd) -> None:
    with Bench(servos, domain) as bench:
        bench.call("reset")
        for goal, words in ((HOME + 2 * JUMP, "more than 0.35 rad from the arm"), (HOME[:4], "4 numbers for 6 joints"),
                            (np.full(6, np.nan), "more than 0.35 rad")):
            with Stream(bench.bus, goal):
                seen = ""
                end = time.monotonic() + 20
                while words not in seen and time.monotonic() < end:
                    seen += capfd.readouterr().err
                    time.sleep(0.05)
                assert words in seen
        np.testing.assert_allclose(servos.where(), HOME, atol=DROOP)
        with Stream(bench.bus, HOME) as stream:  # once it follows, what is no number is skipped
            wait_for(lambda: bench.driver._streaming)
            stream.goal = np.full(6, np.nan)
            time.sleep(0.3)
            np.testing.assert_allclose(servos.where(), HOME, atol=DROOP)


def test_two_publishers_of_commands_are_none(servos, domain, capfd) -> None:
    with Bench(servos, domain) as bench:
        bench.call("reset")
        with Stream(bench.bus, HOME + 0.2):
            wait_for(lambda: np.allclose(servos.where(), HOME + 0.2, atol=DROOP))
            with Stream(bench.bus, HOME + 0.1):
                wait_for(lambda: bench.driver._writers == 2)
                assert "2 publishers on forward_position_controller/commands" in capfd.readouterr().err
                held = servos.where()
                time.sleep(0.5)
                np.testing.assert_allclose(servos.where(), held, atol=DROOP)
            wait_for(lambda: bench.driver._writers == 1 and bench.driver._streaming)


def test_a_protective_stop_holds_and_is_over_only_when_asked(servos, domain) -> None:
    with Bench(servos, domain) as bench:
        bench.call("reset")
        stop = bench.bus.publisher("safety/protective_stop", BOOL, LATCHED)
        with Stream(bench.bus, HOME + 0.2) as stream:
            wait_for(lambda: bench.driver._streaming)
            stop.publish(messages.encode(messages.boolean(True)))
            bench.mode("fault")
            held = servos.where()
            stream.goal = HOME - 0.2
            time.sleep(0.5)
            np.testing.assert_allclose(servos.where(), held, atol=DROOP)
            for service in ("arm", "reset", "park"):
                assert "protective stop" in bench.call(service, works=False)
            stop.publish(messages.encode(messages.boolean(False)))
            time.sleep(0.5)
            assert bench.driver.mode == "fault"
        bench.call("arm")
        assert bench.driver.mode == "ready"


def test_bad_replies_cost_rounds_and_nothing_else(servos, domain) -> None:
    with Bench(servos, domain) as bench:
        bench.call("reset")
        arm = bench.driver.arm
        with Stream(bench.bus, HOME + 0.1):
            for trouble in ("corrupt 3 4", "drop 5 3", "late 2 70"):
                failed = arm.bus.counts.failed
                servos.do(trouble)
                wait_for(lambda failed=failed: arm.bus.counts.failed > failed)
                wait_for(bench.speaks)
                assert bench.driver.mode == "ready"
            wait_for(lambda: np.allclose(servos.where(), HOME + 0.1, atol=DROOP))
            np.testing.assert_allclose(bench.state(), servos.where(), atol=0.02)


def test_a_pulled_cable_and_back(servos, domain, capfd) -> None:
    with Bench(servos, domain) as bench:
        bench.call("reset")
        stopped = bench.stopped()
        servos.do("pull")
        bench.mode("lost")
        assert not bench.speaks()  # nothing is made up: a policy sees the silence
        assert "servos are lost" in bench.call("reset", works=False)
        wait_for(stopped)
        servos.do("plug")
        bench.mode("fault")
        wait_for(bench.speaks)
        np.testing.assert_allclose(servos.where(), HOME, atol=DROOP)  # held by the servos all the while
        bench.call("reset")
        wait_for(lambda: not stopped())
        with Stream(bench.bus, HOME + 0.1):
            wait_for(lambda: np.allclose(servos.where(), HOME + 0.1, atol=DROOP))
    said = capfd.readouterr().err
    assert "driver: lost: port" in said
    assert "the servos were lost and are back, with torque" in said


def test_a_servo_that_falls_silent_is_named_and_power_that_came_back_holds_nothing(servos, domain, capfd) -> None:
    with Bench(servos, domain) as bench:
        bench.call("arm")
        servos.do("drop 4 100000")
        bench.mode("lost")
        assert "no answer from servo 4" in bench.driver.why
        servos.do("drop 4 0")
        servos.do("power")
        bench.mode("limp")
        assert "without torque" in capfd.readouterr().err
        assert bench.call("arm") == "holding the pose"


def test_a_hot_servo_is_parked_before_it_gives_up(servos, domain) -> None:
    with Bench(servos, domain) as bench:
        bench.call("reset")
        stopped = bench.stopped()
        servos.do("heat 2 66")
        bench.mode("limp")
        wait_for(stopped)
        assert "servo 2 (shoulder_lift): 66 degrees C" in bench.driver.why
        assert "too hot" in bench.call("reset", works=False)
        servos.do("heat 2 60")
        assert "too hot" in bench.call("arm", works=False)
        servos.do("heat 2 40")
        time.sleep(0.5)
        bench.call("reset")
        wait_for(lambda: not stopped())


def test_a_servo_that_reports_a_fault_stops_the_arm(servos, domain) -> None:
    with Bench(servos, domain) as bench:
        bench.call("reset")
        servos.do("volt 3 39")
        bench.mode("fault")
        assert "servo 3 (elbow_flex): voltage" in bench.driver.why
        assert "voltage" in bench.call("arm", works=False)
        servos.do("volt 3 120")
        time.sleep(0.5)
        bench.call("arm")


def test_a_reset_waits_until_objects_are_in_their_places(servos, domain, tmp_path) -> None:
    with Bench(servos, domain, "so101-cube") as bench:
        answers: list[str] = []
        caller = threading.Thread(target=lambda: answers.append(bench.call("reset")))
        caller.start()
        bench.mode("confirming")
        time.sleep(0.3)
        assert not answers
        with connect("dds", "person", "", domain) as person:
            assert person.call("reset/confirm", 20) == (True, "confirmed")
        caller.join(20)
        assert answers == ["at the default pose"]
        assert "no reset waits" in bench.call("reset/confirm", works=False)
        assert "cube_pose" not in str(bench.bus.topics())  # whom joints do not tell, somebody else must


def test_a_driver_that_finds_torque_on_does_not_drop_the_arm(servos, domain) -> None:
    robot = load_robot("so101")
    arm = Arm(robot, load_calibration(servos.calibration, robot), servos.calibration, str(servos.port))
    arm.hold()
    arm.bus.close()
    held = servos.where()
    with Bench(servos, domain) as bench:
        assert bench.driver.mode == "ready"
        time.sleep(0.5)
        np.testing.assert_allclose(servos.where(), held, atol=DROOP)
    bus = feetech.ServoBus(str(servos.port))
    assert not any(bus.read(i, feetech.TORQUE_ENABLE) for i in range(1, 7))  # parked at the end
    bus.close()


def test_torque_limits_reach_the_servos_before_torque_does(servos, domain, tmp_path) -> None:
    body = yaml.safe_load(servos.calibration.read_text())
    body["joints"]["gripper"]["torque_limit"] = 0.4
    servos.calibration.write_text(yaml.safe_dump(body))
    with Bench(servos, domain) as bench:
        bench.call("arm")
        bench.end()
        bus = feetech.ServoBus(str(servos.port))
        limits = {i: bus.read(i, feetech.TORQUE_LIMIT) for i in range(1, 7)}
        bus.close()
    assert limits == dict.fromkeys(range(1, 6), 1000) | {6: 400}


@pytest.mark.parametrize("change, words", [
    ({"id": 9}, r"joints.gripper.id: 9 does not answer; the ids that do are \[1"),
    ({"offset": 5}, r"joints.gripper.offset: the file says 5, servo 6 -?\d+"),
], ids=["wrong id", "another offset"])
def test_a_calibration_that_does_not_fit_is_refused(servos, domain, change, words) -> None:
    body = yaml.safe_load(servos.calibration.read_text())
    body["joints"]["gripper"] |= change
    servos.calibration.write_text(yaml.safe_dump(body))
    with pytest.raises(SpecError, match=words):
        Bench(servos, domain)


def test_the_calibration_of_another_arm_is_refused_with_both_values(servos, domain, tmp_path) -> None:
    with SimServos(tmp_path, calibrated=True, seed=1) as other:
        servos.calibration = other.calibration
        with pytest.raises(SpecError, match="'simulated 1' is not that of the arm") as refused:
            Bench(servos, domain)
    lines = str(refused.value).splitlines()
    assert sum("offset: the file says" in line for line in lines) == 6


def test_robots_that_these_servos_cannot_be_are_refused(servos, domain) -> None:
    with connect("dds", "driver", "", domain) as bus, pytest.raises(SpecError, match=r"command\.interface=effort"):
        ServoDriver(load_robot("furuta"), mjcf_file("furuta"), servos.calibration, str(servos.port), bus)
    with connect("dds", "driver", "", domain) as bus, pytest.raises(SpecError, match="/dev/none"):
        ServoDriver(load_robot("so101"), mjcf_file("so101"), servos.calibration, "/dev/none", bus)


def test_a_round_takes_little_through_the_terminal(servos) -> None:
    robot = load_robot("so101")
    arm = Arm(robot, load_calibration(servos.calibration, robot), servos.calibration, str(servos.port))
    took = []
    for _ in range(200):
        began = time.perf_counter()
        try:
            arm.go(arm.read().position)
        except BusError:
            continue
        took.append(time.perf_counter() - began)
    arm.bus.close()
    p50, p99 = np.percentile(np.array(took) * 1e3, [50, 99])
    print(f"sync read and write of 6 servos: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    assert len(took) > 100
    assert p50 < 50


def cli(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "robot_rl.cli", *map(str, arguments)], capture_output=True, text=True,
                          timeout=timeout)


def patient(folder: Path) -> tuple[Path, RobotSpec]:
    """The SO-101's file for a machine that may stall for seconds."""
    body = msgspec.to_builtins(load_robot("so101"))
    for sensor in body["sensors"]:
        sensor["stale_after_s"] = 5.0
    (folder / "robot.yaml").write_text(yaml.safe_dump(body))
    (folder / "so101.xml").write_bytes(mjcf_file("so101").read_bytes())
    return folder / "robot.yaml", load_robot(str(folder / "robot.yaml"))


def test_jog_and_home_move_the_arm_and_say_where_it_is(servos, domain, tmp_path) -> None:
    file, _ = patient(tmp_path)
    with Bench(servos, domain) as bench:
        where = ["--bus", "dds", "--domain", domain]
        bench.call("reset")
        got = cli("jog", file, "shoulder_pan", 20, "--speed", 1.0, "--json", *where)
        assert got.returncode == 0, got.stderr
        measured = json.loads(got.stdout.splitlines()[-1])
        assert measured["shoulder_pan"] == pytest.approx(np.deg2rad(20), abs=0.03)
        assert servos.where()[0] == pytest.approx(measured["shoulder_pan"], abs=0.02)
        got = cli("home", file, "--speed", 1.0, *where)
        assert got.returncode == 0, got.stderr
        np.testing.assert_allclose(servos.where(), HOME, atol=DROOP)


def test_home_works_with_any_robot_that_takes_positions(domain, tmp_path) -> None:
    file, _ = patient(tmp_path)
    body = yaml.safe_load(file.read_text())
    body["command"] = {"interface": "position", "topic": "arm_controller/joint_trajectory",
                       "type": "trajectory_msgs/msg/JointTrajectory"}
    file.write_text(yaml.safe_dump(body))
    where = ["--bus", "dds", "--domain", str(domain)]
    robot = subprocess.Popen([sys.executable, "-m", "robot_rl.cli", "sim-robot", str(file), "--no-cameras", *where],
                             stdout=subprocess.PIPE, text=True)
    try:
        assert "ready" in robot.stdout.readline()
        for command, pan in ((["jog", file, "shoulder_pan", "--to", 0.5], 0.5), (["home", file], 0.0)):
            got = cli(*command, "--speed", 1.0, "--json", *where)
            assert got.returncode == 0, got.stderr
            assert json.loads(got.stdout.splitlines()[-1])["shoulder_pan"] == pytest.approx(pan, abs=0.03)
    finally:
        robot.terminate()
        assert robot.wait(20) == 0


def test_jogs_that_may_not_be_are_refused(servos, domain, tmp_path) -> None:
    from hardware.jog import Jog
    file, spec = patient(tmp_path)
    mjcf = mjcf_file(str(file))
    with Bench(servos, domain) as bench, connect("dds", "jog", "", domain) as bus:
        bench.call("reset")
        jog = Jog(spec, mjcf, bus, 1.0)
        for given, words in ((("elbow", {"delta": 0.1}), "joint 'elbow': .*elbow_flex"),
                             (("elbow_flex", {}), "a delta or --to")):
            with pytest.raises(SpecError, match=words):
                jog.target(given[0], **given[1])
        with pytest.raises(SpecError, match=r"should go to 3, its limits are -1.91986 and 1.91986"):
            jog.go(jog.target("shoulder_pan", to=3.0))
        with pytest.raises(SpecError, match=r"outside its workspace|leave its workspace"):
            jog.go(jog.target("shoulder_lift", to=1.7))
        with Stream(bench.bus, HOME), pytest.raises(SpecError, match=r"1 other publisher\(s\) on forward_position"):
            jog.go(jog.home())
        bench.call("park")
        with pytest.raises(SpecError, match=r"is the driver armed \(robot-rl call arm\)"):
            jog.go(jog.home() + np.array([0.5, 0, 0, 0, 0, 0]))
        stop = bench.bus.publisher("safety/protective_stop", BOOL, LATCHED)
        stop.publish(messages.encode(messages.boolean(True)))
        wait_for(lambda: jog._fault(jog._io.read()))
        with pytest.raises(SpecError, match="may not move: the protective stop"):
            jog.go(jog.home())
    with connect("dds", "jog", "", domain) as bus:
        with pytest.raises(SpecError, match=r"--speed 9: outside \(0, 4.0\]"):
            Jog(spec, mjcf, bus, 9)
        with pytest.raises(SpecError, match=r"command\.interface=effort"):
            Jog(load_robot("furuta"), mjcf_file("furuta"), bus)


@pytest.mark.slow
def test_a_policy_reaches_its_goals_through_driver_wire_and_servos(servos, domain, tmp_path) -> None:
    """Every part is a process of its own: servos with physics, driver, policy, recorder."""
    file, _ = patient(tmp_path)
    where = ["--bus", "dds", "--domain", str(domain)]
    driver = subprocess.Popen(
        [sys.executable, "-m", "robot_rl.cli", "driver", str(file), "--port", str(servos.port), "--calibration",
         str(servos.calibration), *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        text=True)
    try:
        assert "ready" in driver.stdout.readline()
        got = cli("deploy", "so101-reach", "--robot", file, "--episodes", 3, "--no-cameras", "--record",
                  tmp_path / "bags", "--json", *where)
        assert got.returncode == 0, got.stderr
        figures = json.loads(got.stdout.splitlines()[-1])
        assert figures["episodes"] == 3
        assert figures["success_rate"] > 0.3
        assert cli("call", "park", *where).stdout.strip() == "parked, torque off"
        assert "reset refused" not in got.stderr
    finally:
        driver.send_signal(signal.SIGTERM)
        _, err = driver.communicate(timeout=60)
    assert driver.returncode == 0, err
    assert "Traceback" not in err
