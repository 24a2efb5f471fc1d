"""Pictures → the frames that a policy sees: the same cut and the same shrinking everywhere. And JPEG, both ways."""

from __future__ import annotations

import importlib

import numpy as np

from robot_rl.spec import PolicySpec, SpecError

QUALITY = 90  # of a JPEG, unless said otherwise
LARGEST = 1 << 25  # pixels of a JPEG that is unpacked, 100 MB
HEAD = 1 << 16  # bytes of a JPEG among which its size is looked for


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


def to_jpeg(bgr: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 3) uint8 bgr → (N,) uint8, the bytes of a JPEG; quality is 1 to 100."""
    import cv2
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(bgr), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(data, np.uint8).reshape(-1)


def from_jpeg(data: np.ndarray) -> np.ndarray:
    """(N,) uint8, the bytes of a JPEG → (H, W, 3) uint8 rgb. Raises ValueError for what is none, or not all of one."""
    import cv2
    head, tail = bytes(data[:2]), bytes(data[-64:]).rstrip(b"\0")[-2:]
    if head != b"\xff\xd8" or tail != b"\xff\xd9":  # OpenCV would paint what is missing grey and say nothing
        raise ValueError(f"{len(data)} bytes are no whole JPEG: they begin with {head.hex() or 'nothing'} and end with "
                         f"{tail.hex() or 'nothing'}, not ffd8 and ffd9")
    if (pixels := _pixels(bytes(data[:HEAD]))) > LARGEST:
        raise ValueError(f"a JPEG of {pixels} pixels, more than {LARGEST}")
    picture = cv2.imdecode(np.ascontiguousarray(data), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        raise ValueError(f"{len(data)} bytes are no JPEG that OpenCV can read")
    return np.asarray(picture)[..., ::-1]


def _pixels(head: bytes) -> int:
    """What the first bytes of a JPEG say its size is; 0 where they do not."""
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2:at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not a table
            return int.from_bytes(head[at + 5:at + 7], "big") * int.from_bytes(head[at + 7:at + 9], "big")
        at += 2 + length if marker != 0xFF else 1  # 0xFF may be repeated before a marker
    return 0


def prepare(spec: PolicySpec) -> None:
    """Load OpenCV, which takes too long for a tick, where a robot's images are JPEG or larger than its policy sees.

    Raises SpecError where it is not installed.
    """
    if spec.vision is None:
        return
    width, height = spec.vision.width, spec.vision.height
    for camera in spec.cameras:
        if camera.transport == "compressed" or (camera.width, camera.height) != (width, height):
            try:
                importlib.import_module("cv2")
            except ImportError as error:
                raise SpecError(f"camera '{camera.name}': its {camera.width}x{camera.height} {camera.transport} pixels "
                                f"have to become {width}x{height}: pip install 'robot-rl[camera]' ({error})") from error
