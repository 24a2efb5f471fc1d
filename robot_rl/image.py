"""Pictures → the frames that a policy sees: the same cut and the same shrinking on the robot and in a log."""

from __future__ import annotations

import importlib

import numpy as np

from robot_rl.spec import PolicySpec, SpecError


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 rgb → (3, height, width) uint8: its middle of that shape, shrunk by averaging areas.

    A picture of that size is taken as it is; others need OpenCV.
    """
    rows, columns, _ = picture.shape
    if (rows, columns) != (height, width):
        import cv2
        tall, wide = min(rows, columns * height // width), min(columns, rows * width // height)
        top, left = (rows - tall) // 2, (columns - wide) // 2
        middle = np.ascontiguousarray(picture[top:top + tall, left:left + wide])
        picture = cv2.resize(middle, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def prepare(spec: PolicySpec) -> None:
    """Load OpenCV, which takes too long for a tick, where a robot's images have to be shrunk for its policy.

    Raises SpecError where it is not installed.
    """
    if spec.vision is None:
        return
    width, height = spec.vision.width, spec.vision.height
    for camera in spec.cameras:
        if (camera.width, camera.height) != (width, height):
            try:
                importlib.import_module("cv2")
            except ImportError as error:
                raise SpecError(f"camera '{camera.name}': its {camera.width}x{camera.height} pixels have to be shrunk "
                                f"to {width}x{height}: pip install 'robot-rl[camera]' ({error})") from error
