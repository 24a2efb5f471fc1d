"""Latency: what bags tell of it, by hand and from a robot process whose delays are known, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import sim
from hardware import messages
from robot_rl.episode import Outcome
from robot_rl.latency import Late, Latency, _Ticks, load_latency, measure, write_latency
from robot_rl.safety import Reason
from robot_rl.spec import PolicySpec, SpecError, Vision, load_robot
from robot_rl.steplog import EpisodeLog, step_record
from tests.hardware.test_deploy import figures, policy, start  # noqa: F401  (the fixture `policy`)
from tests.robots import CAMERAS, contract, robot

MS = 1_000_000
NOW = 1_800_000_000_000_000_000


def written(folder: Path, **changes: Any) -> Path:
    """A latency file of the SO-101; joints 40 or 50 ms late, the tip 60, its commands 5."""
    late = {"joints": (0.04, 0.05), "tip": (0.06,), "front": (0.1,)}
    given = {"schema": 1, "robot": "so101", "policies": [], "ticks": 2, "command_s": [0.005],
             "inputs": {name: {"driver_s": values, "age_s": values} for name, values in late.items()}} | changes
    file = folder / "latency.json"
    file.write_text(json.dumps({k: v for k, v in given.items() if v is not None}))
    return file


def episode(rows: list[dict[str, tuple[int, int]]], sha256: str = "abc", delay_s: float = 0.01) -> EpisodeLog:
    """An episode of ticks 50 ms apart, 4 ms each, that used messages (measured, published), ms before their tick."""
    spec = contract(body=robot(cameras=[CAMERAS[0] | {"delay_s": delay_s}]),
                    vision=Vision(cameras=("front",), height=6, width=8))
    assert spec.robot is not None
    outcome = Outcome({"state": np.zeros(spec.observation_size, np.float32),
                       "frames": np.zeros((3, 6, 8), np.uint8)}, 0.0, False, False, False, Reason.NONE, True)
    records, readings = [], {name: dict[int, bytes]() for name in ("joints", "tip", "front")}
    for i, row in enumerate(rows):
        tick, stamps = NOW + 50 * MS * i, dict[str, int]()
        for name, (measured, published) in row.items():
            stamps[name] = tick - published * MS
            readings[name][stamps[name]] = messages.encode(
                messages.joint_state(tick - measured * MS if measured >= -9999 else 0, []))
        records.append(step_record(spec, tick=i, episode=0, stamp_ns=tick, stamps=stamps, outcome=outcome,
                                   asked=np.zeros(2), action=np.zeros(2), sent=np.zeros(2), reasons=Reason.NONE,
                                   lateness_s=0.0, latency_s=0.004))
    return EpisodeLog("bag", spec, {"sha256": sha256}, {}, {}, records, readings)


def test_spans_by_hand() -> None:
    ticks = _Ticks()
    ticks.add(episode([{"joints": (7, 5), "tip": (3, 3), "front": (30, 20)},
                       {"joints": (9, 2), "tip": (3, 3), "front": (80, 70)}]))  # the image of the tick before
    ticks.add(episode([{"joints": (1, 1), "tip": (1, 1), "front": (1, 1)}], sha256=""))  # shown in simulation: no robot
    assert (ticks.episodes, ticks.policies, ticks.command) == (1, {"abc"}, [0.004, 0.004])
    joints, front = ticks.spans["joints"], ticks.spans["front"]
    for found, wanted in ((joints["driver"], [2, 7]), (joints["age"], [7, 9]), (joints["to_command"], [11, 13]),
                          (front["driver"], [20]), (front["age"], [40]), (front["to_command"], [44, 94]),
                          (front["behind_joints"], [33, 81])):
        np.testing.assert_allclose(found, np.array(wanted) * 1e-3, atol=1e-9)


@pytest.mark.parametrize("row, words", [
    ({"joints": (-2, -2)}, "'joints' has a header.stamp 0.0020 s after the tick that used it began: the clocks"),
    ({"joints": (1, 4)}, "'joints' has a header.stamp 0.0030 s after its driver published it: the clocks"),
    ({"joints": (-10_000, 1)}, "'joints' published at .* has header.stamp 0: its driver does not stamp"),
])
def test_stamps_that_cannot_be_are_refused(row: dict[str, tuple[int, int]], words: str) -> None:
    with pytest.raises(SpecError, match=f"bag: .*{words}"):
        _Ticks().add(episode([{"joints": (1, 1), "tip": (1, 1), "front": (1, 1)} | row]))


def test_messages_that_are_not_in_the_bag_are_named() -> None:
    log = episode([{"joints": (1, 1), "tip": (1, 1), "front": (1, 1)}])
    log.readings["tip"].clear()
    with pytest.raises(SpecError, match=r"the message of 'tip' published at .* is not in the bag"):
        _Ticks().add(log)


def test_a_robot_with_known_delays_is_measured_so(policy: Path, domain: int, tmp_path: Path) -> None:  # noqa: F811
    file = written(tmp_path)
    process = start("sim-robot", "so101", "--bus", "dds", "--no-cameras", "--latency", file)
    assert "ready" in process.stdout.readline()
    try:
        figures(start("deploy", policy, "--robot", "so101", "--bus", "dds", "--record", tmp_path / "bags",
                      "--no-cameras", "--json"))
    finally:
        process.terminate()
        assert process.wait(20) == 0
    told = write_latency(tmp_path / "bags", tmp_path / "measured.json")
    found = load_latency(tmp_path / "measured.json", load_robot("so101"))
    assert found.ticks == told["ticks"] > 50 and found.inputs.keys() == {"joints", "tip"}
    joints, tip = (np.array(found.inputs[name].driver_s) for name in ("joints", "tip"))
    assert joints.min() >= 0.04 and 0.04 <= np.median(joints) < 0.07 and (joints < 0.05).any()
    assert tip.min() >= 0.06 and np.median(tip) < 0.09
    for name in ("joints", "tip"):
        late = found.inputs[name]
        assert (np.array(late.age_s) >= np.array(late.driver_s) - 1e-9).all()  # both ascend
        assert told[f"{name}_to_command_ms_p50"] > 1e3 * np.median(late.age_s)
    with pytest.raises(SpecError, match=r"measured\.json: inputs: measured are joints, tip, so101 has front too"):
        load_latency(tmp_path / "measured.json", load_robot("so101"), load_robot("so101").cameras[:1])


def test_a_folder_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds no bag"):
        measure(tmp_path)


@pytest.mark.parametrize("changes, words", [
    ({"robot": "furuta"}, "robot: measured on furuta, this is so101"),
    ({"schema": 2}, "schema=2; this version reads schema 1"),
    ({"command_s": None}, "missing required field `command_s`"),
    ({"command_s": []}, "command_s: 0 numbers"),
    ({"command_s": [-0.1, 0.2]}, "command_s: 2 numbers from -0.1 to 0.2"),
    ({"inputs": {"joints": {"driver_s": [0.0], "age_s": [0.0]}}}, "measured are joints, so101 has tip too"),
    ({"inputs": {"joints": {"driver_s": [0.0], "age_s": ["x"]}}}, r"Expected `float`, got `str` - at .*age_s"),
])
def test_a_latency_file_that_does_not_fit_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = written(tmp_path, **changes)
    with pytest.raises(SpecError, match=re.escape(str(file)) + ": .*" + words):
        load_latency(file, load_robot("so101"))


def test_an_environment_draws_from_the_file_by_its_seed(tmp_path: Path) -> None:
    def run(seed: int, latency: Path | None) -> np.ndarray:
        env = sim.make("so101-reach", **({"latency": latency} if latency else {}))
        env.reset(seed=seed)
        rng = np.random.default_rng(0)
        return np.array([env.step(rng.uniform(-1, 1, 5))[0] for _ in range(20)])
    file = written(tmp_path)
    np.testing.assert_array_equal(run(1, file), run(1, file))
    assert (run(1, file) != run(1, None)).any()
    twice = written(tmp_path, inputs={name: {"driver_s": [0.0], "age_s": [0.05]} for name in ("joints", "tip")})
    assert (run(1, twice) != run(1, written(tmp_path))).any()
    with pytest.raises(SpecError, match=r"--latency .*: task dmc:cheetah-run has no robot"):
        sim.make("dmc:cheetah-run", latency=file)


def test_long_distributions_are_kept_as_quantiles() -> None:
    from robot_rl.latency import KEPT, _kept
    values = np.random.default_rng(0).exponential(0.01, 5 * KEPT)
    kept = _kept(values.tolist())
    assert len(kept) == KEPT and (kept[0], kept[-1]) == (values.min(), values.max())
    np.testing.assert_allclose(np.quantile(kept, [0.1, 0.5, 0.9, 0.99]), np.quantile(values, [0.1, 0.5, 0.9, 0.99]),
                               rtol=0.01)
    late = Late(driver_s=kept, age_s=kept)
    latency = Latency(robot="r", policies=(), ticks=1, command_s=kept, inputs={"joints": late})
    assert msgspec.json.decode(msgspec.json.encode(latency), type=Latency) == latency


def test_the_contract_of_a_policy_says_how_its_cameras_are_read() -> None:
    spec = contract(body=robot(cameras=[CAMERAS[0] | {"transport": "compressed", "delay_s": 0.02}]),
                    vision=Vision(cameras=("front",), height=6, width=8))
    again = PolicySpec.from_json(spec.to_json())
    assert again == spec and again.cameras[0].image_topic == "front/image_raw/compressed"
