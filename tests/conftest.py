"""What every test shares: one thread for each library, a DDS domain of its own, and nothing but loopback."""

from __future__ import annotations

import fcntl
import ipaddress
import itertools
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # a machine that is busy has taken 0.7 s over half a millisecond
settings.load_profile("patient")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# tests stay on loopback whatever the shell says; processes that they start inherit this
for variable in ("CYCLONEDDS_URI", "ROBOT_RL_INTERFACE", "ROS_DOMAIN_ID", "ROS_DISCOVERY_SERVER"):
    os.environ.pop(variable, None)

DOMAINS = range(1, 102)  # above 101 the ports of a domain run into those that Linux gives to anybody
_turn = itertools.count(random.Random(os.getpid()).randrange(len(DOMAINS)))


@contextmanager
def claimed() -> Iterator[int]:
    """A DDS domain that no other test on this machine uses now."""
    folder = Path(tempfile.gettempdir()) / f"robot_rl_domains_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for _ in DOMAINS:
        number = DOMAINS[next(_turn) % len(DOMAINS)]
        with (folder / str(number)).open("w") as claim:
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when this process ends
            except BlockingIOError:
                continue
            yield number
            return
    raise RuntimeError(f"all DDS domains from {DOMAINS[0]} to {DOMAINS[-1]} are taken ({folder})")


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A domain of the test's own; ROS_DOMAIN_ID tells processes that it starts."""
    with claimed() as number:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(number))
        yield number


@pytest.fixture(autouse=True)
def only_loopback() -> Iterator[None]:
    """Fail a test that leaves a socket bound or connected to anything but loopback."""
    yield
    outside = [str(address) for address in _addresses() if not (address.is_loopback or address.is_unspecified)]
    assert not outside, f"sockets of this process speak to the network: {outside}"


def _addresses() -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Local and remote addresses of this process's own sockets. An unbound side is 0.0.0.0 or ::."""
    own = {link for file in os.listdir("/proc/self/fd") if (link := _link(file)).startswith("socket:[")}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/self/net") / table
        for row in path.read_text().splitlines()[1:] if path.is_file() else ():
            cells = row.split()
            if f"socket:[{cells[9]}]" in own:
                yield from (_address(cell.partition(":")[0]) for cell in cells[1:3])


def _link(file: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{file}")
    except OSError:  # closed meanwhile
        return ""


def _address(words: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as the kernel prints it: 32-bit words in the machine's byte order, in hex."""
    data = b"".join(int(words[i:i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8))
    if len(data) == 4:
        return ipaddress.IPv4Address(data)
    six = ipaddress.IPv6Address(data)
    return six.ipv4_mapped or six


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse Python sockets that connect or send to anything but loopback."""
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        try:
            inside = ipaddress.ip_address(host).is_loopback
        except ValueError:
            inside = host in ("localhost", "")
        if not inside:
            raise PermissionError(f"tests use loopback only, not {host}")


sys.addaudithook(_guard)

# where processes keep to the clock: of these one runs at a time, beside whatever the other worker of `make test` does
TIMED = ("tests/hardware/", "tests/faults/", "tests/sim/", "tests/test_episode.py", "tests/test_finetune.py",
         "tests/test_latency.py", "tests/test_ten_stages.py")


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist everything runs in one process
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        """A worker takes all timed tests, or one test."""

        def _split_scope(self, nodeid: str) -> str:
            return "timed" if nodeid.startswith(TIMED) else nodeid

    return Scheduling(config, log)
