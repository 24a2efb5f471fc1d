"""Pictures → the frames that a policy sees: the same cut and the same shrinking on the robot and in a log."""

from __future__ import annotations

import importlib.util

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


def demand(spec: PolicySpec) -> None:
    """Raise SpecError where a robot's images have to be shrunk for its policy and OpenCV is not installed."""
    if spec.vision is None or importlib.util.find_spec("cv2") is not None:
        return
    for camera in spec.cameras:
        if (camera.height, camera.width) != (spec.vision.height, spec.vision.width):
            raise SpecError(f"camera '{camera.name}': {camera.width}x{camera.height} pixels, the policy sees "
                            f"{spec.vision.width}x{spec.vision.height}: pip install 'robot-rl[camera]' to shrink them")
