"""Choosing a backend."""

from __future__ import annotations

import pytest

from hardware.bus import connect


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(ValueError, match="auto, dds, ros"):
        connect("zmq", "x")  # type: ignore[arg-type]
