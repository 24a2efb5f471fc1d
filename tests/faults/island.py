"""A robot whose network fails: for a network namespace of its own, where `lo` is all there is and may be put down.

`unshare -Urn python -m tests.faults.island FOLDER BOUND` prints how long the supervisor took, ms.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.faults.cell import Cell
from tests.processes import starved_ms, wait_for

DOWN_S, TRIES = 1.0, 4


def link(state: str) -> None:
    """Put the loopback interface up or down."""
    subprocess.run(["ip", "link", "set", "lo", state], check=True)


def main(folder: Path, within_ms: float) -> float:
    """ms from the interface's going down to the first command of the stop behaviour; afterwards the robot works.

    Here no process has a real-time class: the bound is tried for with the machine's time counted, and else without.
    """
    link("up")
    with Cell(folder, 1) as cell:
        for _ in range(TRIES):
            cell.forwarding()
            starved, since = starved_ms(cell.process.pid), time.time_ns()
            link("down")
            time.sleep(DOWN_S)
            link("up")
            wait_for(lambda: cell.look() or cell.said[-1]["state"] == "stopped", 60)
            took, starved = (cell.stopped_ns(0) - since) * 1e-6, starved_ms(cell.process.pid) - starved
            assert {"heartbeat", "sensors"} & set(cell.said[-1]["cause"]), cell.said[-1]
            cell.forwarding()
            if 0 <= took <= within_ms:
                return took
        assert 0 <= took <= within_ms + starved, f"{took:.1f} ms, {starved:.1f} ms of them without the processor"
    return took


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), float(sys.argv[2])))
