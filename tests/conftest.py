"""What every test shares."""

from __future__ import annotations

import os
import zlib

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def domain(request: pytest.FixtureRequest) -> int:
    """A DDS domain of the test's own, so that tests do not hear each other."""
    return 10 + zlib.crc32(f"{os.getpid()} {request.node.nodeid}".encode()) % 90
