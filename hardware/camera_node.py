"""Real cameras on the bus: a device, a video file or a network stream, through OpenCV.

Each camera has two threads. One takes every image as it comes, so that none grows old in the driver, stamps it and
keeps the newest; the other publishes that one, so that a slow encoder or reader costs images and never their age.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from hardware import messages
from hardware.bus import SENSOR, Bus
from hardware.camera_calibration import NONE, Calibration
from hardware.loop import Ticker
from robot_rl import image
from robot_rl.spec import COMPRESSED, IMAGE, Camera, SpecError

OPEN_MS, READ_MS = 5000, 2000  # how long a network stream may be silent
BACKOFF_S = 0.5, 8.0  # before the first try to have a lost camera back, and at most
QUEUED = 4  # images that V4L2 holds for a process that does not take them
EXPOSURE_UNIT_S = 1e-4  # of V4L2
AUTO, MANUAL = 3, 1  # V4L2's exposure programs
TOLERANCE = 0.05  # between a rate or an exposure and what the driver can do
SLOW = 0.8  # share of the rate below which a camera is told of
WATCH_S = 5.0


class Shot(NamedTuple):
    """One image: (H, W, 3) uint8 bgr, when it was taken in ns since the Unix epoch and on the monotonic clock."""

    bgr: np.ndarray
    stamp_ns: int
    taken_ns: int


class Source:
    """A device (`0`, `/dev/video0`), a file or a stream (`http://`, `rtsp://`) as a camera of a robot file.

    Raises SpecError when it cannot be opened or is otherwise than the robot file says, naming both values.
    """

    def __init__(self, camera: Camera, source: str, loop: bool) -> None:
        self._camera, self._source, self._loop = camera, source, loop
        self.device = source.isdigit() or source.startswith("/dev/")
        self.file = not self.device and "://" not in source
        self._capture = self._open()
        self._pace: Ticker | None = None

    def grab(self) -> bool:
        """Take the next image, of a file at its time; False when there is none. `bgr` decodes it."""
        if not self.file:
            return bool(self._capture.grab())
        if self._pace is None:
            self._pace = Ticker(self._capture.get(cv2.CAP_PROP_FPS), 1)
            self._pace.start()
        self._pace.wait()  # skipped periods are not made up for: a computer that is too slow shows the film slower
        return self._next()

    def bgr(self) -> np.ndarray | None:
        """(H, W, 3) uint8 of what `grab` took; None when it cannot be decoded."""
        good, picture = self._capture.retrieve()
        return picture if good else None

    def close(self) -> None:
        """Let go of it."""
        self._capture.release()

    def _next(self) -> bool:
        if self._capture.grab():
            return True
        if self._loop:
            self._capture.release()
            self._capture = self._open()
        return bool(self._loop and self._capture.grab())

    def _open(self) -> Any:
        where = int(self._source) if self._source.isdigit() else self._source
        if self.device:
            capture = cv2.VideoCapture(where, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
        else:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS]
            capture = cv2.VideoCapture(where, cv2.CAP_FFMPEG, limits)
        try:
            if not capture.isOpened():
                raise SpecError(f"camera '{self._camera.name}': source {self._source} cannot be opened"
                                + ("" if not self.file or Path(self._source).is_file() else ": no such file"))
            if self.device:
                _set(capture, self._camera)
            faults = mismatches(capture.get, self._camera, self.device, self.file)
            if faults:
                raise SpecError(f"camera '{self._camera.name}': source {self._source}: {'; '.join(faults)}")
        except SpecError:
            capture.release()
            raise
        return capture


def _set(capture: Any, camera: Camera) -> None:
    """Ask a device for what the robot file says."""
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    if camera.pixel_format is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*camera.pixel_format))
    for key, value in ((cv2.CAP_PROP_FRAME_WIDTH, camera.width), (cv2.CAP_PROP_FRAME_HEIGHT, camera.height),
                       (cv2.CAP_PROP_FPS, camera.rate_hz)):
        capture.set(key, value)
    if camera.exposure_s is not None:
        capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, AUTO if camera.exposure_s == "auto" else MANUAL)
    if isinstance(camera.exposure_s, float | int):
        capture.set(cv2.CAP_PROP_EXPOSURE, round(camera.exposure_s / EXPOSURE_UNIT_S))


def mismatches(get: Callable[[int], float], camera: Camera, device: bool, file: bool) -> list[str]:
    """What a source gives, by OpenCV's property number, otherwise than the robot file says; one line each."""
    lines = []

    def compare(key: str, wanted: object, found: object, same: bool) -> None:
        if not same:
            lines.append(f"{key}: the robot file says {wanted}, the source gives {found}")
    for key, number in (("width", cv2.CAP_PROP_FRAME_WIDTH), ("height", cv2.CAP_PROP_FRAME_HEIGHT)):
        compare(key, getattr(camera, key), round(get(number)), round(get(number)) == getattr(camera, key))
    if device or file:  # streams say anything; what comes is counted
        rate = get(cv2.CAP_PROP_FPS)
        compare("rate_hz", camera.rate_hz, f"{rate:g}", abs(rate - camera.rate_hz) <= TOLERANCE * camera.rate_hz)
    if device and camera.pixel_format is not None:
        code = round(get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("ascii", "replace")
        compare("pixel_format", camera.pixel_format, code, code == camera.pixel_format)
    if device and camera.exposure_s is not None:
        program = round(get(cv2.CAP_PROP_AUTO_EXPOSURE))
        auto = camera.exposure_s == "auto"
        compare("exposure_s", camera.exposure_s, {AUTO: "auto", MANUAL: "manual"}.get(program, f"program {program}"),
                program == (AUTO if auto else MANUAL))
    if device and isinstance(camera.exposure_s, float | int):
        seconds = get(cv2.CAP_PROP_EXPOSURE) * EXPOSURE_UNIT_S
        near = max(TOLERANCE * camera.exposure_s, EXPOSURE_UNIT_S)
        compare("exposure_s", camera.exposure_s, f"{seconds:g}", abs(seconds - camera.exposure_s) <= near)
    return lines


class _Eye:
    """One camera: a thread that takes its images and one that publishes the newest."""

    def __init__(self, camera: Camera, source: str, calibration: Calibration, bus: Bus, loop: bool, quality: int
                 ) -> None:
        self.camera, self.calibration = camera, calibration
        self.over = False
        """Its file has come to its end."""
        self.seen = 0
        """Images taken so far."""
        self._name, self._loop, self._quality = source, loop, quality
        self._source: Source | None = Source(camera, source, loop)
        self._images = bus.publisher(camera.topic, IMAGE, SENSOR)
        self._jpegs = bus.publisher(f"{camera.topic}/compressed", COMPRESSED, SENSOR)
        self._infos = bus.publisher(camera.info_topic, "sensor_msgs/msg/CameraInfo", SENSOR)
        self._stop, self._fresh = threading.Event(), threading.Condition()
        self._newest: Shot | None = None
        self._threads = [threading.Thread(target=work, daemon=True, name=f"{what} {camera.name}")
                         for what, work in (("take", self._take), ("publish", self._publish))]

    def start(self) -> None:
        """Begin to film."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Film no more; a driver that hangs is not waited for."""
        self._stop.set()
        for thread in self._threads:
            thread.join(READ_MS * 1e-3 + 1.0)

    def _take(self) -> None:
        """Take every image; when the source is lost, try to have it back, ever less often."""
        ended, left, counted, since = time.monotonic(), 0, 0, time.monotonic()
        while not self._stop.is_set():
            try:
                if self._source is None:
                    self._source = self._again()
                    ended = since = time.monotonic()
                    counted, left = self.seen, 0
                    continue
                began, good = time.monotonic(), self._source.grab()
                stamp, taken = time.time_ns(), time.monotonic_ns()
                picture = self._source.bgr() if good else None
            except SpecError as error:
                self._lose(str(error))
                continue
            if not good:
                self._end()
                continue
            if picture is None:  # a damaged image, of which cheap cables bring some
                continue
            if picture.shape != (self.camera.height, self.camera.width, 3):
                self._lose(f"its image is {picture.shape[1]}x{picture.shape[0]}, the robot file says "
                           f"{self.camera.width}x{self.camera.height}")
                continue
            if began - ended > self.camera.stale_after_s and not self._source.file:
                left = QUEUED  # this process stood still: the driver's images are as old as that
            ended, left, self.seen = time.monotonic(), max(0, left - 1), self.seen + 1
            if not left:
                with self._fresh:
                    self._newest = Shot(picture, stamp, taken)
                    self._fresh.notify()
            if ended - since >= WATCH_S:
                rate = (self.seen - counted) / (ended - since)
                if rate < SLOW * self.camera.rate_hz:
                    self._say(f"{rate:.1f} Hz, the robot file says {self.camera.rate_hz:g}")
                counted, since = self.seen, ended

    def _end(self) -> None:
        """No image came: a file is over, anything else is lost."""
        assert self._source is not None
        if self._source.file and not self._loop:
            self._say(f"{self._name} is over")
            self.over = True
            self._stop.set()
        else:
            self._lose(f"{self._name} gives no more images")

    def _lose(self, why: str) -> None:
        with self._fresh:
            self._newest = None
        if self._source is not None:
            self._source.close()
        self._source = None
        self._say(f"lost: {why}")

    def _again(self) -> Source | None:
        """The source, once it is there again; None when that is no longer wanted."""
        pause, most = BACKOFF_S
        while not self._stop.wait(pause):
            try:
                found = Source(self.camera, self._name, self._loop)
            except SpecError as error:
                pause = min(2 * pause, most)
                self._say(f"{error}; trying again in {pause:g} s")
                continue
            self._say(f"{self._name} is back")
            return found
        return None

    def _publish(self) -> None:
        """Publish the newest image, unless it has grown old meanwhile; what nobody reads is not made."""
        while not self._stop.is_set():
            with self._fresh:
                if self._newest is None and not self._fresh.wait(0.2):
                    continue
                shot, self._newest = self._newest, None
            if shot is None or (time.monotonic_ns() - shot.taken_ns) * 1e-9 > self.camera.stale_after_s:
                continue
            camera, told = self.camera, self.calibration
            if self._images.matched():
                self._images.publish(messages.encode(messages.image(shot.stamp_ns, camera.frame, shot.bgr, "bgr8")))
            if self._jpegs.matched():
                jpeg = image.to_jpeg(shot.bgr, self._quality)
                self._jpegs.publish(messages.encode(messages.compressed_image(shot.stamp_ns, camera.frame, jpeg)))
            if self._infos.matched():
                self._infos.publish(messages.encode(messages.camera_info(
                    shot.stamp_ns, camera.frame, camera.width, camera.height, told.intrinsics, told.distortion,
                    told.model, told.rectification, told.projection)))

    def _say(self, words: str) -> None:
        print(f"camera '{self.camera.name}': {words}", file=sys.stderr, flush=True)


def run(cameras: Sequence[Camera], sources: Mapping[str, str], bus: Bus, stop: Callable[[], bool], *,
        calibrations: Mapping[str, Calibration] | None = None, loop: bool = False, quality: int = image.QUALITY
        ) -> dict[str, int]:
    """Film through `sources`, by camera name, until `stop()` or until all files are over; images taken by camera.

    Raises SpecError, before any is published, for a source that cannot be opened or is not what the robot file says.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what goes wrong is said here, in one line
    cv2.setNumThreads(1)
    told = calibrations or {}
    eyes = [_Eye(camera, sources[camera.name], told.get(camera.name, NONE), bus, loop, quality)
            for camera in cameras if camera.name in sources]
    for eye in eyes:
        eye.start()
    ready = False
    try:
        while not stop() and not all(eye.over for eye in eyes):
            if not ready and all(eye.seen for eye in eyes):
                ready = True
                print("camera: ready", flush=True)
            time.sleep(0.02)
    finally:
        for eye in eyes:
            eye.stop()
    return {eye.camera.name: eye.seen for eye in eyes}


def write_video(path: Path, frames: Sequence[np.ndarray], rate_hz: float, codec: str = "MJPG") -> None:
    """Frames (H, W, 3) uint8 bgr as a video file. Raises OSError when that cannot be written."""
    height, width, _ = frames[0].shape
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate_hz, (width, height))
    if not writer.isOpened():
        raise OSError(f"{path}: no video of codec {codec} can be written")
    for frame in frames:
        writer.write(frame)
    writer.release()
