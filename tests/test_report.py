"""The report's page: from real bags of the simulated robot, and from folders that hold only a part."""

from __future__ import annotations

import base64
import json
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hardware import messages
from hardware.bus import resolve
from hardware.deploy import _histogram, topics
from hardware.robot_io import encode_command
from robot_rl.bag import BagWriter, read
from robot_rl.episode import Episode
from robot_rl.evaluate import summary
from robot_rl.log import Log
from robot_rl.observe import Readings
from robot_rl.page.figures import Axis, Chart, span, thin
from robot_rl.page.paths import paths
from robot_rl.page.stills import png, shrink
from robot_rl.page.timing import Timing, quantile
from robot_rl.page.tracks import paired, read_tracks
from robot_rl.report import write_report
from robot_rl.safety import Reason
from robot_rl.spec import JOINT_STATE, PolicySpec, SpecError, mjcf_file
from robot_rl.steplog import EPISODE_TOPIC, INFO_TOPIC, STEP_TOPIC, step_record
from sim import task_spec
from sim.offscreen import RenderError
from sim.robot import SimRobot

MILLISECOND = 1_000_000
START = 1_790_000_000 * 10**9
LATE_MS, LATENCY_MS = 0.125, 0.75


class Recording:
    """An episode of the simulated robot, straight into a bag. A goal where the tip rests is reached by waiting."""

    def __init__(self, folder: Path, number: int, spec: PolicySpec, sim: SimRobot, cameras: bool) -> None:
        assert spec.robot is not None
        self.spec, self.robot, self.sim, self.number, self.cameras = spec, spec.robot, sim, number, cameras
        self.bag = BagWriter(folder / f"episode_{number:04d}", flush_s=60.0)
        for topic, type, _ in topics(spec, spec.robot, cameras):
            self.bag.add_topic(f"/{resolve(topic, '', 'policy')}", type)
        self.now, self.values, self.stamps = START + number * 10**10, {}, {}  # type: ignore[var-annotated]

    def run(self, goal: np.ndarray, drift: float, breaks_off: bool = False) -> dict[str, Any]:
        """Small random motion, and a drift away from the goal, until the episode ends."""
        rng, episode, start, total = np.random.default_rng(self.number), Episode(self.spec), self.now, 0.0
        contract = json.loads(self.spec.to_json())
        self.tell(INFO_TOPIC, contract=contract)
        self.tell(EPISODE_TOPIC, event="start", episode=self.number, goal=[float(x) for x in goal])
        self.sim.reset()
        self.sim.show_goal(goal)
        self.sense()
        self.film()
        episode.begin(goal)
        while True:
            outcome = episode.observe(Readings(dict(self.values), dict(self.stamps)))
            total += outcome.reward
            command = None if outcome.done else episode.act(drift + rng.uniform(-0.02, 0.02, self.spec.action_size))
            nothing = np.full(self.spec.action_size, np.nan)
            self.put(STEP_TOPIC, step_record(
                self.spec, tick=episode.steps, episode=self.number, stamp_ns=self.now, stamps=self.stamps,
                outcome=outcome, asked=command.asked if command else nothing, action=command.action if command else
                nothing, sent=command.sent if command else np.full(6, np.nan),
                reasons=Reason.RATE if episode.steps == 1 else Reason.NONE,
                lateness_s=LATE_MS * 1e-3, latency_s=LATENCY_MS * 1e-3).encode())
            if command is None:
                break
            for topic, data in encode_command(self.robot, command.sent):
                self.put(topic, data)
            self.sim.apply(command.sent)
            for _ in range(5):
                self.sim.step(0.01)
                self.now += 10 * MILLISECOND
                self.sense()
        self.film()
        result = {"episode": self.number, "steps": episode.steps, "episode_return": total, "success": outcome.success,
                  "faults": outcome.faults.words(), "robot_s": 1.0, "start_unix": start * 1e-9}
        if not breaks_off:
            self.tell(EPISODE_TOPIC, event="end", **result)
        self.bag.close()
        return result

    def sense(self) -> None:
        for sensor in self.robot.sensors:
            seen = self.sim.measure(sensor.name)
            assert seen is not None
            numbers = [seen[f"{sensor.name}.{key}"] for key in ("position", "velocity", "orientation") if
                       f"{sensor.name}.{key}" in seen]
            self.put(sensor.topic, messages.joint_state(self.now, self.robot.names, *numbers)
                     if sensor.type == JOINT_STATE else messages.pose_stamped(self.now, sensor.frame, *numbers))
            self.stamps[sensor.name] = self.now
            self.values |= seen

    def film(self) -> None:
        for camera in self.robot.cameras if self.cameras else ():
            self.put(camera.topic, messages.image(self.now, camera.frame, self.sim.render(camera.name)))

    def tell(self, topic: str, **fields: Any) -> None:
        self.put(topic, messages.string(json.dumps(fields)))

    def put(self, topic: str, message: Any) -> None:
        data = message if isinstance(message, bytes) else messages.encode(message)
        self.bag.write(f"/{topic}", data, self.now, self.now)


def record(folder: Path, successes: list[bool | None], cameras: bool = False) -> dict[str, Any]:
    """Bags of so101-reach with these outcomes (None: the recording breaks off), and what `deploy` would tell."""
    spec, where = task_spec("so101-reach")
    spec = msgspec.structs.replace(spec, time_limit_s=1.2)
    assert spec.robot is not None
    sim = SimRobot(spec.robot, mjcf_file(where))
    sim.step(0.5)  # under its own weight the arm hangs a little below its default pose
    here = sim.readings()["tip.position"]
    results = []
    for number, success in enumerate(successes):
        goal = here + np.array([0.002 * number, 0.0, 0.0])
        drift = 0.0 if success else 0.3
        results.append(Recording(folder, number, spec, sim, cameras).run(goal, drift, breaks_off=success is None))
        assert results[-1]["success"] == bool(success)
    sim.close()
    ticks = sum(r["steps"] + 1 for r in results)
    return summary([r["episode_return"] for r in results], [r["success"] for r in results]) | {
        "task": "so101-reach", "rate_hz": 20.0, "ticks": ticks, "missed_deadlines": 7, "latency_ms_p50": LATENCY_MS,
        "latency_ms_p99": 1.5, "jitter_ms_p99": 0.31, "safety_events": 2, "episode_results": results,
        "lateness_ms": _histogram(np.full(ticks, LATE_MS)), "latency_ms": _histogram(np.full(ticks, LATENCY_MS))}


def write_metrics(folder: Path, finetuned: bool = False) -> None:
    log = Log(folder)
    for k in range(1, 13):
        if finetuned:
            log.write(k, {"robot/return": 2.0 * k, "robot/success": float(k > 6), "robot/length": 60.0 - k,
                          "robot/minutes": k / 20})
            continue
        log.write(1000 * k, {"collect/return": float(k), "collect/length": 60.0, "time/seconds": 30.0 * k})
        if k % 4 == 0:
            log.write(1000 * k, {"evaluate/episodes": 10.0, "evaluate/return_mean": 3.0 * k,
                                 "evaluate/success_rate": k / 12, "time/seconds": 30.0 * k + 1})
    log.close()
    (folder / "run.json").write_text(json.dumps({"task": "so101-reach", "recipe": "rlpd", "steps": 12000, "seed": 5,
                                                 "options": {"batch": 64}}))


@pytest.fixture(scope="module")
def filmed() -> bool:
    """Whether this machine can draw."""
    spec, where = task_spec("so101-reach")
    assert spec.robot is not None
    try:
        SimRobot(spec.robot, mjcf_file(where)).render("front")
    except RenderError:
        return False
    return True


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, filmed: bool) -> Path:
    """A whole demo's folder."""
    folder = tmp_path_factory.mktemp("runs") / "demo & <co>"
    before = record(folder / "before", [False, False, True], cameras=filmed)
    after = record(folder / "after", [False, True, True], cameras=filmed)
    simulation = {"task": "so101-reach", "episodes": 200, "return_mean": 4.5, "return_ci95": [4, 5],
                  "success_rate": 0.985, "success_ci95": [0.957, 0.995]}
    (folder / "demo.json").write_text(json.dumps({
        "simulation": simulation, "before": before, "after": after, "finetune": {"robot_minutes": 3.25},
        "gap": "payload=0.25,motor_strength=0.6,friction=0.25,command_delay=0.05,wobble=3", "seconds": 900.0}))
    write_metrics(folder / "train")
    write_metrics(folder / "finetuned", finetuned=True)
    return folder


class Page(HTMLParser):
    """Reads a page and checks that every element is closed in order."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data if "style" not in self.open else ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page(folder: Path) -> Page:
    text = write_report(folder, folder.parent / f"{folder.name} page" / "report.html").read_text()
    assert not re.search(r"\bnan\b", re.sub(r'src="[^"]*"', "", text.split("<body>")[1]), re.IGNORECASE)
    return Page(text)


def test_demo(demo: Path, filmed: bool) -> None:
    """Every part is there, with the right numbers, and nothing comes from elsewhere."""
    out = write_report(demo, demo / "report.html")
    text = out.read_text()
    read_back = Page(text)
    words = " ".join(read_back.words.split())
    assert out.stat().st_size < 3_000_000
    assert [s["id"] for s in read_back.all("section")] == ["result", "learning", "paths", "timing",
                                                           *["cameras"] * filmed, "commands"]
    assert "197 of 200 episodes there, but in 1 of 3 on a robot with a reality gap" in words
    assert "3.2 minutes of learning" in words and "33% to 67%" in words
    assert "it succeeds in 2 of 3, with the same goals" in words
    for said in ("98.5%", "95.7 to 99.5%", "250 g carried at the tip", "motors with 60%", "0.25 N·m of dry friction",
                 "take effect 50 ms late", "wobble = 3", "rate: cut at a speed limit", "--set batch=64", "--seed 5",
                 "ros2 bag info", "robot-rl bag info", "Foxglove", "PlotJuggler", "Not in this folder"):
        assert (said in words) == (said != "Not in this folder"), said
    assert "The two intervals on the robot overlap" in words
    assert "demo & <co>" in words and "demo &amp; &lt;co&gt;" in text
    titles = re.findall(r"<figure><b>(.*?)</b>", text)
    assert titles == ["Success with its 95% Wilson interval", "Success rate", "Return", "Episode length",
                      "Success rate", "Return", "Episode length", "Before fine-tuning: 1 of 3",
                      "After fine-tuning: 2 of 3", "Distance to the goal, before fine-tuning",
                      "Distance to the goal, after fine-tuning", "Lateness of the ticks", "Observation to command",
                      "Safety events by reason"]
    assert all(attrs.get("aria-label") for attrs in read_back.all("svg"))


def test_nothing_from_elsewhere(demo: Path) -> None:
    """The page loads nothing: only links within the page and data URIs, no script, no style from a file."""
    text = write_report(demo, demo / "report.html").read_text()
    read_back = Page(text)
    sources = [value for _, attrs in read_back.tags for key, value in attrs.items()
               if key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster")]
    assert sources
    assert all((value or "").startswith(("#", "data:image/png;base64,")) for value in sources)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {name for name, _ in read_back.tags}
    assert "http" not in text and "url(" not in text and "@import" not in text
    anchors = {attrs["id"] for attrs in read_back.all("section")}
    assert {f"#{name}" for name in anchors} == {attrs["href"] for attrs in read_back.all("a")}


def test_no_other_world(demo: Path) -> None:
    """The report is written on the robot's computer too: neither torch nor mujoco nor a plotting library is loaded."""
    code = ("import sys; from pathlib import Path; from robot_rl.report import write_report; "
            "write_report(Path(sys.argv[1]), Path(sys.argv[2])); "
            "print({m.split('.')[0] for m in sys.modules} & {'torch', 'mujoco', 'matplotlib', 'PIL', 'sim'})")
    done = subprocess.run([sys.executable, "-c", code, str(demo), str(demo / "report.html")], capture_output=True,
                          text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "set()"


def test_stills(demo: Path, filmed: bool) -> None:
    """First and last picture of both cameras, of the goal that was missed before and reached after."""
    if not filmed:
        pytest.skip("no off-screen OpenGL on this machine, hence no pictures in the bags")
    read_back = page(demo)
    assert "Before fine-tuning: failed (episode_0001)" in read_back.words
    images = read_back.all("img")
    assert [image["alt"] for image in images[:4]] == [f"{when} picture of camera {camera}" for camera in
                                                      ("front", "wrist") for when in ("first", "last")]
    assert len(images) == 8 and {(i["width"], i["height"]) for i in images} == {("320", "240")}
    message = next(m for m in read(demo / "before" / "episode_0001", ["/front/image_raw"]))
    first = messages.pixels(messages.decode(message.data, message.type))
    assert images[0]["src"] is not None
    assert np.array_equal(unpack(images[0]["src"], rows=40), first[:40])


def test_half_a_demo(demo: Path, tmp_path: Path) -> None:
    """A demo that was killed is shown as far as it came; what is missing is named."""
    half = tmp_path / "half"
    half.mkdir()
    (half / "train").symlink_to(demo / "train")
    (half / "before").symlink_to(demo / "before")
    words = page(half).words
    for part in ("demo.json, the demo's result", "finetuned/metrics.jsonl", "after/, the recorded episodes"):
        assert part in words
    assert "On the robot, before fine-tuning: success in 1 of 3 episodes." in words
    assert "12,000 steps of training in simulation took 6.0 min." in words
    only = tmp_path / "only"
    only.mkdir()
    (only / "demo.json").symlink_to(demo / "demo.json")
    read_back = page(only)
    assert "before/, the recorded episodes before fine-tuning" in read_back.words
    assert [s["id"] for s in read_back.all("section")] == ["result", "timing", "commands"]


def test_bags_of_an_earlier_try(demo: Path, tmp_path: Path) -> None:
    """Bags that the result does not count are left out, and that is said."""
    again = tmp_path / "again"
    again.mkdir()
    (again / "before").symlink_to(demo / "before")
    figures = json.loads((demo / "demo.json").read_text())
    figures["before"]["episode_results"] = figures["before"]["episode_results"][1:]
    (again / "demo.json").write_text(json.dumps(figures))
    words = page(again).words
    assert "1 bags that are not among the 2 episodes" in words and "Before fine-tuning: 1 of 2" in words


def test_run_folder(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run")
    read_back = page(tmp_path / "run")
    assert [s["id"] for s in read_back.all("section")] == ["learning", "commands"]
    assert "robot-rl train so101-reach --recipe rlpd --steps 12000 --seed 5 --set batch=64" in read_back.words
    write_metrics(tmp_path / "tuned", finetuned=True)
    assert "12 episodes of fine-tuning on the robot took 0.6 minutes" in page(tmp_path / "tuned").words


def test_bag_folder(tmp_path: Path) -> None:
    """Timing and outcomes come from the bags; a recording that broke off and a damaged one are told apart."""
    record(tmp_path / "bags", [True, None])
    (tmp_path / "bags" / "wreck").mkdir()
    (tmp_path / "bags" / "wreck" / "wreck_0.mcap").write_bytes(b"no bag")
    read_back = page(tmp_path / "bags")
    words = " ".join(read_back.words.split())
    assert "Recorded: success in 1 of 1 episodes. 1 recording broke off." in words
    assert "Left out" in words and "wreck" in words
    assert "0.125 ms" in words and "0.75 ms" in words
    assert [s["id"] for s in read_back.all("section")] == ["result", "paths", "timing", "commands"]
    one = page(tmp_path / "bags" / "episode_0000")
    assert "success in 1 of 1" in one.words


def test_tracks(demo: Path) -> None:
    """Paths, distances and timing are what the bag says."""
    before, refused = read_tracks(demo / "before")
    after, _ = read_tracks(demo / "after")
    assert refused == [] and [t.success for t in before] == [False, False, True]
    assert paired({"before": before, "after": after})
    assert not paired({"before": before, "after": after[::-1]}) and not paired({"before": before})
    track = before[2]
    assert track.goal is not None
    ticks = len(track.measure)
    assert len(track.tip) == 5 * (ticks - 1) + 1  # 100 Hz against 20 Hz, first and last tick included
    assert track.measure == pytest.approx(np.linalg.norm(track.tip[::5] - track.goal, axis=1))
    assert track.seconds == pytest.approx(np.arange(ticks) / 20)
    timing = Timing.recorded(before)
    assert (timing.missed, timing.events) == (0, 3) and timing.ticks == sum(len(t.measure) for t in before)
    assert timing.lateness_p99 == pytest.approx(LATE_MS) and timing.latency_p50 == pytest.approx(LATENCY_MS)


def test_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(SpecError, match=r"nothing to report: no demo\.json, no metrics\.jsonl and no readable bag"):
        write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(SpecError, match="no such folder"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    (tmp_path / "demo.json").write_text('{"simul')
    with pytest.raises(SpecError, match=r"demo\.json: not JSON"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def unpack(uri: str, rows: int | None = None) -> np.ndarray:
    """(H, W, 3) uint8, the first rows or all, of one of our PNG data URIs, by the PNG rules and not by our writer."""
    data, at, body = base64.b64decode(uri.split(",")[1]), 8, b""
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        part, (check,) = data[at + 8:at + 8 + size], struct.unpack_from(">I", data, at + 8 + size)
        assert check == zlib.crc32(kind + part)
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", part)
        body, at = body + part * (kind == b"IDAT"), at + 12 + size
    lines = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, -1)[:rows]
    out = np.zeros((len(lines), width, 3), int)
    assert (lines[:, 0] == 4).all()
    for y in range(len(lines)):
        line = lines[y, 1:].reshape(width, 3).astype(int)
        for x in range(width):
            a = out[y, x - 1] if x else np.zeros(3, int)
            b = out[y - 1, x] if y else np.zeros(3, int)
            c = out[y - 1, x - 1] if x and y else np.zeros(3, int)
            p = a + b - c
            near = np.abs(np.stack([p - a, p - b, p - c])).argmin(0)  # the first of equals: left, above, corner
            out[y, x] = (line[x] + np.choose(near, [a, b, c])) % 256
    return out.astype(np.uint8)


def test_png() -> None:
    """Any picture survives; a large one is averaged down by a whole factor."""
    noise = np.random.default_rng(0).integers(0, 256, (13, 7, 3), dtype=np.uint8)
    assert np.array_equal(unpack("," + base64.b64encode(png(noise)).decode()), noise)
    large = np.repeat(np.repeat(noise, 3, 0), 3, 1)
    assert np.array_equal(shrink(large, 7), noise)
    assert shrink(noise, 7) is noise


def test_axes() -> None:
    assert Axis(0, 30_000, "").ticks(6) == [0, 5000, 10000, 15000, 20000, 25000, 30000]
    assert Axis(0.03, 40, "", log=True).ticks() == [0.1, 1, 10]
    assert [Axis(0, 1, "").text(t) for t in (0.1 + 0.2, 25_000, 1_500_000)] == ["0.3", "25k", "1.5M"]
    assert Axis(-1, 1, "").text(-0.5) == "\N{MINUS SIGN}0.5"
    assert Axis(-1, 1, "").share([-1, 0, 5]).tolist() == [0, 0.5, 1]
    assert Axis(1, 100, "", log=True, reverse=True).share([1, 10, 100]) == pytest.approx([1, 0.5, 0])
    assert span([1.0, np.nan, 3.0], pad=0.5) == (0.0, 4.0) and span([np.nan]) == (0.0, 1.0)


def test_chart_breaks_at_gaps() -> None:
    """A line is never drawn across a value that is not known."""
    chart = Chart(Axis(0, 4, "x"), Axis(0, 1, "y"))
    chart.line([0, 1, 2, 3, 4], [0, 1, np.nan, 1, 0], "after")
    chart.dots([0, np.nan], [np.nan, 1], "after")
    text = chart.svg("a line with a gap")
    (path,) = re.findall(r'class="line after" d="([^"]*)"', text)
    assert path.count("M") == 2 and "nan" not in text and "<circle" not in text


def test_quantile_and_thinning() -> None:
    edges = np.geomspace(0.01, 10, 31)
    values = np.random.default_rng(0).lognormal(-1, 0.5, 20_000)
    counts = np.histogram(values, edges)[0].astype(float)
    assert quantile((edges, counts), 0.5) == pytest.approx(np.median(values), rel=0.03)
    assert np.isnan(quantile((edges, 0 * counts), 0.5))
    line = np.stack([np.linspace(0, 1, 1001), np.zeros(1001)], 1)
    kept = thin(line, 0.1)
    assert len(kept) <= 12 and np.array_equal(kept[[0, -1]], line[[0, -1]])


def test_paths_without_a_goal(demo: Path) -> None:
    """A pose sensor alone gives paths; one that stands still gives a picture too."""
    tracks, _ = read_tracks(demo / "after")
    still = [replace(t, goal=None, tip=np.tile(t.tip[:1], (4, 1)), measure=t.measure * np.nan) for t in tracks]
    read_back = Page(paths({"only": still}))
    boxes = [list(map(float, (svg["viewbox"] or "").split())) for svg in read_back.all("svg")]
    assert len(boxes) == 2 and all(150 < box[3] < 600 for box in boxes)
    assert not [attrs for attrs in read_back.all("circle") if "ring" in (attrs["class"] or "")]
    assert paths({"only": [replace(t, tip=t.tip[:0]) for t in still]}).startswith("<details>")
