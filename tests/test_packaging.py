"""What is shipped: the wheel, the ROS 2 package that an install is, the pins and the launch files."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import fields as settings
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hardware import recorder
from hardware.managed import Settings
from robot_rl import __version__, cli
from tests.test_walls import files, imports

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FIRST_PARTY = {"robot_rl", "sim", "hardware", "models"}
FROM_ROS = {"rclpy", "rcl_interfaces", "std_srvs"}
"""What a ROS 2 install brings and no package index has; only the files that test_walls names may import it."""
EXTRAS = {"robot": (), "sim": ("sim",), "learning": ("train", "bench")}
"""What is installed where the files of a world run."""
OPTIONAL = {"robot_rl/log.py": "train", "robot_rl/session.py": "train", "robot_rl/demo.py": "train",
            "hardware/camera_node.py": "camera", "robot_rl/image.py": "camera", "robot_rl/page/plots.py": "plots"}
"""Files of the robot's side that do more where an extra is installed."""
CHECKOUTS = {"robot_rl/learn/bench_public.py": {"gym", "jax", "tensorflow_probability", "rlpd", "MRQ", "xqc"}}
"""What a file imports of public code that its user has, and of what that needs."""
DISTRIBUTIONS = {"yaml": "pyyaml", "cv2": "opencv-python-headless", "backports": "backports-zstd", "absl": "absl-py",
                 "sbx": "sbx-rl", "serial": "pyserial"}

NO_LAUNCH = pytest.mark.skipif(
    importlib.util.find_spec("launch") is None or importlib.util.find_spec("launch.launch_description_sources") is None,
    reason="ROS 2's `launch` is not installed here")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix that `pip install .` filled, from a copy of the checkout, without a network."""
    folder = tmp_path_factory.mktemp("install")
    skip = ignore_patterns(".*", "__pycache__", "build", "dist", "install", "log", "*.egg-info", "runs", "bags")
    copytree(ROOT, folder / "source", ignore=skip)
    # without --ignore-installed pip takes this environment's own robot-rl away first
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--ignore-installed", "--no-deps",
         "--no-build-isolation", "--no-index", "--quiet", "--prefix", str(folder / "prefix"), str(folder / "source"))
    return folder / "prefix"


def test_an_install_is_a_ros_package(prefix: Path) -> None:
    assert (prefix / "share/ament_index/resource_index/packages/robot_rl").is_file()
    assert _package(prefix / "share/robot_rl/package.xml") == ("robot_rl", __version__, "ament_python")
    for file in ("launch/sim.launch.py", "launch/robot.launch.py", "launch/record.launch.py",
                 "launch/camera.launch.py", "launch/config/so101.yaml", "launch/config/furuta.yaml"):
        assert (prefix / "share/robot_rl" / file).read_bytes() == (ROOT / file).read_bytes()
    for program in ("policy", "robot", "recorder", "camera", "supervisor"):
        assert os.access(prefix / "lib/robot_rl" / program, os.X_OK)


def test_every_module_and_model_file_is_installed(prefix: Path) -> None:
    site = _site(prefix)
    wanted = {file.relative_to(ROOT) for folder in FIRST_PARTY for file in (ROOT / folder).rglob("*")
              if file.is_file() and "__pycache__" not in file.parts}
    assert {Path("models/so101/robot.yaml"), Path("robot_rl/cli.py"), Path("hardware/bus/dds.py")} <= wanted
    assert not [str(file) for file in sorted(wanted) if not (site / file).is_file()]
    assert not (site / "tests").exists() and not (site / "launch").exists()


def test_an_install_works_without_the_checkout(prefix: Path, tmp_path: Path) -> None:
    code = ("import robot_rl, sys; from robot_rl.spec import load_robot, mjcf_file; print(robot_rl.__file__); "
            "[load_robot(r) and mjcf_file(r) for r in ('so101', 'furuta')]")
    shown = _run(sys.executable, "-c", code, cwd=tmp_path, env=_environment(prefix))
    assert Path(shown.strip()).is_relative_to(prefix)
    for program in ("bin/robot-rl", "lib/robot_rl/policy", "lib/robot_rl/robot", "lib/robot_rl/recorder"):
        assert "Usage" in _run(str(prefix / program), "--help", cwd=tmp_path, env=_environment(prefix)).title()


def test_metadata(prefix: Path) -> None:
    info = next(_site(prefix).glob("robot_rl-*.dist-info"))
    lines = (info / "METADATA").read_text().splitlines()
    assert {"Name: robot-rl", f"Version: {__version__}", "License: Apache-2.0", "Requires-Python: >=3.10"} <= set(lines)
    assert list(info.rglob("LICENSE"))
    # colcon reads the arguments of setup() as literals, which the version set of pyproject.toml is not
    assert "requires-python" not in PROJECT["project"]


def test_setup_installs_like_colcon(tmp_path: Path) -> None:
    """`colcon build` runs these commands of setup.py; the console script goes where `ros2 run` looks."""
    copytree(ROOT, tmp_path / "source", ignore=ignore_patterns(".*", "runs", "bags", "build", "*.egg-info"))
    code = ("from setuptools import Distribution; from distutils.core import run_setup; import ast; "
            "d = run_setup('setup.py', script_args=('--dry-run',), stop_after='config'); "
            "ast.literal_eval(repr(d.python_requires)); assert d.metadata.name == 'robot-rl'")
    _run(sys.executable, "-c", code, cwd=tmp_path / "source")
    _run(sys.executable, "setup.py", "-q", "egg_info", "build", "install", "--single-version-externally-managed",
         "--prefix", str(tmp_path / "prefix"), "--record", str(tmp_path / "record"), cwd=tmp_path / "source")
    for file in ("lib/robot_rl/robot-rl", "lib/robot_rl/policy", "share/robot_rl/package.xml",
                 "share/ament_index/resource_index/packages/robot_rl"):
        assert (tmp_path / "prefix" / file).is_file()


def test_robot_side_needs_neither_torch_nor_mujoco() -> None:
    names = _names(PROJECT["project"]["dependencies"])
    assert not names & {"torch", "mujoco", "dm-control", "gymnasium", "opencv-python-headless", "rclpy"}


@pytest.mark.parametrize("world", EXTRAS)
def test_every_import_is_declared(world: str) -> None:
    """A world's files import what is declared for it, not what other packages happen to bring."""
    project, missing = PROJECT["project"], set()
    for name, file in files(world).items():
        extras = (*EXTRAS[world], *filter(None, [OPTIONAL.get(name)]))
        declared = _names(project["dependencies"]).union(*(_names(project["optional-dependencies"][e]) for e in extras))
        for found in imports(ast.parse(file.read_text())):
            top = found.name.partition(".")[0]
            if top in FIRST_PARTY | FROM_ROS | set(sys.stdlib_module_names) or top == "compression":
                continue
            if top in CHECKOUTS.get(name, ()):
                continue
            if canonicalize_name(DISTRIBUTIONS.get(top, top)) not in declared:
                missing.add(f"{name}:{found.line} imports {top}")
    assert not missing, sorted(missing)


def test_every_dependency_is_pinned_within_its_range() -> None:
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    project = PROJECT["project"]
    for text in [*project["dependencies"], *(t for extra in project["optional-dependencies"].values() for t in extra)]:
        wanted = Requirement(text)
        for version in ("3.10", "3.11", "3.12", "3.13"):
            where = {"python_version": version, "python_full_version": f"{version}.0"}
            if wanted.marker and not wanted.marker.evaluate(where):
                continue
            known = pins.get(canonicalize_name(wanted.name), [])
            found = [pin for pin in known if not pin.marker or pin.marker.evaluate(where)]
            assert len(found) == 1, f"{wanted.name} has {len(found)} pins on Python {version}"
            exact = re.fullmatch(r"==([^*,+]+)", str(found[0].specifier))
            assert exact, f"{found[0]} is no exact pin that fits every build"
            assert wanted.specifier.contains(exact[1], prereleases=True), f"{found[0]} is outside {wanted}"
    assert [str(p.specifier) for p in pins["torch"]] == ["==2.13.0"]


def test_package_and_version_are_the_same_everywhere() -> None:
    assert _package(ROOT / "package.xml") == ("robot_rl", __version__, "ament_python")
    assert (ROOT / "resource/robot_rl").read_bytes() == b""


def test_setup_is_clean_shell() -> None:
    for script in (".ci/run", "launch/bin/policy", "launch/bin/robot", "launch/bin/recorder",
                   "launch/bin/supervisor"):
        assert os.access(ROOT / script, os.X_OK), f"{script} is not executable"
        _run("bash", "-n", str(ROOT / script))
    for target in ("demo", "test", "test-all", "lint", "setup", "clean"):
        assert _run("make", "-n", target, cwd=ROOT)


@pytest.mark.parametrize("robot", ["so101", "furuta"])
def test_launch_defaults_fit_the_robot(robot: str) -> None:
    options = yaml.safe_load((ROOT / f"launch/config/{robot}.yaml").read_text())
    options = options["/**"]["ros__parameters"]
    assert set(options) <= {field.name for field in settings(Settings)} and options["fade_s"] > 0
    assert options["policy_path"].startswith(robot)


def test_launch_files_use_options_that_exist() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    offered: dict[str, set[str]] = {name: {flag for p in commands[name].params for flag in (*p.opts, *p.secondary_opts)}
                                    for name in ("sim-robot", "deploy", "camera", "supervisor")}
    running = commands["policy"].commands["run"].params
    offered["deploy"] |= {flag for p in running for flag in (*p.opts, *p.secondary_opts)}
    offered["deploy"] |= {"--out", "--policy", "--ros-args"}  # the recorder's, and rclpy's
    offered["hardware.recorder"] = {flag for action in recorder._parser()._actions for flag in action.option_strings}
    offered["deploy"] |= offered["supervisor"] | {"--no-cameras"}
    for file, command in (("sim", "sim-robot"), ("robot", "deploy"), ("record", "hardware.recorder"),
                          ("camera", "camera")):
        nodes = ast.walk(ast.parse((ROOT / f"launch/{file}.launch.py").read_text()))
        words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert command in words
        used = {flag for word in words if not word.count("\n") for flag in re.findall(r"--[a-z][a-z-]*", word)}
        assert used - {"--help"}, f"{file}.launch.py gives no options"
        assert used - {"--help"} <= offered[command]


@NO_LAUNCH
def test_launch_descriptions() -> None:
    """Every argument is described."""
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    for file in (ROOT / "launch").glob("*.launch.py"):
        description = PythonLaunchDescriptionSource(str(file)).get_launch_description(LaunchContext())
        arguments = [entity for entity in description.entities if isinstance(entity, DeclareLaunchArgument)]
        assert {"robot", "namespace", "bus"} <= {argument.name for argument in arguments}
        assert all(argument.description for argument in arguments)


@NO_LAUNCH
@pytest.mark.parametrize(("file", "given", "wanted"), [
    ("robot", {"policy_path": "p.onnx"}, ["policy run p.onnx --robot=so101 --bus=auto --fade=1.0 --seed=0"]),
    ("robot", {"supervised": "true", "bus": "dds", "namespace": "arm", "autostart": "true", "use_sim_time": "true",
               "camera_sources": "front=/dev/video0 wrist=w.mp4"}, [
        "camera so101 --bus=dds --source=front=/dev/video0 --source=wrist=w.mp4 --namespace=arm",
        "supervisor so101 --bus=dds --namespace=arm",
        "policy run so101-reach --robot=so101 --bus=dds --fade=1.0 --seed=0 --autostart --supervised --namespace=arm "
        "--ros-args -p use_sim_time:=true"]),
    ("robot", {"supervised": "true", "acknowledge_no_watchdog": "true", "episodes": "2", "ros_args": "-r a:=b"}, [
        "supervisor so101 --bus=auto --acknowledge-no-watchdog --ros-args -r a:=b",
        "deploy so101-reach --robot=so101 --episodes=2 --bus=auto --seed=0 --cameras --supervised "
        "--acknowledge-no-watchdog --ros-args -r a:=b"]),
    ("sim", {"robot": "furuta", "cameras": "false"}, [
        "sim-robot furuta --gap= --namespace= --bus=auto --seed=0 --no-cameras",
        "deploy furuta-swingup --robot=furuta --episodes=3 --bus=auto --seed=0 --no-cameras"]),
    ("record", {"bus": "ros", "camera_sources": "front=0"}, [
        "camera so101 --bus=ros --source=front=0",
        "hardware.recorder --robot=so101 --out=bags --continuous=drive --namespace= --bus=ros --also= "
        "--supervised=false"]),
    ("robot", {"supervised": "true", "record": "bags", "cameras": "false", "ros_args": "-r a:=b"}, [
        "supervisor so101 --bus=auto --ros-args -r a:=b",
        "hardware.recorder --robot=so101 --out=bags --policy=so101-reach --bus=auto --no-cameras --supervised=true "
        "--ros-args -r a:=b",
        "policy run so101-reach --robot=so101 --bus=auto --fade=1.0 --seed=0 --supervised --ros-args -r a:=b"]),
    ("camera", {}, []),
])
def test_launch_files_run_what_is_asked_for(file: str, given: dict[str, str], wanted: list[str]) -> None:
    from launch import LaunchContext
    from launch.actions import ExecuteProcess
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    from launch.utilities import perform_substitutions
    context, found = LaunchContext(), list[str]()
    context.launch_configurations.update(given)

    def follow(entities: Any) -> None:
        for entity in entities or ():
            if isinstance(entity, ExecuteProcess):  # which would be started
                words = [perform_substitutions(context, word) for word in entity.process_description.cmd]
                found.append(" ".join(words).removeprefix("python3 -m ").removeprefix("robot_rl.cli "))
            else:
                follow(entity.visit(context))
    source = PythonLaunchDescriptionSource(str(ROOT / f"launch/{file}.launch.py"))
    follow(source.get_launch_description(context).entities)
    assert found == wanted


def _run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def _environment(prefix: Path) -> dict[str, str]:
    """The shell of somebody who uses a prefix: this Python's packages, the project from the prefix."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(_site(prefix)), *others]),
                         "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def _site(prefix: Path) -> Path:
    return next(prefix.glob("lib*/python*/site-packages"))


def _package(file: Path) -> tuple[Any, ...]:
    root = ElementTree.parse(file).getroot()
    return root.findtext("name"), root.findtext("version"), root.findtext("export/build_type")


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}
