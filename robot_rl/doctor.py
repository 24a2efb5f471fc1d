"""What a machine lacks for this project, said plainly and, where that is allowed, installed.

    python -m robot_rl.doctor system [--install]      graphics libraries, C++ compiler
    python -m robot_rl.doctor download [--index URL]  how much `make setup` is about to download

Needs nothing but Python, so that it runs before anything is installed. Nothing that is missing here stops the set-up.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from ctypes.util import find_library
from pathlib import Path
from typing import NamedTuple

# MB that pip downloads, measured on x86-64 Linux with the versions in constraints.txt
WITHOUT_TORCH_MB, TORCH_CPU_MB, TORCH_CUDA_MB = 340, 190, 2730


class Need(NamedTuple):
    """Something that comes from the system: is it there, what is lost without it, the Debian packages that bring it."""

    what: str
    met: bool
    without: str
    packages: tuple[str, ...]


def needs() -> list[Need]:
    """What the project uses and pip cannot install."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return [
        Need("OpenGL off-screen", sys.platform != "linux" or bool(find_library("EGL") or find_library("OSMesa")),
             "no camera pictures; everything else works", ("libegl1", "libgl1")),
        Need("C++ compiler", any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))),
             "learning runs uncompiled and slower", ("g++",)),
        Need("Python headers", header.is_file(), "learning runs uncompiled and slower",
             (f"python{sys.version_info[0]}.{sys.version_info[1]}-dev",)),
    ]


def check(install: bool) -> list[Need]:
    """Say what is missing, once `install` has had apt bring it where that is allowed. Returns what stays missing."""
    missing = [need for need in needs() if not need.met]
    if missing and install and (apt := _apt()):
        print(f"set-up: installing {', '.join(p for need in missing for p in need.packages)} with apt-get", flush=True)
        _run([*apt, "update", "-qq"])
        for need in missing:
            _run([*apt, "install", "-y", "-qq", "--no-install-recommends", *need.packages])
        missing = [need for need in needs() if not need.met]
    for need in missing:
        print(f"set-up: {need.what} not found: {need.without}. "
              f"On Debian or Ubuntu: apt-get install {' '.join(need.packages)}")
    return missing


def _apt() -> list[str]:
    """How to call apt-get, as root or by sudo without a password; empty when neither is allowed."""
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    if shutil.which("apt-get") is None:
        return []
    if os.geteuid() == 0:
        return command
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n", *command]
    return []


def _run(command: list[str]) -> None:
    """Run quietly; one line when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"status {done.returncode}"]
        print(f"set-up: {' '.join(command)} failed: {last[0]}")


def download(index: str) -> str:
    """One or two lines: what is about to be downloaded, judged by the builds of torch that pip sees."""
    pinned = _pin("torch")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "torch"]
    asked = subprocess.run(command + (["--extra-index-url", index] if index else []), capture_output=True, text=True)
    builds = re.findall(rf"\b{re.escape(pinned)}(?:\+\w+)?", asked.stdout)
    small = sys.platform != "linux" or f"{pinned}+cpu" in builds
    total = WITHOUT_TORCH_MB + (TORCH_CPU_MB if small else TORCH_CUDA_MB)
    line = f"set-up: downloads about {total:,} MB where pip's cache is empty (torch for {'CPU' if small else 'CUDA'})"
    if small or any(Path("/dev").glob("nvidia[0-9]*")):
        return line
    return (f"{line}\nset-up: no NVIDIA GPU is seen here. With an index that has torch's CPU builds, "
            f"make TORCH_INDEX=URL downloads about {TORCH_CUDA_MB - TORCH_CPU_MB:,} MB less")


def _pin(package: str) -> str:
    """The version of a package in constraints.txt of the current folder."""
    found = re.search(rf"^{package}==(\S+)", Path("constraints.txt").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"set-up: constraints.txt does not pin {package}")
    return found[1]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("robot_rl.doctor", description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("system", help="look for what pip cannot install").add_argument(
        "--install", action="store_true", help="install it with apt-get, as root or by sudo without a password")
    verbs.add_parser("download", help="say how much the set-up downloads").add_argument(
        "--index", default="", metavar="URL", help="one more package index")
    args = parser.parse_args()
    if args.verb == "system":
        check(args.install)
    else:
        print(download(args.index), flush=True)


if __name__ == "__main__":
    main()
