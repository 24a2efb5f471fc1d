"""What must end a run or not begin one: NaNs, memories that do not fit."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robot_rl import memory, session
from robot_rl.finite import Watched, demand_finite, not_finite, rescue
from robot_rl.frames import FrameReplay
from robot_rl.replay import NotFinite, Replay
from robot_rl.spec import SpecError
from tests.test_replay import filled


def test_what_is_not_finite_is_named() -> None:
    torch = pytest.importorskip("torch")
    state = {"modules": {"w": torch.tensor([1.0, float("nan")]), "n": torch.tensor([3])}, "steps": 3, "text": "nan",
             "list": [0.0, float("inf")], "array": np.array([np.nan], np.float32), "bytes": np.zeros(2, np.uint8)}
    assert list(not_finite(state)) == ["modules/w", "list/1", "array"]
    demand_finite({"loss": 1.0}, "step 5", {})
    with pytest.raises(NotFinite, match="step 5: loss not finite"):
        demand_finite({"loss": float("nan")}, "step 5", {})


def test_the_batch_is_saved_and_named(tmp_path: Path) -> None:
    data = Watched(filled(3, 5))
    batch = data.sample(4)
    with pytest.raises(FloatingPointError, match=r"step 5.*not_finite\.npz.*checkpoint is intact"), rescue(tmp_path):
        demand_finite({"loss": float("nan")}, "step 5", data.newest)
    saved = np.load(tmp_path / "not_finite.npz")
    assert all(np.array_equal(saved[key], batch[key]) for key in batch)
    assert len(data) == 5


def test_a_memory_that_does_not_fit_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.available() > 1e6
    monkeypatch.setattr(memory, "available", lambda: 50e6)
    with pytest.raises(ValueError, match=r"1,000,000 rows of 112 bytes: needs 0\.11 GB of memory, 0\.05 GB are"):
        Replay(1_000_000, 17, 6)
    with pytest.raises(ValueError, match=r"10,000 frames of 21,168 bytes: needs 0\.21 GB"):
        FrameReplay(10_000, (3, 84, 84), 3, 0, 6)
    small = Replay(100_000, 17, 6)
    session._demand_memory(small, None)
    monkeypatch.setattr(memory, "available", lambda: 1.5 * small.nbytes)  # each of two fits, both do not
    with pytest.raises(SpecError, match=r"replay: 100,000 and 100,000 rows: needs 0\.02 GB"):
        session._demand_memory(Replay(100_000, 17, 6), small)


def test_a_control_group_limits_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    assert memory.available() == float("inf")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    1000 kB\n")
    assert memory.available() == 1000 * 1024
    (tmp_path / "memory.stat").write_text("anon 200\nfile 5000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() == 1000 * 1024
    (tmp_path / "memory.max").write_text("1200\n")
    assert memory.available() == 1000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_what_is_freed_is_taken_again_without_the_system() -> None:
    program = """
import resource, sys
import numpy as np
from robot_rl import memory
if sys.argv[1] == "kept":
    memory.keep_freed()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def update():
    arrays = [np.ones(size << 20, np.uint8) for size in (8, 1, 30)]
update()
before = faults()
for _ in range(5):
    update()
print((faults() - before) / 5)
"""
    given, kept = (float(subprocess.run([sys.executable, "-c", program, how], check=True, capture_output=True,
                                        text=True).stdout) for how in ("given", "kept"))
    assert kept < given / 10, (given, kept)  # pages; of a system with huge ones few as well
