"""The three worlds stay apart: what each file may import, and what importing each world really loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SIMULATORS = {"mujoco", "dm_control", "gymnasium", "sim"}
LEARNERS = {"torch", "onnx", "onnxscript", "tensorboard", "robot_rl.learn"}
PEERS = {"stable_baselines3", "sbx", "jax"}
OPTIONAL = {"rclpy", "cv2"}
WALLS = {
    "robot": SIMULATORS | LEARNERS | PEERS | OPTIONAL,
    "sim": LEARNERS | PEERS | OPTIONAL,
    "learning": SIMULATORS | PEERS | OPTIONAL | {"hardware", "tensorboard"},
}
"""What no file of a world imports, however late."""
ANYWHERE = {
    "hardware/bus/ros.py": {"rclpy"},
    "hardware/lifecycle_node.py": {"rclpy"},
    "hardware/camera_node.py": {"cv2"},
    "robot_rl/image.py": {"cv2"},
}
"""Files that may import these all the same. They are loaded only where the package is installed."""
IN_FUNCTIONS = {
    "robot_rl/cli.py": SIMULATORS | LEARNERS,
    "robot_rl/session.py": SIMULATORS | LEARNERS,
    "robot_rl/demo.py": SIMULATORS | LEARNERS,
    "robot_rl/inspect.py": {"robot_rl.learn"},
    "robot_rl/log.py": {"tensorboard"},
    "robot_rl/learn/bench.py": PEERS | {"gymnasium"},
    "robot_rl/learn/bench_replay.py": PEERS | {"gymnasium"},
    "robot_rl/learn/bench_public.py": PEERS | {"gymnasium"},
}
"""Doors: the commands and what they run may join worlds inside functions, so that importing them joins none."""


class Import(NamedTuple):
    """One import in a file: the full name, and whether it runs when the file is imported."""

    line: int
    name: str
    early: bool


def files(world: str) -> dict[str, Path]:
    """Every file of a world by its name below the root. `models/` has nothing but data beside an empty module."""
    folders = {"robot": ("robot_rl", "hardware", "models"), "sim": ("sim",), "learning": ("robot_rl/learn",)}
    found = [file for folder in folders[world] for file in sorted((ROOT / folder).rglob("*.py"))]
    named = {file.relative_to(ROOT).as_posix(): file for file in found}
    return {name: file for name, file in named.items() if world == "learning" or not name.startswith("robot_rl/learn/")}


def imports(node: ast.AST, early: bool = True) -> Iterator[Import]:
    """Every import below a node, those inside functions too; those for type checkers only are left out."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for other in node.orelse:
            yield from imports(other, early)
        return
    if isinstance(node, ast.Import):
        yield from (Import(node.lineno, alias.name, early) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: a relative import hides which world it reaches into"
        yield from (Import(node.lineno, f"{node.module}.{alias.name}", early) for alias in node.names)
    early = early and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
        yield from imports(child, early)


def breach(world: str, file: str, found: Import) -> bool:
    """Whether an import goes through a wall where there is no door."""
    allowed = ANYWHERE.get(file, set()) | (set() if found.early else IN_FUNCTIONS.get(file, set()))
    packages = {p for p in WALLS[world] if found.name == p or found.name.startswith(p + ".")}
    return bool(packages - allowed)


@pytest.mark.parametrize("world", WALLS)
def test_no_import_goes_through_a_wall(world: str) -> None:
    wrong = [f"{name}:{found.line} {'imports' if found.early else 'imports, in a function,'} {found.name}"
             for name, file in files(world).items() for found in imports(ast.parse(file.read_text()))
             if breach(world, name, found)]
    assert not wrong, f"the {world} world reaches through a wall:\n" + "\n".join(wrong)


@pytest.mark.parametrize("world", WALLS)
def test_importing_a_world_loads_no_other(world: str) -> None:
    names = [_module(name) for name in files(world) if name not in ANYWHERE]
    assert len(names) > 5
    code = (f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
            f"print(*(p for p in {sorted(WALLS[world])!r} if p in sys.modules))")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not run.stdout.split(), f"importing the {world} world loads {run.stdout}"


def test_launch_files_are_no_package() -> None:
    assert not list((ROOT / "launch").rglob("__init__.py"))


@pytest.mark.parametrize("file, text, wrong", [
    ("robot_rl/act.py", "import mujoco", True),
    ("robot_rl/act.py", "def f():\n    from dm_control import suite", True),
    ("robot_rl/act.py", "class A:\n    from robot_rl import learn", True),
    ("robot_rl/act.py", "if TYPE_CHECKING:\n    import torch", False),
    ("robot_rl/act.py", "import mujocolike", False),
    ("robot_rl/cli.py", "def f():\n    import torch", False),
    ("robot_rl/cli.py", "import torch", True),
    ("robot_rl/cli.py", "def f():\n    import rclpy", True),
    ("hardware/bus/ros.py", "from rclpy.node import Node", False),
])
def test_the_check_tells_a_breach_from_a_door(file: str, text: str, wrong: bool) -> None:
    assert any(breach("robot", file, found) for found in imports(ast.parse(text))) is wrong


def _module(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
