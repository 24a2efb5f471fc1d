"""The camera process on video files and streams: what it publishes, refuses, loses and finds again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

import sim
from hardware import diagnostics, messages
from hardware.bus import SENSOR, Bus, Reader, connect
from hardware.camera_calibration import load_calibration
from hardware.robot_io import RobotIO
from robot_rl import image
from robot_rl.finetune import bags_in
from robot_rl.observe import Frames
from robot_rl.page.stills import stills
from robot_rl.spec import COMPRESSED, IMAGE, Camera, RobotSpec, SpecError, Vision, load_robot, mjcf_file
from robot_rl.steplog import read_episode
from tests.hardware.test_deploy import start
from tests.hardware.test_vision import brightness
from tests.processes import wait_for
from tests.robots import robot

cv2 = pytest.importorskip("cv2")
from hardware import camera_node  # noqa: E402  (it needs OpenCV)

WIDTH, HEIGHT, RATE = 64, 48, 20.0
CAMERA: dict[str, Any] = {"name": "front", "topic": "front/image_raw", "width": WIDTH, "height": HEIGHT,
                          "rate_hz": RATE, "frame": "front_optical_frame", "stale_after_s": 1.0}


def camera(**changes: Any) -> Camera:
    return msgspec.convert(CAMERA | changes, Camera)


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Smooth random pictures (H, W, 3) uint8 bgr, each unlike the others."""
    rng = np.random.default_rng(seed)
    return [cv2.resize(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8), (WIDTH, HEIGHT)) for _ in range(count)]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("video") / "front.avi"
    camera_node.write_video(file, pictures(30), RATE)
    return file


def frames_of(file: Path) -> list[np.ndarray]:
    """Every frame (H, W, 3) uint8 bgr of a video file, read directly."""
    capture, frames = cv2.VideoCapture(str(file)), []
    while (got := capture.read())[0]:
        frames.append(got[1])
    return frames


def body(**changes: Any) -> RobotSpec:
    return robot(cameras=[CAMERA | changes])


def written(spec: RobotSpec, folder: Path) -> Path:
    file = folder / "robot.yaml"
    file.write_text(yaml.safe_dump(msgspec.to_builtins(spec)))
    return file


class Filming:
    """A camera process, stopped at the end."""

    def __init__(self, *arguments: object) -> None:
        self.process = start("camera", *arguments)

    def __enter__(self) -> subprocess.Popen:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert "ready" in line, (line, self.process.stderr.read())
        return self.process

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.communicate(timeout=30)


# what it publishes

@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_a_policy_sees_the_pixels_of_the_file(transport: str, video: Path, domain: int, tmp_path: Path) -> None:
    spec, vision = body(transport=transport, delay_s=0.25), Vision(cameras=("front",), height=16, width=16)
    wanted = [image.fit(frame[..., ::-1] if transport == "raw" else image.from_jpeg(image.to_jpeg(frame, 90)), 16, 16)
              for frame in frames_of(video)]
    assert len({w.tobytes() for w in wanted}) == 30
    seen, stamps = [], []
    with connect("dds", "policy", "", domain) as bus:
        io = RobotIO(spec, bus, spec.cameras)
        infos = bus.reader("front/camera_info", "sensor_msgs/msg/CameraInfo", SENSOR)
        with Filming(written(spec, tmp_path), "--source", f"front={video}", "--loop", "--bus", "dds"):
            while len(seen) < 40:
                readings = io.read()
                if "front" in readings.stamps and readings.acquired["front"] not in stamps[-1:]:
                    behind = time.time_ns() - readings.acquired["front"]
                    assert behind >= 0.25e9 and readings.ages["front"] >= 0.25  # reckoned from the exposure
                    stamps.append(readings.acquired["front"])
                    seen.append(Frames(vision)(readings.values))
                time.sleep(0.002)
        info = messages.decode(infos.newest().data, "sensor_msgs/msg/CameraInfo")  # type: ignore[union-attr]
    places = [next(i for i, w in enumerate(wanted) if np.array_equal(w, frame)) for frame in seen]
    steps = np.diff(places) % 30
    assert (steps > 0).all() and np.median(steps) == 1  # in order, to the end and on from the beginning
    assert stamps[-1] - stamps[0] >= 0.95e9 * (steps.sum() - 1) / RATE  # at the file's rate, never faster
    assert (info.width, info.height, info.header.frame_id) == (WIDTH, HEIGHT, "front_optical_frame")
    assert not info.k.any()  # not calibrated


def test_an_image_that_is_sent_again_with_its_stamp_grows_old(domain: int) -> None:
    spec = body()
    with connect("dds", "robot", "", domain) as wire, connect("dds", "policy", "", domain) as bus:
        io, publisher = RobotIO(spec, bus, spec.cameras), wire.publisher("front/image_raw", IMAGE, SENSOR)
        wait_for(lambda: publisher.matched() > 0)
        age = 0.0
        for _ in range(5):
            publisher.publish(messages.encode(messages.image(7, "front", pictures(1)[0])))
            time.sleep(0.05)
            grown = io.read().ages["front"]
            assert grown > age
            age = grown
        publisher.publish(messages.encode(messages.image(8, "front", pictures(1)[0])))
        time.sleep(0.05)
        assert io.read().ages["front"] < age


# what it refuses

@pytest.mark.parametrize("changes, words", [
    ({"width": 80}, "width: the robot file says 80, the source gives 64"),
    ({"height": 40}, "height: the robot file says 40, the source gives 48"),
    ({"rate_hz": 30.0}, "rate_hz: the robot file says 30.0, the source gives 20"),
])
def test_a_source_of_another_size_or_rate_is_refused(changes: dict[str, Any], words: str, video: Path) -> None:
    with pytest.raises(SpecError, match=re.escape(f"camera 'front': source {video}: {words}")):
        camera_node.Source(camera(**changes), str(video), loop=False)


def test_what_a_device_answers_is_compared_with_the_robot_file() -> None:
    wanted = camera(exposure_s=0.01, pixel_format="MJPG", rate_hz=30)
    answers = {cv2.CAP_PROP_FRAME_WIDTH: 64.0, cv2.CAP_PROP_FRAME_HEIGHT: 48.0, cv2.CAP_PROP_FPS: 29.97,
               cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"MJPG")), cv2.CAP_PROP_AUTO_EXPOSURE: 1.0,
               cv2.CAP_PROP_EXPOSURE: 100.0}

    def told(camera: Camera, **changes: float) -> list[str]:
        given = answers | {getattr(cv2, f"CAP_PROP_{key}"): value for key, value in changes.items()}
        return camera_node.mismatches(given.__getitem__, camera, device=True, file=False)
    assert told(wanted) == []
    assert told(wanted, FPS=15) == ["rate_hz: the robot file says 30.0, the source gives 15"]
    assert told(wanted, EXPOSURE=157) == ["exposure_s: the robot file says 0.01, the source gives 0.0157"]
    assert told(wanted, AUTO_EXPOSURE=3) == ["exposure_s: the robot file says 0.01, the source gives auto"]
    assert told(msgspec.structs.replace(wanted, exposure_s="auto")) == [
        "exposure_s: the robot file says auto, the source gives manual"]
    yuyv = told(wanted, FOURCC=cv2.VideoWriter.fourcc(*"YUYV"))
    assert yuyv == ["pixel_format: the robot file says MJPG, the source gives YUYV"]


@pytest.mark.parametrize("arguments, words", [
    (["--source", "front=/dev/video97"], "camera 'front': source /dev/video97 cannot be opened"),
    (["--source", "side=0"], "--source side=0: give NAME=VALUE once for each, NAME one of .*: front"),
    (["--source", "front=none.mp4"], "camera 'front': source none.mp4 cannot be opened: no such file"),
    (["--source", "front=0", "--calibration", "front=none.yaml"], "none.yaml: cannot be read"),
])
def test_a_wrong_command_is_one_line_and_status_2(arguments: list[str], words: str, domain: int, tmp_path: Path
                                                  ) -> None:
    process = start("camera", written(body(), tmp_path), "--bus", "dds", *arguments)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch(f"robot-rl: {words}.*\n", said)


CALIBRATION: dict[str, Any] = {
    "image_width": 128, "image_height": 96, "camera_name": "front",
    "camera_matrix": {"rows": 3, "cols": 3, "data": [100.0, 0, 63, 0, 101.0, 47, 0, 0, 1]},
    "distortion_model": "plumb_bob",
    "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0.1, -0.2, 0.001, 0.002, 0]},
    "rectification_matrix": {"rows": 3, "cols": 3, "data": [1, 0, 0, 0, 1, 0, 0, 0, 1]},
    "projection_matrix": {"rows": 3, "cols": 4, "data": [90.0, 0, 62, 0, 0, 92.0, 46, 0, 0, 0, 1, 0]},
}


def calibration(folder: Path, **changes: Any) -> Path:
    """A calibration file; a key that is changed to None is left out."""
    file = folder / "front.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (CALIBRATION | changes).items() if v is not None}))
    return file


def test_a_calibration_is_scaled_to_the_camera_and_published(video: Path, domain: int, tmp_path: Path) -> None:
    with connect("dds", "viewer", "", domain) as bus:
        infos = bus.reader("front/camera_info", "sensor_msgs/msg/CameraInfo", SENSOR)
        images = bus.reader("front/image_raw", IMAGE, SENSOR)
        with Filming(written(body(), tmp_path), "--source", f"front={video}", "--loop", "--bus", "dds",
                     "--calibration", f"front={calibration(tmp_path)}"):
            wait_for(lambda: infos.newest() is not None and images.newest() is not None)
            wait_for(lambda: messages.acquired_ns(infos.newest().data)  # type: ignore[union-attr]
                  == messages.acquired_ns(images.newest().data))  # type: ignore[union-attr]
    info = messages.decode(infos.newest().data, "sensor_msgs/msg/CameraInfo")  # type: ignore[union-attr]
    assert (info.width, info.height, info.distortion_model) == (WIDTH, HEIGHT, "plumb_bob")
    np.testing.assert_allclose(info.k, [50, 0, 31.5, 0, 50.5, 23.5, 0, 0, 1])
    np.testing.assert_allclose(info.p, [45, 0, 31, 0, 0, 46, 23, 0, 0, 0, 1, 0])
    np.testing.assert_allclose(info.d, [0.1, -0.2, 0.001, 0.002, 0])


@pytest.mark.parametrize("changes, words", [
    ({"image_width": 640, "image_height": 360}, "image_width, image_height: 640x360, .* 'front' with 64x48 pixels"),
    ({"camera_matrix": None}, "missing required field `camera_matrix`"),
    ({"camera_matrix": {"rows": 3, "cols": 3, "data": [1.0] * 8}}, "camera_matrix: 3x3 with 8 numbers, .* be 3x3"),
    ({"camera_matrix": {"rows": 3, "cols": 3, "data": [float("nan")] * 9}}, "camera_matrix: .*nan.*finite"),
    ({"distortion_model": "fisheye"}, "distortion_model: fisheye, known are plumb_bob"),
    ({"distortion_model": "equidistant"}, "distortion_coefficients: 1x5 with 5 numbers, it must be 1x4"),
    ({"image_height": "tall"}, r"Expected `int`, got `str` - at `\$.image_height`"),
])
def test_a_calibration_that_does_not_fit_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = calibration(tmp_path, **changes)
    with pytest.raises(SpecError, match=re.escape(str(file)) + ": .*" + words):
        load_calibration(file, camera())


def test_an_image_of_another_size_is_refused_before_anything_moves(domain: int) -> None:
    spec = body(width=32, height=24)
    with connect("dds", "robot", "", domain) as wire, connect("dds", "policy", "", domain) as bus:
        io, publisher = RobotIO(spec, bus, spec.cameras), wire.publisher("front/image_raw", IMAGE, SENSOR)
        wait_for(lambda: publisher.matched() > 0)
        publisher.publish(messages.encode(messages.image(7, "front", pictures(1)[0])))
        with pytest.raises(SpecError, match=r"width and height: the robot file says 32x24, its image is 64x48"):
            io.wait(10.0)


# what it loses and finds again

def test_a_file_that_goes_and_comes_back_is_found_again(video: Path, domain: int, tmp_path: Path) -> None:
    file, away = tmp_path / "loop.avi", tmp_path / "away.avi"
    camera_node.write_video(file, frames_of(video)[:10], RATE)
    with connect("dds", "viewer", "", domain) as bus:
        images = bus.reader("front/image_raw", IMAGE, SENSOR)
        with Filming(written(body(), tmp_path), "--source", f"front={file}", "--loop", "--bus", "dds") as process:
            wait_for(lambda: images.newest() is not None)
            file.rename(away)
            assert re.search(r"'front': lost: .*loop.avi cannot be opened: no such file", process.stderr.readline())
            time.sleep(0.2)  # what was on its way has come
            last = images.newest()
            assert re.search(r"cannot be opened: no such file; trying again in 1 s", process.stderr.readline())
            assert images.newest() is last  # a lost camera says nothing
            away.rename(file)
            wait_for(lambda: images.newest() is not last)
            assert re.search(r"loop.avi is back", process.stderr.readline())


class Stream:
    """A network camera: JPEGs of one brightness over HTTP, on a port of its own until it is closed."""

    def __init__(self, level: int, port: int = 0) -> None:
        jpeg = image.to_jpeg(np.full((HEIGHT, WIDTH, 3), level, np.uint8), 90).tobytes()
        going = self._going = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                while not going.wait(1 / RATE):
                    try:
                        self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: "
                                         + str(len(jpeg)).encode() + b"\r\n\r\n" + jpeg + b"\r\n")
                    except OSError:
                        return

            def log_message(self, *_: object) -> None:
                pass
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._going.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def test_a_stream_that_breaks_off_is_found_again_and_shows_nothing_old(domain: int, tmp_path: Path) -> None:
    stream = Stream(60)
    try:
        with connect("dds", "viewer", "", domain) as bus:
            images = bus.reader("front/image_raw", IMAGE, SENSOR)
            with Filming(written(body(), tmp_path), "--source", f"front=http://127.0.0.1:{stream.port}/", "--bus",
                         "dds") as process:
                wait_for(lambda: images.newest() is not None)
                assert abs(level(images.newest()) - 60) < 3
                stream.close()
                assert re.search(r"lost: .* gives no more images", process.stderr.readline())
                time.sleep(0.2)
                last = images.newest()
                assert re.search(r"cannot be opened; trying again in 1 s", process.stderr.readline())
                stream = Stream(180, stream.port)
                wait_for(lambda: images.newest() is not last)
                assert abs(level(images.newest()) - 180) < 3
    finally:
        stream.close()


def level(sample: Any) -> float:
    return float(messages.pixels(messages.decode(sample.data, IMAGE)).mean())


# what a policy does then

@pytest.fixture
def arm(domain: int, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A simulated arm without its cameras: its robot file, which reads JPEG, and a policy that sees through one."""
    pytest.importorskip("onnx")
    spec = load_robot("so101-cube")
    changed = msgspec.structs.replace(spec, mjcf=str(mjcf_file("so101-cube")), cameras=(
        camera(transport="compressed"), spec.cameras[1]))
    file = written(changed, tmp_path)
    task, _ = sim.task_spec("so101-lift-camera")
    eye = Vision(cameras=("front",), height=16, width=16, stack=2)
    task = msgspec.structs.replace(task, vision=eye, time_limit_s=60.0)
    policy = brightness(task, tmp_path / "p.onnx")
    process = start("sim-robot", file, "--bus", "dds", "--no-cameras")
    assert process.stdout is not None and "ready" in process.stdout.readline()
    yield file, policy
    process.terminate()
    assert process.wait(20) == 0


def fault(process: subprocess.Popen, bags: Path) -> str:
    """What ended the only episode of a recorded deployment."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out, err)
    (bag,) = bags_in(bags)
    log = read_episode(bag)
    assert len(log.readings["front"]) > 3  # JPEGs were recorded and are found again
    seen = [outcome for outcome, _ in log.replayed()]
    assert isinstance(seen[0].observation, dict) and seen[0].observation["frames"].any()
    return str(log.end["faults"])


def told(health: Reader) -> dict[str, str]:
    """What the newest diagnostics of the policy say."""
    sample = health.newest()
    status = messages.decode(sample.data, diagnostics.TYPE).status[0] if sample else None
    return {pair.key: pair.value for pair in status.values} if status and "policy" in status.name else {}


def running(bus: Bus) -> Callable[[], bool]:
    events = bus.reader("policy/step", "std_msgs/msg/Float64MultiArray", SENSOR)
    return lambda: events.newest() is not None


def test_a_camera_that_stands_still_stops_the_episode(arm, video: Path, domain: int, tmp_path: Path) -> None:
    file, policy = arm
    with connect("dds", "viewer", "", domain) as bus, \
            Filming(file, "--source", f"front={video}", "--loop", "--bus", "dds") as camera:
        started, images = running(bus), bus.reader("front/image_raw/compressed", COMPRESSED, SENSOR)
        process = start("deploy", policy, "--robot", file, "--bus", "dds", "--record", tmp_path / "bags")
        health = bus.reader(diagnostics.TOPIC, diagnostics.TYPE, SENSOR)
        wait_for(lambda: started() or process.poll() is not None)
        shown: dict[str, str] = {}
        wait_for(lambda: shown.update(told(health)) or float(shown.get("ticks", 0)) > 0 or process.poll() is not None)
        assert abs(float(shown["behind_s front"])) < 1.0
        assert 0.0 <= float(shown["age_s front"]) <= 1.0
        camera.send_signal(signal.SIGSTOP)
        stopped = time.time_ns()
        assert fault(process, tmp_path / "bags") == "stale"
        pair = stills(next((tmp_path / "bags").glob("episode_*")))["/front/image_raw/compressed"]
        assert [still.shape for still in pair] == [(HEIGHT, WIDTH, 3)] * 2
        images.take()
        camera.send_signal(signal.SIGCONT)
        fresh: list[int] = []
        while len(fresh) <= 5:
            fresh += [messages.acquired_ns(sample.data) for sample in images.take()]
            time.sleep(0.01)
        assert min(fresh) > stopped + 0.5e9  # nothing from before it stood still


def test_a_truncated_jpeg_stops_the_episode(arm, domain: int, tmp_path: Path) -> None:
    file, policy = arm
    jpeg = image.to_jpeg(pictures(1)[0], 90)
    with connect("dds", "viewer", "", domain) as bus:
        images, started = bus.publisher("front/image_raw/compressed", COMPRESSED, SENSOR), running(bus)
        process = start("deploy", policy, "--robot", file, "--bus", "dds", "--record", tmp_path / "bags")
        left = 20
        while process.poll() is None:
            left -= started()
            whole = messages.compressed_image(time.time_ns(), "front", jpeg if left > 0 else jpeg[:-200])
            images.publish(messages.encode(whole))
            time.sleep(0.05)
        assert fault(process, tmp_path / "bags") == "missing"


def test_only_whole_jpegs_are_pictures() -> None:
    jpeg = image.to_jpeg(pictures(1)[0], 90)
    assert image.from_jpeg(jpeg).shape == (HEIGHT, WIDTH, 3)
    for broken in (jpeg[:-1], jpeg[:-200], jpeg[1:], jpeg[:0]):
        with pytest.raises(ValueError, match=r"no whole JPEG: they begin with \w+ and end with \w+"):
            image.from_jpeg(broken)
    with pytest.raises(ValueError, match="no JPEG that OpenCV can read"):
        image.from_jpeg(np.array([0xff, 0xd8, 0xff, 0xd9], np.uint8))


def test_a_file_without_a_loop_ends_the_process(video: Path, domain: int, tmp_path: Path) -> None:
    process = start("camera", written(body(), tmp_path), "--source", f"front={video}", "--bus", "dds", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "is over" in err
    assert json.loads(out.splitlines()[-1])["images"]["front"] <= 30
