"""The ten stages of a step, walked with a robot that counts the commands it gets.

The counting robot is a process of its own. Its joint `a` stands at 0.01 rad for each command since the last reset, and
it reports the last command as the effort of that joint; so every observation, action, reward and log entry says which
step it belongs to, and a shift by one anywhere shows.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hardware import messages
from hardware.administration import Administration
from hardware.bus import COMMAND, EVENTS, Qos, connect
from hardware.deploy import BusOptions, Recorder
from hardware.policy_node import PolicyNode
from hardware.robot_io import RobotIO, decode_command
from robot_rl.episode import Episode
from robot_rl.policy import Policy
from robot_rl.replay import Replay
from robot_rl.spec import ActionSpec, PolicySpec, Reward, RobotSpec, Term, policy_spec
from robot_rl.steplog import TEXT_TYPE, read_episode
from tests.robots import robot

torch = pytest.importorskip("torch")

STEPS, UNIT = 8, 0.01


def counting_robot() -> RobotSpec:
    return robot(joints=[{"name": "a", "lower": -1.0, "upper": 1.0, "velocity": 40.0, "effort": 3.0},
                         {"name": "b", "lower": -1.0, "upper": 1.0, "velocity": 40.0, "effort": 3.0, "default": 0.5}])


def contract() -> PolicySpec:
    count = Term(name="count", source="joints.position", joints=("a",))
    return policy_spec(
        counting_robot(), task="count", rate_hz=20, time_limit_s=STEPS / 20, observations=(count, Term(
            name="told", source="command", joints=("a",))),
        action=ActionSpec(kind="absolute", joints=("a",), scale=(0.5,)), rewards=(Reward(term=count, weight=1.0),))


def run_robot(spec: bytes, domain: int, ready: Any, stop: Any) -> None:
    """Counts commands; its joint states list the joints in reverse."""
    body = msgspec.json.decode(spec, type=RobotSpec)
    with connect("dds", "robot", "", domain) as bus:
        joints, tip = (bus.publisher(s.topic, s.type, Qos(reliable=True)) for s in body.sensors)
        (to,), resets = body.command_topics, bus.service("reset")
        commands = bus.reader(to.topic, to.type, COMMAND)
        counting, count, last = False, 0, 0.0
        ready.set()
        while not stop.is_set():
            if (request := resets.take()) is not None:
                counting, count, last = True, 0, 0.0
                request.reply(True, "counting from 0")
            for sample in commands.take():
                target = decode_command(body, to, sample.data).target
                count, last = count + counting, float(target[to.joints.index("a")])
            stamp = time.time_ns()
            state = messages.joint_state(stamp, ["b", "a"], [0.5, UNIT * count], [0, 0], [0, last])
            joints.publish(messages.encode(state))
            tip.publish(messages.encode(messages.pose_stamped(stamp, "base_link", [0, 0, 0], [0, 0, 0, 1])))
            time.sleep(0.004)


class CountPolicy(torch.nn.Module):
    """Action = 3 * observed position: the action says at which count it was taken."""

    def __init__(self, factor: float = 3.0) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, obs: Any, noise: Any) -> Any:
        return self.factor * obs[:, :1] + 0.0 * noise


def export(module: Any, path: Path) -> float:
    from robot_rl.learn.export import export as write
    spec = contract()
    return write(module, spec.observation_size, spec.action_size, spec.to_json(), path)


@pytest.fixture(params=["as trained", "joints in another order"])
def running(request: pytest.FixtureRequest, domain: int):
    body = counting_robot()
    if request.param != "as trained":  # so are the numbers of its commands
        body = msgspec.structs.replace(body, joints=body.joints[::-1])
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=run_robot, args=(msgspec.json.encode(body), domain, ready, stop))
    process.start()
    assert ready.wait(30)
    yield domain, body
    stop.set()
    process.join(10)


def test_ten_stages(running: tuple[int, RobotSpec], tmp_path: Path) -> None:
    domain, body = running
    path, spec = tmp_path / "count.onnx", contract()
    assert export(CountPolicy(), path) < 1e-5
    policy, where = Policy(path), BusOptions("dds", "", domain)
    with where.connect("policy") as bus:
        # 1 to 6 by hand, once
        ours = spec.on(body).robot
        assert ours is not None
        io, episode = RobotIO(ours, bus), Episode(spec)
        io.wait(10)
        readings = io.read()
        np.testing.assert_array_equal(readings.values["joints.position"], [0.0, 0.5])  # 1: by name, though reversed
        episode.begin()
        seen = episode.observe(readings).observation
        np.testing.assert_allclose(seen, [0.0, 0.0])  # 2
        asked = policy(np.float32([0.1, 0.0]))
        np.testing.assert_allclose(asked, [0.3], rtol=1e-6)  # 3
        command = episode.act(asked)
        np.testing.assert_allclose(command.sent, [0.15, 0.5], rtol=1e-6)  # 4 and 5
        heard, end = 0.0, time.monotonic() + 10
        while heard == 0.0 and time.monotonic() < end:  # each side finds the other in its own time, and both take turns
            io.send(command.sent)  # 6
            time.sleep(0.05)
            heard = io.read().values["joints.effort"][0]
        assert heard == pytest.approx(0.15)

        # 7: whole episodes by the policy process's own loop, recorded by the recorder process
        node = PolicyNode(policy, body, bus, acknowledged=True)
        bags = bus.reader("recorder/bag", TEXT_TYPE, EVENTS)
        with Recorder(tmp_path / "bags", spec, body, where, cameras=False, bus=bus), \
                Administration(bus, {"policy/reload": node.reload}, lambda: None):
            first = node.run_episode()
            export(CountPolicy(2.0), path)  # 10: a new export is swapped into the running process
            with where.connect("learner") as other:
                answered, said = other.call("policy/reload", 10.0)
            assert answered, said
            second = node.run_episode()
            folders = _folders(bags, 2)
    assert first.steps == second.steps == STEPS
    assert node.swaps == 1

    for result, folder, factor in ((first, folders[0], 3.0), (second, folders[1], 2.0)):
        log = read_episode(folder)
        counts = UNIT * np.arange(STEPS + 1)
        assert len(log.records) == STEPS + 1
        np.testing.assert_allclose([r.observation[0] for r in log.records], counts, atol=1e-6)
        np.testing.assert_allclose([r.asked[0] for r in log.records[:-1]], factor * counts[:-1], atol=1e-6)
        np.testing.assert_allclose([r.reward[0] for r in log.records], counts, atol=1e-6)
        assert result.episode_return == pytest.approx(counts.sum(), abs=1e-5)

        replayed = list(log.replayed())  # the observation from the raw messages is the one that the policy saw
        for (outcome, action), record in zip(replayed, log.records, strict=True):
            np.testing.assert_array_equal(outcome.observation, record.observation.astype(np.float32))
            if action is not None:
                np.testing.assert_array_equal(action, record.action)

        # 8 and 9: log → replay → learner
        from robot_rl.finetune import add_episode
        from robot_rl.learn import recipes
        replay = Replay(100, spec.observation_size, spec.action_size)
        assert add_episode(replay, log) == STEPS
        batch = replay.sample(64, discount=0.9)
        np.testing.assert_allclose(batch["next_obs"][:, 0], batch["obs"][:, 0] + UNIT, atol=1e-6)
        np.testing.assert_allclose(batch["reward"], batch["obs"][:, 0] + UNIT, atol=1e-6)
        np.testing.assert_allclose(batch["action"][:, 0], factor * batch["obs"][:, 0], atol=1e-6)
        np.testing.assert_allclose(batch["discount"], 0.9)  # the time limit truncates: it is not terminal
        agent = recipes.make("sac", spec.observation_size, spec.action_size, batch=16, compile=False)
        assert np.isfinite(float(agent.update(replay)["critic/loss"]))


def _folders(bags: Any, count: int) -> list[Path]:
    found: list[Path] = []
    end = time.monotonic() + 10
    while len(found) < count and time.monotonic() < end:
        found += [Path(json.loads(messages.decode(s.data, TEXT_TYPE).data)["bag"]) for s in bags.take()]
        time.sleep(0.02)
    assert len(found) == count
    return found
