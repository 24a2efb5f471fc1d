"""Frames as a network's numbers, and the benchmark of the replays, small."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robot_rl.frames import FrameReplay
from robot_rl.learn import bench_replay
from robot_rl.learn.pixels import CHUNK, Pixels, shifted


def filled() -> FrameReplay:
    replay, random = FrameReplay(60, (3, 4, 5), 2, 0, 1), np.random.default_rng(0)
    none = np.zeros(0, np.float32)
    replay.begin({"state": none, "frames": np.zeros((6, 4, 5), np.uint8)})
    for _ in range(40):
        frames = random.integers(0, 256, (6, 4, 5), np.uint8)
        replay.step(np.zeros(1), 0.0, {"state": none, "frames": frames}, False, False)
    return replay


@pytest.mark.parametrize("horizon, n_step", [(1, 1), (1, 3), (2, 1)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-7), (torch.bfloat16, 1e-2)])
def test_pixels_are_the_bytes_by_255(horizon: int, n_step: int, dtype: torch.dtype, tolerance: float) -> None:
    replay, pixels = filled(), Pixels(dtype=dtype)
    for size in (3, 2 * CHUNK + 1, 3):
        batch = replay.sample(size, horizon, n_step)
        for key, value in pixels(batch, torch.Generator()).items():
            assert value.dtype == dtype
            np.testing.assert_allclose(value.float().numpy(), batch[key] / 255, atol=tolerance)


def test_shifts_repeat_the_edge() -> None:
    frames, most = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5), 2
    padded = torch.nn.functional.pad(frames, (most,) * 4, mode="replicate")
    shift = torch.tensor([[0, 4], [3, 2]])
    moved = shifted(frames, shift, most)
    for one, (down, right) in enumerate(shift.tolist()):
        assert torch.equal(moved[one], padded[one, :, down : down + 4, right : right + 5])


@pytest.mark.parametrize("horizon", [1, 2])
def test_observations_are_moved_each_by_itself(horizon: int) -> None:
    batch, pixels = filled().sample(20, horizon), Pixels(most=1)
    moved, again = (pixels(batch, torch.Generator().manual_seed(3))["next_frames"].clone() for _ in range(2))
    assert torch.equal(moved, again), "chance is the generator's alone"
    generator = torch.Generator().manual_seed(3)
    for key in ("frames", "next_frames"):
        alone = torch.from_numpy(batch[key]).flatten(0, -4)
        shift = torch.randint(3, (len(alone), 2), generator=generator)
        expected = shifted(alone, shift, 1).view(batch[key].shape) / 255
        assert len(shift.unique(dim=0)) > 3
    torch.testing.assert_close(moved, expected)


def test_the_same_memory_is_filled_again() -> None:
    replay, pixels = filled(), Pixels()
    first, second = (pixels(replay.sample(4), torch.Generator())["frames"] for _ in range(2))
    assert first.data_ptr() == second.data_ptr()


@pytest.mark.parametrize("kind, name, most", [
    ("state", "ours", 115), ("state", "ours_prioritized", 130), ("frames", "ours_float32", 1.05 * (21_168 + 60))])
def test_the_replay_benchmark_runs_and_says_what_a_transition_takes(
        kind: str, name: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_replay, "FILL", 300)
    monkeypatch.setattr(bench_replay, "EPISODE", 100)
    threads = torch.get_num_threads()
    call, facts = bench_replay.contestant({"kind": kind, "name": name})
    torch.set_num_threads(threads)
    assert call() == 1
    assert facts["bytes"] <= most
    assert facts.get("frames", 0) <= 1.05
