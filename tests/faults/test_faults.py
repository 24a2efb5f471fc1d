"""Every fault of the table, tried between processes, and the table in docs/safety.md.

`ROBOT_RL_WRITE_TABLE=1 pytest tests/faults` writes the table with what it measured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardware.bus import connect
from robot_rl.spec import SpecError, load_robot
from sim.faults import Injector, check
from tests.faults.table import FAULTS, Fault, World

DOC = Path(__file__).parents[2] / "docs" / "safety.md"
BEGIN, END = "<!-- measured: tests/faults -->\n", "\n<!-- end -->"
HEAD = ["| fault | injected by | what the robot does | measured | bound |", "|---|---|---|---|---|"]


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, str]]:
    """What was measured, by the name of the fault; written to the page where that is wanted."""
    found = {name: cells[3] for name, cells in _rows().items()}
    yield found
    if os.environ.get("ROBOT_RL_WRITE_TABLE"):
        before, rest = DOC.read_text().split(BEGIN)
        table = "\n".join([*HEAD, *(fault.row(found.get(fault.name, "")) for fault in FAULTS)])
        DOC.write_text(before + BEGIN + table + END + rest.split(END, 1)[1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("faults")) as world:
        yield world


@pytest.mark.parametrize("fault", [
    pytest.param(fault, id=fault.run.__name__ if fault.run.__name__ != "run" else fault.name.replace(" ", "-"),
                 marks=() if fault.quick else pytest.mark.slow) for fault in FAULTS])
def test_what_a_robot_does(fault: Fault, world: World, measured: dict[str, str]) -> None:
    took = fault.run(world)
    assert (took is None) == (fault.within_ms is None)
    measured[fault.name] = "" if took is None else f"{took:.0f} ms"
    print(f"{fault.name}: {measured[fault.name] or fault.does}")


def test_the_page_has_every_fault_as_it_is_tried() -> None:
    """What was measured aside, which differs by machine."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25
    ours = [fault.row("") for fault in FAULTS]
    theirs = ["| " + " | ".join([*cells[:3], "", cells[4]]) + " |" for cells in _rows().values()]
    assert theirs == ours, "write it anew: ROBOT_RL_WRITE_TABLE=1 pytest tests/faults"


@pytest.mark.parametrize(("name", "what", "words"), [
    ("jonts", "silent", "fault of 'jonts': robot 'so101' has joints, tip, front, wrist"),
    ("joints", "broken", "fault 'broken' of 'joints': it can be silent, frozen, jumping, nonfinite, reordered, missing,"
     " clock, delayed, duplicated, lossy, mistyped, ok"),
    ("tip", "missing", "fault 'missing' of 'tip': it can be silent, frozen, jumping, nonfinite, clock,"),
    ("front", "nonfinite", "fault 'nonfinite' of 'front': it can be silent, frozen, jumping, clock,")])
def test_what_cannot_be_injected_is_refused_with_the_choices(name: str, what: str, words: str) -> None:
    spec = load_robot("so101")
    with pytest.raises(SpecError, match=re.escape(words)):
        check((*spec.sensors, *spec.cameras), spec, name, what)


def test_where_nobody_takes_faults_it_is_said(domain: int) -> None:
    with connect("dds", "operator", "", domain) as bus, pytest.raises(TimeoutError, match="only sim-robot does"):
        Injector(bus).inject("joints", "silent", 0.3)


def test_a_robot_without_cameras_refuses_a_fault_of_one(world: World) -> None:
    with pytest.raises(SpecError, match=r"has joints, tip$"):
        world.cell().inject("front", "silent")


def _rows() -> dict[str, list[str]]:
    """The page's rows by their fault."""
    text = DOC.read_text().split(BEGIN)[1].split(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {cells[0]: cells for cells in rows}
