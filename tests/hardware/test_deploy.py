"""Deploy against a real robot process: it runs, records, stops safely, and refuses what does not fit."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

import sim
from hardware import messages
from hardware.bus import LATCHED, SENSOR, connect
from hardware.either import BOOL
from hardware.policy_node import PolicyNode
from robot_rl.finetune import bags_in
from robot_rl.policy import Policy
from robot_rl.spec import SpecError, load_robot, mjcf_file
from robot_rl.steplog import read_episode
from tests.processes import figures, start, wait_for

torch = pytest.importorskip("torch")


class Wave(torch.nn.Module):
    """A policy that moves every joint a little, back and forth with the arm's own position."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(-0.5))

    def forward(self, obs: Any, noise: Any) -> Any:
        return torch.tanh(self.gain * obs[:, :5] + 0.3 * noise)


class Count(torch.nn.Module):
    """Asks for a hundredth of the steps that it has seen, which it carries from one to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.size = torch.nn.Parameter(torch.tensor(0.01))

    def forward(self, obs: Any, noise: Any, carry: Any) -> Any:
        return self.size * carry + 0.0 * (obs[:, :5] + noise[:, :5]), carry + 1.0


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from robot_rl.learn.export import export
    spec, _ = sim.task_spec("so101-reach")
    path = tmp_path_factory.mktemp("policy") / "wave.onnx"
    export(Wave(), spec.observation_size, spec.action_size, spec.to_json(), path)
    return path


@pytest.fixture
def robot(domain: int) -> Iterator[subprocess.Popen]:
    process = start("sim-robot", "so101", "--bus", "dds", "--domain", domain, "--no-cameras")
    assert "ready" in process.stdout.readline()
    yield process
    process.send_signal(signal.SIGCONT)
    process.terminate()
    assert process.wait(10) == 0


def deploy(policy: Path, domain: int, *more: object) -> subprocess.Popen:
    return start("deploy", policy, "--robot", "so101", "--bus", "dds", "--domain", domain, "--no-cameras", "--json",
                 *more)


def test_episodes_run_and_are_read_back_as_the_policy_saw_them(policy, robot, domain, tmp_path) -> None:
    got = figures(deploy(policy, domain, "--episodes", 2, "--record", tmp_path / "bags", "--explore"))
    assert got["episodes"] == 2
    assert got["ticks"] >= 2 * 60
    assert {"task", "return_mean", "success_ci95", "rate_hz", "missed_deadlines", "latency_ms_p99", "jitter_ms_p99",
            "safety_events", "bags"} <= set(got)
    for bag in bags_in(tmp_path / "bags"):
        log = read_episode(bag)
        pairs = list(zip(log.replayed(), log.records, strict=True))
        assert len(pairs) == 61
        for (outcome, action), record in pairs:
            np.testing.assert_array_equal(outcome.observation, record.observation.astype(np.float32))
            assert outcome.reward == record.reward[0]
            if action is not None:
                np.testing.assert_array_equal(action, record.action)
        asked = np.array([r.asked for r in log.records[:-1]])
        assert np.abs(np.diff(asked, axis=0)).max() > 0.01  # it explored
        moved = np.ptp([o.observation[:5] for (o, _), _ in pairs], axis=0)
        assert moved.max() > 0.01  # and the arm moved


def test_what_a_policy_carries_goes_through_an_episode_and_no_further(robot, domain, tmp_path) -> None:
    from robot_rl.learn.export import export
    spec, _ = sim.task_spec("so101-reach")
    path = tmp_path / "count.onnx"
    export(Count(), spec.observation_size, 2 * spec.action_size, spec.to_json(), path, carry=(1,))
    figures(deploy(path, domain, "--episodes", 2, "--record", tmp_path / "bags", "--explore"))
    bags = bags_in(tmp_path / "bags")
    assert len(bags) == 2
    for bag in bags:
        asked = np.array([r.asked[0] for r in read_episode(bag).records[:-1]])
        np.testing.assert_allclose(asked, 0.01 * np.arange(len(asked)), atol=1e-6)


def planner(path: Path) -> Path:
    """An untrained planner of few candidates for so101-reach."""
    from robot_rl.learn import recipes
    from robot_rl.learn.export import export
    spec, _ = sim.task_spec("so101-reach")
    agent = recipes.make("tdmpc2", spec.observation_size, spec.action_size, hidden=(32,), width=32, samples=16,
                         elites=4, proposals=2, iterations=2, compile=False)
    chosen = agent.policy(planner=True)
    export(chosen, spec.observation_size, chosen.noise_size, spec.to_json(), path, carry=chosen.carry)
    return path


def test_a_plan_that_is_late_gives_way_to_the_one_before(domain, tmp_path) -> None:
    loaded = Policy(planner(tmp_path / "planner.onnx"))
    assert loaded.plans and not loaded.steps_left
    obs, soon = np.linspace(-1, 1, loaded.spec.observation_size, dtype=np.float32), time.perf_counter
    with connect("dds", "policy", "", domain) as bus:
        node = PolicyNode(loaded, load_robot("so101"), bus)
        first = node._decide(obs, soon() - 1.0)  # there is no plan to fall back on: it takes its time
        plan, node.late_plans = loaded._carry[0].copy(), 0
        assert loaded.steps_left == 2 and not np.array_equal(first, plan[0])
        for step in range(2):
            np.testing.assert_array_equal(node._decide(obs, soon() - 1.0), plan[step])
            assert node.late_plans == step + 1 == 2 - loaded.steps_left
        again = node._decide(obs, soon() - 1.0)  # the plan has come to its end
        np.testing.assert_array_equal(again, first)  # a plan from zeros, as at the start
        node._decide(obs, soon() + 60.0)
        assert node.late_plans == node.timing()["late_plans"] == 2 and loaded.steps_left == 2
        node.close()
    loaded.reset()
    with pytest.raises(IndexError, match="no plan of this step"):
        loaded.next_planned()


def test_a_policy_too_slow_for_its_rate_is_refused_before_anything_moves(domain, tmp_path) -> None:
    loaded = Policy(planner(tmp_path / "planner.onnx"))
    loaded.spec = msgspec.structs.replace(loaded.spec, rate_hz=1e5)
    said = r"planner\.onnx: a decision takes .* ms here at its best, at rate_hz 100000 it may take 0\.008 ms"
    with connect("dds", "policy", "", domain) as bus, pytest.raises(SpecError, match=said):
        PolicyNode(loaded, load_robot("so101"), bus)


def test_a_planner_runs_an_episode_and_tells_how_often_it_was_late(robot, domain, tmp_path) -> None:
    got = figures(deploy(planner(tmp_path / "planner.onnx"), domain, "--episodes", 1))
    assert got["ticks"] >= 60 and 0 <= got["late_plans"] <= got["ticks"]


def test_the_same_seed_gives_the_same_goals(policy, robot, domain, tmp_path) -> None:
    goals = []
    for name in ("a", "b"):
        figures(deploy(policy, domain, "--episodes", 1, "--record", tmp_path / name, "--seed", 5))
        goals.append(read_episode(bags_in(tmp_path / name)[0]).start["goal"])
    assert goals[0] == goals[1]


@pytest.mark.parametrize("qos", [LATCHED, SENSOR], ids=["latched", "best effort"])
def test_a_stop_message_holds_the_measured_pose(policy, robot, domain, tmp_path, qos) -> None:
    running = deploy(policy, domain, "--episodes", 5, "--record", tmp_path / "bags")
    with connect("dds", "operator", "", domain) as bus:
        stop = bus.publisher("safety/protective_stop", BOOL, qos)
        commands = bus.reader("forward_position_controller/commands", "std_msgs/msg/Float64MultiArray", SENSOR)
        wait_for(lambda: commands.take())
        stop.publish(messages.encode(messages.boolean(True)))
        got = figures(running)
        assert got["episodes"] == 1
        last = commands.newest()
    log = read_episode(bags_in(tmp_path / "bags")[0])
    assert log.end["faults"] == "stop"
    held = messages.decode(last.data, "std_msgs/msg/Float64MultiArray").data
    measured = [o.observation for o, _ in log.replayed()][-1][:5]
    np.testing.assert_allclose(held[:5], measured, atol=0.05)


def test_nobody_there_is_said_with_the_topics(policy, domain) -> None:
    process = deploy(policy, domain)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "joint_states" in err
    assert "tip_pose" in err
    assert "Traceback" not in err


def test_killed_while_recording_leaves_readable_bags(policy, robot, domain, tmp_path) -> None:
    running = deploy(policy, domain, "--episodes", 5, "--record", tmp_path / "bags")
    wait_for(lambda: list((tmp_path / "bags").rglob("*.mcap")))
    time.sleep(2.0)
    running.kill()
    running.wait(10)
    time.sleep(2.5)  # the recorder notices that it is alone and closes its bag
    log = read_episode(bags_in(tmp_path / "bags")[0])
    assert len(log.records) > 10
    assert len(list(log.replayed())) == len(log.records)


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda data: data[:1000], "not a usable ONNX file"),
    (lambda data: data[:-900] + bytes([data[-900] ^ 1]) + data[-899:], "damaged|not a usable|contract"),
    (lambda data: data.replace(b"robot_rl", b"rabat_rl"), "no 'robot_rl' contract"),
    (lambda data: b"", "not a usable ONNX file"),
])
def test_a_damaged_file_is_refused(policy, tmp_path, spoil, words) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(spoil(policy.read_bytes()))
    with pytest.raises(SpecError, match=words) as refused:
        Policy(path)
    assert "bad.onnx" in str(refused.value)


def test_a_robot_that_lacks_a_joint_is_refused_before_anything_moves(policy, tmp_path, domain) -> None:
    body = msgspec.to_builtins(load_robot("so101"))
    body["joints"] = [j for j in body["joints"] if j["name"] != "wrist_flex"]
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(body))
    (tmp_path / "so101.xml").write_bytes(mjcf_file("so101").read_bytes())
    process = start("deploy", policy, "--robot", tmp_path / "robot.yaml", "--domain", domain, "--bus", "dds")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "joint 'wrist_flex': the policy needs it" in err
    assert "Traceback" not in err
