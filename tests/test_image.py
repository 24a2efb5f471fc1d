"""Pictures → frames: the middle, shrunk by area, and no OpenCV where there is nothing to shrink."""

from __future__ import annotations

import sys

import msgspec
import numpy as np
import pytest

from robot_rl import image
from robot_rl.spec import SpecError, Vision
from tests.robots import CAMERAS, contract, robot


def test_a_picture_of_the_right_size_needs_no_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # importing it fails
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(image.fit(picture, 2, 3), picture.transpose(2, 0, 1))
    with pytest.raises(ImportError):
        image.fit(picture, 1, 1)


def test_areas_are_averaged_by_hand() -> None:
    pytest.importorskip("cv2")
    red = np.array([[10, 20, 100, 110], [30, 40, 120, 130]], np.uint8)
    picture = np.stack([red, red + 1, np.zeros_like(red)], axis=2)
    np.testing.assert_array_equal(image.fit(picture, 1, 2), [[[25, 115]], [[26, 116]], [[0, 0]]])


@pytest.mark.parametrize(("shape", "size", "rows", "columns"), [
    ((4, 8), (2, 2), slice(0, 4), slice(2, 6)),
    ((8, 4), (2, 2), slice(2, 6), slice(0, 4)),
    ((6, 12), (2, 3), slice(0, 6), slice(1, 10)),  # the odd column is the right one's
])
def test_the_middle_of_the_wanted_shape_is_kept(shape, size, rows, columns) -> None:
    pytest.importorskip("cv2")
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    middle = picture[rows, columns]
    np.testing.assert_array_equal(image.fit(picture, *size), image.fit(middle, *size))
    blocks = middle.reshape(size[0], middle.shape[0] // size[0], size[1], -1, 3).mean((1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(image.fit(picture, *size), blocks, atol=0.51)


def test_a_missing_opencv_is_named_before_anything_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    small, same = (contract(body=robot(cameras=CAMERAS), vision=Vision(cameras=("front",), height=h, width=w))
                   for h, w in ((3, 4), (6, 8)))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SpecError, match=r"front.*8x6.*4x3.*robot-rl\[camera\]"):
        image.prepare(small)
    image.prepare(same)
    image.prepare(msgspec.structs.replace(small, vision=None))
