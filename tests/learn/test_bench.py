"""The learner's benchmark at its door; what it measures is for its command to say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from robot_rl.learn.bench import Child, checkouts
from robot_rl.page.rates import write_page


def test_a_checkout_is_a_folder_of_public_code_by_its_name(tmp_path: Path) -> None:
    assert checkouts([f"mrq={tmp_path}"]) == {"mrq": str(tmp_path)}
    for text in (f"sac={tmp_path}", f"mrq={tmp_path / 'nothing'}", "mrq"):
        with pytest.raises(ValueError, match=r"--peer .*: it is a checkout .*rlpd=PATH of ikostrikov/rlpd"):
            checkouts([text])


def test_a_peer_that_does_not_run_says_why(tmp_path: Path) -> None:
    request = {"module": "robot_rl.learn.bench_public", "name": "mrq", "path": str(tmp_path), "threads": 1,
               "updates": 5, "options": {}}
    child = Child(sys.executable, request)
    assert child.ready() == "ModuleNotFoundError: No module named 'MRQ'"
    child.close()


def test_the_page_shows_every_contestant(tmp_path: Path) -> None:
    found = {"agent": "sac", "ratio": {"sb3": 2.0}, "cpu_ms": {"ours": 5.0, "sb3": 10.0},
             "missing": {"sbx": "it has no <sac>"}, "repetitions": {"ours": [190.0, 200.0, 230.0], "sb3": [100.0] * 3},
             "machine": {"cores": 2}}
    write_page(tmp_path / "page.html", found)
    text = (tmp_path / "page.html").read_text()
    for said in ("Updates of sac", "2.00 times as fast", "sbx is not here: it has no &lt;sac&gt;", "cores: 2", "230.0"):
        assert said in text, said
