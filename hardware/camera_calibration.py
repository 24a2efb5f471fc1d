"""Calibration files of cameras, as ROS's camera_calibration writes them, fitted to the size that a camera films in."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from robot_rl.spec import Camera, SpecError, read_yaml

COEFFICIENTS = {"plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4}
"""Distortion models and how many numbers each has."""


class Matrix(msgspec.Struct):
    """A matrix, row by row."""

    rows: int
    cols: int
    data: list[float]


class _File(msgspec.Struct):
    image_width: int
    image_height: int
    camera_matrix: Matrix
    distortion_model: str
    distortion_coefficients: Matrix
    rectification_matrix: Matrix
    projection_matrix: Matrix


class Calibration(msgspec.Struct, frozen=True):
    """What `camera_info` says of a camera; pixels."""

    intrinsics: np.ndarray
    """(3, 3), all zeros for a camera that was not calibrated."""
    distortion: np.ndarray
    model: str
    rectification: np.ndarray
    """(3, 3)"""
    projection: np.ndarray
    """(3, 4)"""


NONE = Calibration(np.zeros((3, 3)), np.zeros(0), "", np.eye(3), np.zeros((3, 4)))
"""Of a camera that was not calibrated, in the words of sensor_msgs/CameraInfo."""


def load_calibration(path: Path, camera: Camera) -> Calibration:
    """Read a calibration for a camera; one made at another size of the same shape is scaled.

    Raises SpecError naming file, key and both values.
    """
    found = read_yaml(path, _File, str(path))
    if found.image_width * camera.height != camera.width * found.image_height or found.image_width < 1:
        raise SpecError(f"{path}: image_width, image_height: {found.image_width}x{found.image_height}, which is of "
                        f"another shape than camera '{camera.name}' with {camera.width}x{camera.height} pixels")
    if found.distortion_model not in COEFFICIENTS:
        raise SpecError(f"{path}: distortion_model: {found.distortion_model}, known are {', '.join(COEFFICIENTS)}")
    numbers = {key: _numbers(path, found, key, *shape) for key, shape in (
        ("camera_matrix", (3, 3)), ("distortion_coefficients", (1, COEFFICIENTS[found.distortion_model])),
        ("rectification_matrix", (3, 3)), ("projection_matrix", (3, 4)))}
    scale = np.array([[camera.width / found.image_width], [camera.height / found.image_height], [1.0]])
    return Calibration(numbers["camera_matrix"] * scale, numbers["distortion_coefficients"].reshape(-1),
                       found.distortion_model, numbers["rectification_matrix"], numbers["projection_matrix"] * scale)


def _numbers(path: Path, file: _File, key: str, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) of a key."""
    matrix: Matrix = getattr(file, key)
    if (matrix.rows, matrix.cols) != (rows, columns) or len(matrix.data) != rows * columns:
        raise SpecError(f"{path}: {key}: {matrix.rows}x{matrix.cols} with {len(matrix.data)} numbers, it must be "
                        f"{rows}x{columns}")
    values = np.array(matrix.data).reshape(rows, columns)
    if not np.isfinite(values).all():
        raise SpecError(f"{path}: {key}: {values.ravel().tolist()}: not all of its numbers are finite")
    return values
