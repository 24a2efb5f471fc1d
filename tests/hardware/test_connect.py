"""Choosing a backend, a domain and an interface; names."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from hardware.bus import SENSOR, connect, resolve
from hardware.bus.bench import bench
from hardware.bus.network import cyclone_configuration, domain_of


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(ValueError, match="auto, dds, ros"):
        connect("zmq", "x")  # type: ignore[arg-type]


def test_auto_takes_ros_where_it_is(monkeypatch: pytest.MonkeyPatch, domain: int) -> None:
    monkeypatch.setenv("ROBOT_RL_INTERFACE", "lo")
    with connect("auto", "x", domain=domain) as bus:
        assert bus.kind == ("ros" if importlib.util.find_spec("rclpy") else "dds")


@pytest.mark.parametrize(("name", "namespace", "full"), [
    ("a", "", "a"), ("a/b", "/arm/", "arm/a/b"), ("/a/b", "arm", "a/b"), ("a", "site/arm", "site/arm/a"),
    ("~/a", "arm", "arm/node/a"), ("_x1", "", "_x1")])
def test_names_are_those_of_ros(name: str, namespace: str, full: str) -> None:
    assert resolve(name, namespace, "node") == full


@pytest.mark.parametrize("name", ["", "/", "a b", "1a", "a//b", "a/", "a__b", "a-b", "~", "a/~/b", "é"])
def test_names_that_ros_refuses(name: str, domain: int) -> None:
    with pytest.raises(ValueError, match=f"name '{name}' in namespace 'arm'"):
        resolve(name, "arm", "node")


def test_a_bad_domain_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="domain is '300'"):
        domain_of(300)
    monkeypatch.setenv("ROS_DOMAIN_ID", "robot")
    with pytest.raises(ValueError, match="ROS_DOMAIN_ID is 'robot'"):
        domain_of(None)
    assert domain_of(7) == 7


def test_an_unknown_type_is_named(domain: int) -> None:
    with connect("dds", "x", domain=domain) as bus, pytest.raises(KeyError, match="sensor_msgs/msg/Nothing"):
        bus.reader("a", "sensor_msgs/msg/Nothing", SENSOR)


def test_bytes_of_another_type_are_refused_on_dds(domain: int) -> None:
    with connect("dds", "x", domain=domain) as bus:
        publisher = bus.publisher("a", "sensor_msgs/msg/JointState", SENSOR)
        for data in (b"", b"\0\1\0\0", b"\0\1\0\0" + 12 * b"\xff"):
            with pytest.raises(ValueError, match=r"'a': .* bytes are no"):
                publisher.publish(data)


@pytest.mark.parametrize(("variable", "value", "silent"), [
    ("CYCLONEDDS_URI", cyclone_configuration("no_such_nic"), True),
    ("CYCLONEDDS_URI", "<Domain><DDSSecurity/></Domain>", True),
    ("ROBOT_RL_INTERFACE", "no_such_nic", True),
    ("ROBOT_RL_INTERFACE", "lo", False)])
def test_the_environment_chooses_the_network(variable: str, value: str, silent: bool, domain: int) -> None:
    code = f"from hardware.bus import connect; connect('dds', 'x', domain={domain}).close()"
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), variable: value}
    done = subprocess.run([sys.executable, "-c", code], env=environment,
                          capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode != 0) == silent, done.stderr
    assert (f"{value}; Cyclone" in done.stderr or f"'{value}'; Cyclone" in done.stderr) == silent
    assert ("ConnectionError: DDS does not start on domain" in done.stderr) == silent


def test_bench_counts_what_it_measures() -> None:
    figures = bench("dds", seconds=0.2, domain=109)
    for name in ("joint_state", "image_vga"):
        assert 0 < figures[f"{name}_ms_p50"] <= figures[f"{name}_ms_p99"]
        assert figures["n"][name] >= 20
    assert figures["bus"] == "dds"
    assert "cores" in figures["machine"]
