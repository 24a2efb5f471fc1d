"""One self-contained HTML page about a demo, a run or a folder of bags. What is missing is named, never made up."""

from __future__ import annotations

import json
import os
import platform
import shlex
import time
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from robot_rl.log import read_lines, write_atomic
from robot_rl.page import curves, headline, html, paths, stills, timing
from robot_rl.page.tracks import Track, read_tracks
from robot_rl.spec import SpecError


@dataclass
class Found:
    """What a folder holds of a demo, a run or recordings; `kind` is one of these three words."""

    folder: Path
    kind: str
    figures: dict[str, Any] = field(default_factory=dict)
    """demo.json."""
    runs: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = field(default_factory=dict)
    """By `train` and `finetune`: run.json and the lines of metrics.jsonl."""
    tracks: dict[str, list[Track]] = field(default_factory=dict)
    """By `before`, `after` or `only`: the recorded episodes."""
    missing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Bags that could not be read, and why."""

    @property
    def task(self) -> str:
        """The task's name, as far as anything tells it."""
        told = [config.get("task") for config, _ in self.runs.values()]
        told += [t.spec.task for tracks in self.tracks.values() for t in tracks[:1]]
        told.append(self.figures.get("simulation", {}).get("task"))
        return next((name for name in told if name), "robot-rl")


def write_report(folder: Path, out: Path) -> Path:
    """Write the page about `folder` to `out`. Raises SpecError when the folder holds nothing to report."""
    found = find(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, _page(found).encode())
    return out


def find(folder: Path) -> Found:
    """Look at what a folder holds. Raises SpecError when that is nothing."""
    if not folder.is_dir():
        raise SpecError(f"{folder}: no such folder")
    parts = [folder / name for name in ("demo.json", "train/metrics.jsonl", "finetuned/metrics.jsonl")]
    if any(part.exists() for part in parts):
        return _demo(folder)
    if (folder / "metrics.jsonl").exists():
        found = Found(folder, "run")
        _add_run(found, folder)
        _add_tracks(found, "only", folder / "bags")
        return found
    found = Found(folder, "recording")
    _add_tracks(found, "only", folder)
    if not found.tracks:
        raise SpecError(f"{folder}: nothing to report: no demo.json, no metrics.jsonl and no readable bag in it"
                        + "".join(f"\n  {line}" for line in found.refused))
    return found


def _demo(folder: Path) -> Found:
    found, figures = Found(folder, "demo"), folder / "demo.json"
    if figures.exists():
        try:
            found.figures = json.loads(figures.read_text())
        except ValueError as error:
            raise SpecError(f"{figures}: not JSON: {error}") from error
    else:
        found.missing.append("demo.json, the demo's result: it is written when both rounds on the robot are done")
    for name, what in (("train", "training in simulation"), ("finetuned", "fine-tuning on the robot")):
        if not _add_run(found, folder / name):
            found.missing.append(f"{name}/metrics.jsonl, the learning curves of {what}")
    for name in ("before", "after"):
        if not _add_tracks(found, name, folder / name):
            found.missing.append(f"{name}/, the recorded episodes {name} fine-tuning")
        _keep_counted(found, name)
    return found


def _keep_counted(found: Found, name: str) -> None:
    """Leave out bags of an earlier try of the demo, whose episodes its result does not count."""
    counted = {result["start_unix"] for result in found.figures.get(name, {}).get("episode_results", ())}
    tracks = found.tracks.get(name, [])
    kept = [track for track in tracks if track.end.get("start_unix") in counted]
    if kept and len(kept) < len(tracks):
        found.tracks[name] = kept
        found.refused.append(f"{name}/: {len(tracks) - len(kept)} bags that are not among the {len(counted)} episodes "
                             "of demo.json, from an earlier or broken-off try")


def _add_run(found: Found, folder: Path) -> bool:
    lines = read_lines(folder / "metrics.jsonl")
    if not lines:
        return False
    file = folder / "run.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    found.runs["finetune" if any("robot/minutes" in line for line in lines) else "train"] = (config, lines)
    return True


def _add_tracks(found: Found, name: str, folder: Path) -> bool:
    tracks, refused = read_tracks(folder)
    found.refused += refused
    if tracks:
        found.tracks[name] = tracks
    return bool(tracks)


def _page(found: Found) -> str:
    moved = any(len(t.tip) for tracks in found.tracks.values() for t in tracks)
    parts = [("result", "Result", headline.result(found.figures, found.runs, found.tracks)),
             ("learning", "Learning", curves.learning(found.runs, found.figures)),
             ("paths", "Paths and distances" if moved else "Episodes over time", paths.paths(found.tracks)),
             ("timing", "Loop timing and safety", timing.timing(found.tracks, found.figures)),
             ("cameras", "Camera stills", stills.cameras(found.tracks)),
             ("commands", "Open the bags, run it again" if found.tracks else "Run it again", _commands(found))]
    shown = [(name, title, body) for name, title, body in parts if body]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
    body = _head(found) + f"<nav>{links}</nav>" + _gaps(found)
    body += "\n".join(html.section(*part) for part in shown)
    title = f"{found.task}: {found.kind}"
    return html.page(title, body)


def _head(found: Found) -> str:
    title = {"demo": "from simulation to the robot", "run": "a training run", "recording": "recorded episodes"}
    return (f'<p class="eyebrow">robot-rl report on <code>{escape(str(found.folder))}</code></p>'
            f"<h1>{escape(found.task)}, {title[found.kind]}</h1>"
            + html.paragraph(headline.summary(found.figures, found.runs, found.tracks), "lead")
            + html.paragraph(made(), "eyebrow"))


def _gaps(found: Found) -> str:
    """What this page would show and cannot."""
    out = ""
    if found.missing:
        out += "<h3>Not in this folder</h3>" + html.bullets(found.missing)
    if found.refused:
        out += "<h3>Left out</h3>" + html.bullets(found.refused)
    return out


def _commands(found: Found) -> str:
    bag = next((t.bag for tracks in found.tracks.values() for t in tracks), None)
    out = ""
    if bag is not None:
        out += html.paragraph("A bag is a rosbag2 folder with one MCAP file. It holds every message the policy saw, "
                              "every command it sent, and one message for each step on policy/step.")
        out += html.code(*(f"{command} {shlex.quote(str(bag))}" for command in (
            "robot-rl bag info", "robot-rl bag plot", "ros2 bag info", "ros2 bag play")))
        out += html.paragraph(
            "Without ROS 2: open the .mcap file in Foxglove (Open local file) or in PlotJuggler (Data, Load). Worth a "
            "look are tip_pose, joint_states, the camera topics, and policy/step, whose layout names its parts "
            "(observation, reward, asked, action, sent, reasons, lateness, latency).")
    commands = found.figures.get("commands") or _rerun(found)
    out += html.paragraph("Run each step again, into another folder: a run that exists is never written over.")
    return out + html.code(*(c if isinstance(c, str) else shlex.join(map(str, c)) for c in commands)) + _seeds(found)


def _rerun(found: Found) -> list[list[str]]:
    """The commands, from what the files tell."""
    here, figures = str(found.folder), found.figures
    run = here if found.kind == "run" else f"{here}/train"
    out = [_train(config, run) for config, _ in [found.runs.get("train", ({}, []))] if "recipe" in config]
    if found.kind == "run":
        out.append(["robot-rl", "export", run, "-o", f"{run}/policy.onnx"])
    if found.kind == "demo":
        first, second = f"{here}/policy.onnx", f"{here}/finetuned/policy.onnx"
        robot = next((t.spec.robot.robot for ts in found.tracks.values() for t in ts if t.spec.robot), "so101")
        counts = {key: str(figures.get(key, {}).get("episodes") or len(found.tracks.get(key, ())) or 30)
                  for key in ("simulation", "before", "after")}
        deploy = {key: ["robot-rl", "deploy", file, "--robot", robot, "--episodes", counts[key], "--record",
                        f"{here}/{key}"] for key, file in (("before", first), ("after", second))}
        out += [["robot-rl", "export", run, "-o", first],
                ["robot-rl", "eval", first, "--episodes", counts["simulation"]],
                ["robot-rl", "sim-robot", robot, *(["--gap", figures["gap"]] if "gap" in figures else [])],
                deploy["before"],
                ["robot-rl", "finetune", run, "--data", f"{here}/before", "--robot", robot, "--out",
                 f"{here}/finetuned"],
                deploy["after"]]
    return [*out, ["robot-rl", "report", here]]


def _train(config: dict[str, Any], run: str) -> list[str]:
    changed = [part for k, v in config.get("options", {}).items() for part in ("--set", f"{k}={json.dumps(v)}")]
    return ["robot-rl", "train", config["task"], "--recipe", config["recipe"], "--steps", str(config["steps"]),
            "--seed", str(config["seed"]), *changed, "--out", run]


def _seeds(found: Found) -> str:
    seeds = [f"{what} {config['seed']}" for what, (config, _) in found.runs.items() if "seed" in config]
    if "seed" in found.figures:
        seeds.insert(0, f"demo {found.figures['seed']}")
    return html.paragraph(f"Seeds: {', '.join(seeds)}.", "soft") if seeds else ""


def made() -> str:
    """When and where a page is written, in a sentence."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (f"Written {time.strftime('%Y-%m-%d %H:%M %Z')} on this machine: {_processor()}, {cores} cores, "
            f"{memory:.0f} GiB, {platform.system()} {platform.machine()}, Python {platform.python_version()}.")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
                platform.processor() or platform.machine())
