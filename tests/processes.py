"""Commands of the project as processes of their own, and how long the system kept them from running."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def start(*arguments: object, **options: Any) -> subprocess.Popen:
    """`robot-rl` with arguments; options are Popen's."""
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, "-m", "robot_rl.cli", *map(str, arguments)], **piped)


def figures(process: subprocess.Popen) -> dict[str, Any]:
    """What a command with --json ended with."""
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def wait_for(condition: Callable[[], Any], timeout_s: float = 40.0, pause_s: float = 0.02) -> Any:
    """What a condition gives once it is true."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "timed out"
        time.sleep(pause_s)
    return found


def starved_ms(pid: int) -> float:
    """How long a process's main thread has been ready to run while others ran, ms since it began.

    0 where the kernel does not tell, so that what is judged with it is judged strictly.
    """
    told = Path(f"/proc/{pid}/schedstat")
    return int(told.read_text().split()[1]) * 1e-6 if told.is_file() else 0.0
