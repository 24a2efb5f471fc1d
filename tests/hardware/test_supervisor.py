"""The supervisor between real processes: what it lets through, what stops the robot, and how soon."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from hardware import messages
from hardware.bus import COMMAND, LATCHED, SENSOR, Qos
from hardware.diagnostics import TOPIC as DIAGNOSTICS_TOPIC
from hardware.diagnostics import TYPE as DIAGNOSTICS
from hardware.either import BOOL
from robot_rl.spec import PD, SUPERVISOR_STOPPED
from robot_rl.steplog import join_ns
from tests.hardware.scene import Scene
from tests.processes import wait_for


def test_what_is_asked_for_and_what_is_held(domain: int, tmp_path: Path) -> None:
    with Scene(tmp_path, domain, supervisor={"heartbeat_s": 5.0}) as scene:  # silence is not what is tried here
        assert scene.call("reset") == (False, "reset: it is inactive, there is nothing to reset")
        assert scene.call("disarm")[0]
        policy = scene.commander()
        time.sleep(0.3)
        scene.look()
        assert not scene.sent  # nothing goes through before it is armed
        scene.forwarding()
        assert all(np.abs(r.sent).max() <= 0.05 for r in scene.theirs())
        assert scene.call("arm") == (False, "arm: it is armed")
        assert scene.call("stop")[0]
        assert scene.until("stopped")["cause"] == ["operator"]
        count = len(scene.sent)
        wait_for(lambda: scene.look() or len(scene.sent) >= count + 20)
        held = [r.sent for r in scene.sent[count:]]
        np.testing.assert_array_equal(held, [held[0]] * len(held))  # for as long as it is latched
        policy.end()


@pytest.mark.parametrize(("interface", "arguments", "armed"), [
    ("effort", (), False), ("effort", ("--acknowledge-no-watchdog",), False), ("position", (), False),
    ("position", ("--acknowledge-no-watchdog",), True)])
def test_somebody_downstream_times_out_or_it_is_not_armed(domain: int, tmp_path: Path, interface: str,
                                                          arguments: tuple[str, ...], armed: bool) -> None:
    with Scene(tmp_path, domain, *arguments, interface=interface, watchdog={"kind": "none"}) as scene:
        time.sleep(0.5)
        done, why = scene.call("arm")
        if armed:
            scene.arm()
        else:
            assert not done
            assert "watchdog" in why


def test_an_effort_robot_is_stopped_by_zeros_and_policies_are_told(domain: int, tmp_path: Path) -> None:
    with Scene(tmp_path, domain, interface="effort", supervisor={"heartbeat_s": 5.0}) as scene:
        stopped = scene.bus.reader(SUPERVISOR_STOPPED, BOOL, LATCHED)
        policy = scene.commander()
        scene.forwarding()
        assert {tuple(r.sent) for r in scene.theirs()} == {(0.05, 0.05)}
        wait_for(lambda: (sample := stopped.newest()) is not None and not messages.decode(sample.data, BOOL).data)
        assert scene.call("stop")[0]
        scene.until("stopped")
        wait_for(lambda: messages.decode(stopped.newest().data, BOOL).data)
        wait_for(lambda: scene.look() or not scene.sent[-1].command.any())
        np.testing.assert_array_equal(scene.sent[-1].sent, [0.0, 0.0])
        policy.end()


def test_a_robot_with_a_topic_for_its_gripper(domain: int, tmp_path: Path) -> None:
    """Both topics are passed on, and one that falls silent stops the robot."""
    command = {"interface": "position", "topic": "commands", "groups": [{"topic": "gripper", "joints": ["a"]}]}
    with Scene(tmp_path, domain, command=command, supervisor={"heartbeat_s": 1.0}) as scene:
        ends = [scene.bus.reader(to.topic, to.type, COMMAND) for to in scene.spec.command_topics]
        policy = scene.commander()
        policy.pipe.send("apart")
        scene.forwarding()
        wait_for(lambda: scene.look() or np.array_equal(scene.sent[-1].sent, [-0.05, 0.05]))  # b first, as on the wire
        told = [reader.newest() for reader in ends]
        assert [list(messages.decode(s.data, scene.spec.command.type).data) for s in told if s] == [[-0.05], [0.05]]
        causes = []
        while "heartbeat" not in causes and len(causes) < 6:  # on a starved machine sensors are silent first
            policy.pipe.send("apart")
            scene.forwarding()
            policy.pipe.send("one")
            causes += scene.until("stopped")["cause"]
        assert "heartbeat" in causes
        policy.end()


def test_a_robot_whose_motors_take_gains_is_stopped_by_their_brake(domain: int, tmp_path: Path) -> None:
    joints = [{"name": name, "lower": -1.0, "upper": 1.0, "velocity": 2.0, "effort": 3.0, "kp": 10.0, "kd": 0.5,
               "stop_kd": 4.0} for name in "ab"] + [{"name": "c", "velocity": 50.0, "effort": 1.0, "actuated": False}]
    command = {"interface": "position", "topic": "legs", "type": PD}
    with Scene(tmp_path, domain, joints=joints, command=command, stop="damping",
               supervisor={"heartbeat_s": 5.0}) as scene:
        end = scene.bus.reader("legs", PD, COMMAND)
        policy = scene.commander()
        scene.forwarding()
        assert gains(end) == {(10.0, 0.5)}
        policy.pipe.send("brake")  # as at the end of an episode
        wait_for(lambda: gains(end) == {(0.0, 4.0)})
        policy.pipe.send("calm")
        scene.forwarding()
        assert scene.call("stop")[0]
        scene.until("stopped")
        wait_for(lambda: gains(end) == {(0.0, 4.0)})
        policy.end()


def gains(reader) -> set[tuple[float, float]]:
    """kp and kd in the newest command."""
    sample = reader.newest()
    return {tuple(one.values[1:]) for one in messages.decode(sample.data, PD).interface_values} if sample else set()


def test_a_deadman_switch_is_held(domain: int, tmp_path: Path) -> None:
    with Scene(tmp_path, domain, supervisor={"deadman": "deadman", "deadman_s": 1.0}) as scene:
        health = scene.bus.reader(DIAGNOSTICS_TOPIC, DIAGNOSTICS, SENSOR)
        assert health.wait(60)
        (status,) = messages.decode(health.take()[-1].data, DIAGNOSTICS).status
        values = {pair.key: pair.value for pair in status.values}
        assert status.name == "supervisor: stop logic"
        assert (values["state"], values["flag deadman"], values["flag watchdog"]) == ("inactive", "True", "False")
        done, why = scene.call("arm")
        assert not done
        assert "deadman" in why
        held = scene.bus.publisher("deadman", "std_msgs/msg/Bool", LATCHED)
        end = time.monotonic() + 60
        while not scene.call("arm")[0]:
            held.publish(messages.encode(messages.boolean(True)))
            assert time.monotonic() < end
        assert scene.until("stopped")["cause"] == ["deadman"]  # nobody says so any more


def test_how_long_a_command_takes_with_and_without_it(domain: int, tmp_path: Path) -> None:
    """From a policy's publish to a reader on the robot's command topic, in another process."""
    with Scene(tmp_path, domain, supervisor={"heartbeat_s": 5.0}) as scene:
        ends = scene.bus.reader(scene.spec.command.topic, scene.spec.command.type, Qos(reliable=True, depth=10))
        direct = scene.commander(direct=True)
        alone = [sample[1] - sample[0] for sample in arrivals(ends, 100)]
        direct.pipe.send("stop")
        policy = scene.commander()
        scene.forwarding(5)
        ends.take()
        came = dict(arrivals(ends, 100))
        scene.look()
        theirs = {join_ns(*r.stamp): join_ns(*r.command) for r in scene.theirs()}
        through = [arrival - theirs[stamp] for stamp, arrival in came.items() if stamp in theirs]
        policy.end()
    assert len(through) >= 20
    for name, values in (("without", alone), ("with", through)):
        p50, p99 = np.percentile(values, (50, 99)) * 1e-6
        print(f"{name} the supervisor: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        assert 0 < p50 < 50


def arrivals(reader, count: int) -> list[tuple[int, int]]:
    """(source stamp, time of the take), ns, of so many messages."""
    found: list[tuple[int, int]] = []
    end = time.monotonic() + 60
    while len(found) < count and time.monotonic() < end:
        reader.wait(0.1)
        samples, now = reader.take(), time.time_ns()
        found += [(sample.stamp_ns, now) for sample in samples]
    return found
