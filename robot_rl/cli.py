"""The command line. Every command imports its own world, so the robot's computer needs neither torch nor MuJoCo."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from robot_rl.spec import SpecError, policies, policy_file

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Train in MuJoCo, export one ONNX file, run it over ROS 2, log, fine-tune. Units are SI.")
bench = typer.Typer(no_args_is_help=True, help="Measure this machine: learner, bus, control loop.")
app.add_typer(bench, name="bench")
suite = typer.Typer(no_args_is_help=True, help="Many runs: tasks, recipes and seeds, and a report on them.")
app.add_typer(suite, name="suite")
policy = typer.Typer(no_args_is_help=True, help="The policy as a managed process: continuous control, started and "
                                                "stopped by its operator.")
app.add_typer(policy, name="policy")

bag = typer.Typer(no_args_is_help=True, help="A recorded bag: what is in it, make it whole, draw it.")
app.add_typer(bag, name="bag")

Json = Annotated[bool, typer.Option("--json", help="Make the last line of stdout one JSON object.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
RobotOption = Annotated[str | None, typer.Option("--robot", help="Robot name, or path of a robot.yaml.")]
BusOption = Annotated[str, typer.Option("--bus", help="auto (ros where rclpy is found, else dds), dds or ros.")]
Namespace = Annotated[str, typer.Option(help="ROS namespace of the robot's topics.")]
Domain = Annotated[int | None, typer.Option(help="DDS domain \\[default: ROS_DOMAIN_ID, else 0].")]
Supervised = Annotated[bool, typer.Option("--supervised", help="Send commands to `robot-rl supervisor`, as "
                                          "`supervised: true` in robot.yaml says too.")]
Acknowledged = Annotated[bool, typer.Option("--acknowledge-no-watchdog", help="Command positions though nobody "
                                            "downstream stops the robot when commands stop.")]
Threads = Annotated[int, typer.Option(help="CPU threads of the learner; 0: one for each core.")]
ActionRepeat = Annotated[int, typer.Option(help="Simulator steps to a decision; a task of ours decides so many times "
                                                "less often.")]
LatencyOption = Annotated[Path | None, typer.Option("--latency", help="Delays that were measured on the robot, a file "
                                                    "of `robot-rl latency`, to draw from.")]
Bag = Annotated[Path, typer.Argument(metavar="BAG", help="A bag folder, or one .mcap file.")]
Options = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="NAME=VALUE",
                                                   help="Recipe option, repeatable; see `inspect --recipe`.")]
Prior = Annotated[Path | None, typer.Option(help="Folder of bags to learn from too, of `demos` or a robot.")]
PriorRatio = Annotated[str, typer.Option(help="Share of each batch from those bags; or FROM:TO:STEPS.")]
OfflineUpdates = Annotated[int, typer.Option(help="Updates on those bags alone, before the first decision.")]


def _absolute(path: Path | None) -> str | None:
    """As a run keeps a path: it may go on from another folder."""
    return None if path is None else str(path.resolve())


@app.command()
def train(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="so101-reach, so101-lift, furuta-swingup, quadruped-walk, "
                                             "dmc:<domain>-<task>, dmc-pixels:<domain>-<task>, gym:<id>.")] = "",
    recipe: Annotated[str, typer.Option(help="Which learner; `inspect --recipe list` names them.")] = "default",
    robot: RobotOption = None,
    steps: Annotated[int, typer.Option(help="Decisions to take in the environment.")] = 100_000,
    out: Annotated[Path | None, typer.Option(help="Run folder \\[default: runs/<task>-<recipe>-<seed>].")] = None,
    seed: Seed = 0,
    set_: Options = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder, exactly; with --steps, to so "
                                                     "many.")] = None,
    learn_after: Annotated[int, typer.Option(help="Decisions before the first update: random ones or, after offline "
                                                  "updates, the policy's, made up for by as many updates.")] = 1_000,
    evaluate_every: Annotated[int, typer.Option(help="Decisions between evaluations; 0: none but the last.")] = 10_000,
    evaluation_episodes: Annotated[int, typer.Option(help="Episodes of each evaluation.")] = 10,
    checkpoint_every: Annotated[int, typer.Option(help="Decisions between checkpoints.")] = 10_000,
    capacity: Annotated[int, typer.Option(help="Decisions that the replay holds.")] = 1_000_000,
    action_repeat: ActionRepeat = 1,
    envs: Annotated[int, typer.Option(help="Environments at once, each in a process of its own; decisions and updates "
                                           "are as many as with one.")] = 1,
    prior: Prior = None,
    prior_ratio: PriorRatio = "0.5",
    offline_updates: OfflineUpdates = 0,
    latency: LatencyOption = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Train a policy in simulation."""
    from robot_rl import session
    from robot_rl.run import Run, RunConfig
    if resume is None:
        if not task:
            raise SpecError("train: give a task, or --resume RUN")
        chosen = session.options(recipe, set_ or [])
        config = RunConfig(
            task=task, robot=robot, recipe=recipe, options=chosen, seed=seed, steps=steps, learn_after=learn_after,
            capacity=capacity, evaluate_every=evaluate_every, evaluation_episodes=evaluation_episodes,
            checkpoint_every=checkpoint_every, action_repeat=action_repeat, envs=envs,
            prior=_absolute(prior), prior_ratio=prior_ratio, offline_updates=offline_updates,
            latency=_absolute(latency))
        run = Run(out or Path("runs") / f"{task.replace(':', '_')}-{recipe}-{seed}")
    else:
        given = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
        if other := given - {"resume", "steps", "device", "threads", "as_json"}:
            raise SpecError(f"--resume {resume} continues the run as it was begun, without a word on "
                            f"{', '.join(sorted(name.strip('_') for name in other))}")
        run = Run(resume)
        config = run.longer(steps) if "steps" in given else run.config
    _finish(session.train(run, config, device, threads, resume is not None), as_json)


@app.command(name="eval")
def evaluate_(
    policy: Annotated[str, typer.Argument(help="An exported policy, the name of one in models/policies, or a run "
                                               "folder.")],
    episodes: Annotated[int, typer.Option(help="Episodes.")] = 50,
    robot: RobotOption = None,
    seed: Seed = 100,
    gap: Annotated[str, typer.Option(help="Reality gap, e.g. payload=0.1,friction=0.05 (see sim-robot).")] = "",
    latency: LatencyOption = None,
    action_repeat: ActionRepeat = 1,
    as_json: Json = False,
) -> None:
    """Evaluate a policy in simulation, deterministically, with 95% intervals."""
    from robot_rl import session
    path = Path(policy)
    if not (path.is_dir() or path.suffix == ".onnx" or policy in policies()):
        raise SpecError(f"eval {policy}: no run folder, no .onnx file and none of the policies that come with the "
                        f"package: {', '.join(policies())}")
    what = path if path.is_dir() else policy_file(policy)
    _finish(session.evaluate(what, episodes, robot, seed, gap, action_repeat, latency), as_json)


@app.command()
def demos(
    task: Annotated[str, typer.Argument(help="so101-lift, quadruped-walk: a task that a script can show.")],
    out: Annotated[Path, typer.Option(help="Folder for one rosbag2 MCAP per episode.")],
    episodes: Annotated[int, typer.Option(help="Episodes to show.")] = 20,
    robot: RobotOption = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Record demonstrations by a script in simulation, as a robot's episodes are recorded."""
    from sim.demos import demonstrate
    _finish(demonstrate(task, robot, episodes, out, seed), as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file.")] = Path("policy.onnx"),
    planner: Annotated[bool, typer.Option("--planner", help="The planner of a recipe that plans, in place of the "
                                                            "network that it goes by.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", "-s", metavar="NAME=VALUE", help=(
        "How the planner searches, where not as in training: samples, iterations and so on; repeatable."))] = None,
    as_json: Json = False,
) -> None:
    """Write network, normaliser and contract into one ONNX file, checked against torch."""
    from robot_rl import session
    _finish(session.export(run, out, planner, set_ or []), as_json)


@app.command()
def inspect(
    what: Annotated[str, typer.Argument(help="A policy or robot, by file or name; a run or bag folder.")] = "",
    recipe: Annotated[str | None, typer.Option(help="Show the options of a recipe with their defaults; list: names "
                                                    "them all.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a policy, a run, a robot, a bag or a recipe holds."""
    from robot_rl.inspect import inspect
    _finish(inspect(what, recipe), as_json)


@bag.command(name="info")
def bag_info(path: Bag, as_json: Json = False) -> None:
    """Show what a bag holds: rates and gaps of its topics, whether it is whole, how its episodes ended, its policy."""
    from robot_rl.bag_info import describe, lines
    figures = describe(path)
    _finish(figures if as_json else lines(figures), as_json)


@bag.command(name="recover")
def bag_recover(
    path: Bag,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="New folder \\[default: BAG-recovered].")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace the damaged files instead.")] = False,
    as_json: Json = False,
) -> None:
    """Make the bag of a recorder that was killed, or one that is damaged, whole for every reader of rosbag2."""
    from robot_rl.bag_info import repair
    if in_place and out is not None:
        raise SpecError(f"--out {out} and --in-place: give one")
    name = path.name if path.is_dir() else path.stem
    _finish(repair(path, None if in_place else out or path.with_name(f"{name}-recovered")), as_json)


@bag.command(name="plot")
def bag_plot(
    path: Bag,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page \\[default: BAG/plot.html].")] = None,
    field: Annotated[list[str] | None, typer.Option(metavar="TOPIC:FIELD", help="Only these, repeatable, e.g. "
                                                    "joint_states:velocity, tip_pose:pose.position or "
                                                    "policy/step:reward.")] = None,
    as_json: Json = False,
) -> None:
    """Draw a bag over time on one self-contained page: joints and commands, safety, steps; or chosen fields."""
    from robot_rl.page.signals import write_plot
    _finish(write_plot(path, out or (path if path.is_dir() else path.parent) / "plot.html", field or []), as_json)


@app.command(name="sim-robot")
def sim_robot(
    robot: Annotated[str, typer.Argument(help="Robot name, or path of a robot.yaml.")],
    gap: Annotated[str, typer.Option(help="Reality gap: NAME=VALUE,... of payload (kg), friction (N·m), "
                                     "motor_strength (share), encoder_bias (rad), command_delay (s), "
                                     "sensor_delay (s), camera_delay (s), noise (rad), pose_noise (m), imu_noise "
                                     "(rad/s), odometry_noise (m/s), dropout (share).")] = "",
    latency: LatencyOption = None,
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None, seed: Seed = 0,
    cameras: Annotated[bool, typer.Option(help="Render and publish the cameras.")] = True,
    seconds: Annotated[float | None, typer.Option(help="Stop after so many seconds \\[default: never].")] = None,
) -> None:
    """Be the robot: MuJoCo in real time behind the robot's own topics."""
    from hardware.deploy import BusOptions
    from hardware.loop import interrupted
    from robot_rl.spec import load_robot, mjcf_file
    from sim.process import RobotProcess
    from sim.randomize import NO_LAGS, Gap, Lags
    from sim.robot import SimRobot
    spec = load_robot(robot)
    lags = Lags.live(latency, spec) if latency else NO_LAGS
    sim = SimRobot(spec, str(mjcf_file(robot)), gap=replace(Gap.parse(gap), seed=seed), lags=lags)
    with BusOptions(bus, namespace, domain).connect("robot") as wire:
        process = RobotProcess(spec, sim, wire, cameras, seed)
        print(f"sim-robot: {spec.robot} ready", flush=True)
        process.run(interrupted(), seconds)


@app.command()
def fault(
    robot: Annotated[str, typer.Argument(help="Robot name, or path of a robot.yaml.")],
    name: Annotated[str, typer.Argument(help="One of its sensors or cameras.")],
    what: Annotated[str, typer.Argument(help="silent, frozen, jumping, nonfinite, reordered, missing, clock, delayed, "
                                             "duplicated, lossy or mistyped; ok: well again.")],
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None, as_json: Json = False,
) -> None:
    """Inject a fault into a sensor or camera of a running sim-robot, or make it well; no real robot takes it."""
    from hardware.deploy import BusOptions
    from robot_rl.spec import load_robot
    from sim.faults import Injector, check
    spec = load_robot(robot)
    check((*spec.sensors, *spec.cameras), spec, name, what)
    with BusOptions(bus, namespace, domain).connect("fault") as wire:
        told = Injector(wire).inject(name, what)["faults"]
    _finish({key: value["fault"] for key, value in told.items()} or {name: what}, as_json)


@app.command()
def camera(
    robot: Annotated[str, typer.Argument(help="Robot name, or path of a robot.yaml.")],
    source: Annotated[list[str], typer.Option(metavar="NAME=SOURCE", help="Camera of the robot file and what it is: 0, "
                                              "/dev/video2, file.mp4, rtsp://… or http://…; repeatable.")],
    calibration: Annotated[list[str] | None, typer.Option(metavar="NAME=FILE", help="A camera's calibration, as ROS's "
                                                          "camera_calibration writes it; repeatable.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Begin a file anew at its end.")] = False,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEG images.")] = 90,
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None,
    seconds: Annotated[float | None, typer.Option(help="Stop after so many seconds \\[default: never].")] = None,
    as_json: Json = False,
) -> None:
    """Publish real cameras, video files or network streams as a robot's cameras, raw and as JPEG."""
    import time

    from hardware.camera_calibration import load_calibration
    from hardware.camera_node import run
    from hardware.deploy import BusOptions
    from hardware.loop import interrupted
    from robot_rl.spec import load_robot
    cameras = {c.name: c for c in load_robot(robot).cameras}
    sources = _by_name("--source", source, cameras, robot)
    files = _by_name("--calibration", calibration or [], cameras, robot)
    calibrations = {name: load_calibration(Path(file), cameras[name]) for name, file in files.items()}
    stopped, end = interrupted(), None if seconds is None else time.monotonic() + seconds
    with BusOptions(bus, namespace, domain).connect("camera") as wire:
        _finish({"images": run(list(cameras.values()), sources, wire,
                               lambda: stopped() or (end is not None and time.monotonic() > end),
                               calibrations=calibrations, loop=loop, quality=quality)}, as_json)


@app.command()
def deploy(
    policy: Annotated[str, typer.Argument(help="The ONNX file, or the name of one in models/policies.")],
    robot: Annotated[str, typer.Option(help="Robot name, or path of a robot.yaml.")],
    episodes: Annotated[int, typer.Option(help="Episodes to run.")] = 1,
    record: Annotated[Path | None, typer.Option(help="Folder for one rosbag2 MCAP per episode.")] = None,
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None, seed: Seed = 0,
    explore: Annotated[bool, typer.Option(help="Act with the learner's exploration noise.")] = False,
    serve: Annotated[bool, typer.Option(help="Run an episode at each call of the policy/run service.")] = False,
    cameras: Annotated[bool, typer.Option(help="Record the cameras too.")] = True,
    compression: Annotated[str, typer.Option(help="Of what is recorded: none, zstd or lz4, by the recorder's process.")
                           ] = "none",
    supervised: Supervised = False, acknowledge: Acknowledged = False,
    as_json: Json = False,
) -> None:
    """Run a policy on a robot at control rate, behind the safety filter, recording every step."""
    from hardware.deploy import BusOptions
    from hardware.deploy import deploy as run
    from hardware.loop import interrupted
    where = BusOptions(bus, namespace, domain)
    _finish(run(policy_file(policy), robot, episodes=episodes, record=record, where=where, seed=seed, explore=explore,
                serve=serve, cameras=cameras, supervised=supervised, compression=compression,
                acknowledged=acknowledge, stop=interrupted()), as_json)


@app.command()
def supervisor(
    robot: Annotated[str, typer.Argument(help="Robot name, or path of a robot.yaml.")],
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None,
    acknowledge: Acknowledged = False,
) -> None:
    """Stand between policies and the robot: forward commands while all is well, stop the robot when it is not.

    Services (std_srvs/Trigger) supervisor/arm, disarm, stop and reset. Policies run with --supervised.
    """
    from hardware.deploy import BusOptions
    from hardware.loop import interrupted
    from hardware.supervisor import supervise
    supervise(robot, BusOptions(bus, namespace, domain), acknowledge, interrupted())


@policy.command(name="run")
def policy_run(
    policy: Annotated[str, typer.Argument(help="The ONNX file, or the name of one in models/policies.")] = "",
    robot: Annotated[str, typer.Option(help="Robot name, or path of a robot.yaml.")] = "",
    fade: Annotated[float, typer.Option(help="Time over which the policy is faded in, s.")] = 1.0,
    fresh_timeout: Annotated[float, typer.Option(help="How long a start waits for fresh inputs and a goal, s.")] = 5.0,
    explore: Annotated[bool, typer.Option(help="Act with the learner's exploration noise.")] = False,
    autostart: Annotated[bool, typer.Option(help="Configure and activate at once.")] = False,
    supervised: Supervised = False, acknowledge: Acknowledged = False,
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None, seed: Seed = 0,
) -> None:
    """Be the policy process: control without end while active; on ros a managed node that takes --ros-args too."""
    from hardware.deploy import BusOptions
    from hardware.loop import interrupted
    from hardware.managed import Settings, serve
    serve(Settings(policy, robot, fade, fresh_timeout, explore, seed, autostart, supervised, acknowledge),
          BusOptions(bus, namespace, domain), interrupted())


@policy.command(name="start")
def policy_start(bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None,
                 as_json: Json = False) -> None:
    """Load the policy where that is still to be done, and begin to act: the robot moves."""
    _ask("start", bus, namespace, domain, as_json)


@policy.command(name="stop")
def policy_stop(bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None,
                as_json: Json = False) -> None:
    """Stop the robot by its stop behaviour; then there are no more commands."""
    _ask("stop", bus, namespace, domain, as_json)


@policy.command(name="reload")
def policy_reload(bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None,
                  as_json: Json = False) -> None:
    """Read the policy file again, without stopping."""
    _ask("reload", bus, namespace, domain, as_json)


@policy.command(name="status")
def policy_status(bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None,
                  as_json: Json = False) -> None:
    """State, policy and last error."""
    _ask("status", bus, namespace, domain, as_json)


@app.command()
def finetune(
    run: Annotated[Path, typer.Argument(help="The run folder to start from.")],
    robot: Annotated[str, typer.Option(help="Robot name, or path of a robot.yaml.")],
    data: Annotated[Path | None, typer.Option(help="Folder of bags for the prior half of each batch.")] = None,
    episodes: Annotated[int, typer.Option(help="Episodes to run on the robot; 0 learns from the bags only.")] = 40,
    minutes: Annotated[float, typer.Option(help="At most so many minutes of robot time, resets included.")] = 60.0,
    out: Annotated[Path | None, typer.Option(help="Folder of the fine-tuned run; continues when it exists "
                                             "\\[default: RUN-finetuned].")] = None,
    repeats: Annotated[int, typer.Option(help="Times the recipe's update budget for each robot step.")] = 2,
    warm_updates: Annotated[int, typer.Option(help="Updates on the bags, if there are any, before the robot "
                                               "moves.")] = 1_000,
    learn_after: Annotated[int, typer.Option(help="Robot steps before the first other update; those they are worth "
                                              "follow at once.")] = 0,
    ratio: Annotated[float, typer.Option(help="Share of each batch that comes from the bags.")] = 0.5,
    hindsight: Annotated[int, typer.Option(help="Other goals, ones it came by, by which each episode is learned from "
                                                "too; for tasks with a goal.")] = 4,
    set_: Options = None, acknowledge: Acknowledged = False,
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None, seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Fine-tune a run on the robot from its logs: run, learn, swap the policy in, repeat."""
    from hardware.deploy import BusOptions
    from robot_rl import session
    _finish(session.finetune(run, robot, data, episodes=episodes, minutes=minutes, repeats=repeats, ratio=ratio,
                             hindsight=hindsight, warm_updates=warm_updates, learn_after=learn_after,
                             out=out or run.with_name(run.name + "-finetuned"),
                             changes=set_ or [], where=BusOptions(bus, namespace, domain), seed=seed,
                             threads=threads, acknowledged=acknowledge), as_json)


@app.command(name="latency")
def latency_(
    folder: Annotated[Path, typer.Argument(help="A folder of bags, as `deploy --record` writes them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file of distributions, for --latency.")],
    as_json: Json = False,
) -> None:
    """Measure a robot's latency from its bags: from each sensor's stamp to the command, ms; and keep it."""
    from robot_rl.latency import write_latency
    _finish(write_latency(folder, out), as_json)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A demo, run or bag folder.")],
    out: Annotated[Path | None, typer.Option(help="The page \\[default: FOLDER/report.html].")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page: curves, paths, timing, pictures."""
    from robot_rl.report import write_report
    _finish({"report": str(write_report(folder, out or folder / "report.html"))}, as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything the demo makes.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option(help="A few minutes instead of the whole: to see that it runs.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The main job with one command: train, export, run on a robot with a reality gap, fine-tune, run again."""
    from robot_rl.demo import run_demo
    _finish(run_demo(out, seed, quick), as_json)


@app.command()
def driver(
    robot: Annotated[str, typer.Argument(help="Robot name, or path of a robot.yaml.")],
    port: Annotated[str, typer.Option(help="Serial port of its servos, e.g. /dev/ttyACM0.")],
    calibration: Annotated[Path, typer.Option(help="The arm's calibration, made by `calibrate`.")],
    command_timeout: Annotated[float, typer.Option(help="Seconds without a command after which the arm holds.")] = 0.5,
    confirm: Annotated[bool, typer.Option(help="Where objects are to be placed, a reset waits for Enter or for the "
                                               "service reset/confirm.")] = True,
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None,
) -> None:
    """Drive an arm on Feetech serial servos: joint states out, commands in; services arm, reset, park."""
    from hardware.deploy import BusOptions
    from hardware.loop import interrupted
    from hardware.servo_driver import Options, ServoDriver
    from robot_rl.spec import load_robot, mjcf_file
    spec = load_robot(robot)
    with BusOptions(bus, namespace, domain).connect("driver") as wire:
        process = ServoDriver(spec, mjcf_file(robot), calibration, port, wire, Options(command_timeout, confirm))
        print(f"driver: {spec.robot} ready on {port}", flush=True)
        process.run(interrupted())


@app.command()
def calibrate(
    robot: Annotated[str, typer.Argument(help="Robot name, or path of a robot.yaml.")],
    port: Annotated[str, typer.Option(help="Serial port of its servos, e.g. /dev/ttyACM0.")],
    out: Annotated[Path | None, typer.Option(help="The calibration file.")] = None,
    arm: Annotated[str, typer.Option(help="Name of the arm \\[default: serial number of its adapter].")] = "",
    ids: Annotated[str, typer.Option(help="Servo ids in the order of the joints \\[default: 1,2,...].")] = "",
    torque_limit: Annotated[list[str] | None, typer.Option(metavar="JOINT=SHARE", help="Share of the motor's torque "
                                                           "that a joint may use, repeatable.")] = None,
    gains: Annotated[str, typer.Option(help="P,I,D of the servos' own loop \\[default: as they are].")] = "",
    new_id: Annotated[int | None, typer.Option(help="Only give the one servo that is connected this id.")] = None,
) -> None:
    """Find out, from the arm itself, what its servos' ticks mean; nothing is driven, the operator moves the arm."""
    from hardware.calibrate import calibrate as run
    from hardware.calibrate import give_id
    from robot_rl.spec import load_robot
    spec = load_robot(robot)
    if new_id is not None:
        print(f"calibrate: servo {give_id(port, new_id)} is servo {new_id} now")
        return
    if out is None:
        raise SpecError("calibrate: give --out FILE")
    loop = [int(word) for word in gains.split(",")] if gains else []
    if len(loop) not in (0, 3):
        raise SpecError(f"--gains {gains}: give P,I,D")
    shares = dict(text.partition("=")[::2] for text in torque_limit or [])
    run(spec, port, out, arm=arm, ids=[int(word) for word in ids.split(",")] if ids else [],
        torque={name: float(share) for name, share in shares.items()},
        gains=(loop[0], loop[1], loop[2]) if loop else None)
    print(f"calibrate: {out} written")


@app.command()
def jog(
    robot: Annotated[str, typer.Argument(help="Robot name, or path of a robot.yaml.")],
    joint: Annotated[str, typer.Argument(help="Which joint.")],
    degrees: Annotated[float | None, typer.Argument(help="By how much, degrees.")] = None,
    to: Annotated[float | None, typer.Option(help="Where to instead, rad (m for a slide).")] = None,
    speed: Annotated[float, typer.Option(help="Fastest joint, rad/s (m/s).")] = 0.3,
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None, as_json: Json = False,
) -> None:
    """Move one joint, slowly, on a checked path, and say where the joints then are (rad)."""
    from math import radians

    from hardware.deploy import BusOptions
    from hardware.jog import Jog
    from robot_rl.spec import load_robot, mjcf_file
    with BusOptions(bus, namespace, domain).connect("jog") as wire:
        hand = Jog(load_robot(robot), mjcf_file(robot), wire, speed)
        goal = hand.target(joint, delta=None if degrees is None else radians(degrees), to=to)
        _finish(hand.go(goal), as_json)


@app.command()
def home(
    robot: Annotated[str, typer.Argument(help="Robot name, or path of a robot.yaml.")],
    speed: Annotated[float, typer.Option(help="Fastest joint, rad/s (m/s).")] = 0.3,
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None, as_json: Json = False,
) -> None:
    """Move to the default pose, slowly, on a checked path, and say where the joints then are (rad)."""
    from hardware.deploy import BusOptions
    from hardware.jog import Jog
    from robot_rl.spec import load_robot, mjcf_file
    with BusOptions(bus, namespace, domain).connect("home") as wire:
        hand = Jog(load_robot(robot), mjcf_file(robot), wire, speed)
        _finish(hand.go(hand.home()), as_json)


@app.command()
def call(
    service: Annotated[str, typer.Argument(help="A std_srvs/Trigger service: arm, reset, reset/confirm, park, ...")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 30.0,
    bus: BusOption = "auto", namespace: Namespace = "", domain: Domain = None,
) -> None:
    """Call a service of the robot or of the policy, and print its answer."""
    from hardware.deploy import BusOptions
    with BusOptions(bus, namespace, domain).connect("call") as wire:
        done, said = wire.call(service, timeout)
    if not done:
        raise SpecError(f"{service} refused: {said}")
    print(said)


@app.command(name="sim-servos")
def sim_servos(
    robot: Annotated[str, typer.Argument(help="Robot name, or path of a robot.yaml.")],
    link: Annotated[Path | None, typer.Option(help="A name for the port, which stays when the cable is pulled and "
                                              "plugged in again.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Be the arm that this file is of; where there is none, "
                                                     "write it.")] = None,
    seed: Annotated[int, typer.Option(help="How the servos of an arm without calibration are mounted.")] = 0,
) -> None:
    """Be an arm on serial servos: their bytes on a pseudo-terminal, MuJoCo behind it. Lines on stdin spoil it."""
    from hardware.calibration import load_calibration, save_calibration
    from hardware.loop import interrupted
    from robot_rl.spec import load_robot, mjcf_file
    from sim import servo_bus
    from sim.robot import SimRobot
    spec = load_robot(robot)
    arm = servo_bus.ServoArm(spec, SimRobot(spec, str(mjcf_file(robot))), seed)
    if calibration is not None:
        if not calibration.exists():
            save_calibration(servo_bus.calibration_of(arm, f"simulated {seed}"), calibration)
        servo_bus.fit(arm, load_calibration(calibration, spec))
    process = servo_bus.ServoProcess(arm, link)
    print(f"sim-servos: {spec.robot} on {process.open()}; on stdin: {servo_bus.HELP}", flush=True)
    process.run(interrupted())


@suite.command(name="run")
def suite_run(
    out: Annotated[Path, typer.Option(help="Folder of everything; a run goes to OUT/RECIPE/TASK/seedK.")],
    task: Annotated[list[str], typer.Option(help="Task, repeatable, or several with commas.")],
    recipe: Annotated[list[str] | None, typer.Option(help="Recipe, likewise; default if none is given.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1",
    steps: Annotated[int, typer.Option(help="Decisions of each run.")] = 100_000,
    learn_after: Annotated[int, typer.Option(help="Random decisions before the first update.")] = 1_000,
    evaluate_every: Annotated[int, typer.Option(help="Decisions between evaluations; 0: none but the last.")] = 10_000,
    evaluation_episodes: Annotated[int, typer.Option(help="Episodes of each evaluation.")] = 10,
    checkpoint_every: Annotated[int, typer.Option(help="Decisions between checkpoints.")] = 10_000,
    action_repeat: ActionRepeat = 1,
    prior: Prior = None,
    prior_ratio: PriorRatio = "0.5",
    offline_updates: OfflineUpdates = 0,
    set_: Options = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time; 0: one for each core.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads of each run.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    as_json: Json = False,
) -> None:
    """Train every task with every recipe under every seed; the same command continues and does what is missing."""
    from hardware.loop import interrupted
    from robot_rl import session
    from robot_rl.run import RunConfig
    from robot_rl.suite import cores, numbers, run_suite, words
    from robot_rl.suite import jobs as plan
    recipes = words(recipe or ["default"])
    chosen = {name: session.options(name, set_ or []) for name in recipes}
    wanted = plan(out, words(task), recipes, numbers("--seeds", seeds), lambda task, recipe, seed: RunConfig(
        task=task, recipe=recipe, options=chosen[recipe], seed=seed, steps=steps, learn_after=learn_after,
        evaluate_every=evaluate_every, evaluation_episodes=evaluation_episodes, checkpoint_every=checkpoint_every,
        action_repeat=action_repeat, prior=_absolute(prior), prior_ratio=prior_ratio,
        offline_updates=offline_updates))
    figures = run_suite(out, wanted, parallel=jobs or cores(), device=device, threads=threads, stop=interrupted(),
                        report=lambda text: print(text, file=sys.stderr))
    _finish(figures, as_json)
    if figures["failed"] or figures["interrupted"]:
        raise typer.Exit(1 if figures["failed"] else 130)


@suite.command(name="report")
def suite_report(
    out: Annotated[Path, typer.Argument(help="The folder of a suite, or a table like its returns.csv: then only "
                                        "learning curves are drawn.")],
    curves: Annotated[Path | None, typer.Option(help="CSV file of public learners \\[default: "
                                                "docs/results/public_curves.csv in a checkout].")] = None,
    baseline: Annotated[str | None, typer.Option(help="Recipe that the others are compared with "
                                                 "\\[default: the first].")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Show only these, with commas or repeated, as the tables "
                                                     "name them \\[default: all].")] = None,
    page: Annotated[Path | None, typer.Option(help="The page \\[default: OUT/report.html].")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page and PNG figures: curves beside public learners, scores with intervals."""
    from robot_rl.suite import words
    from robot_rl.suite_report import write_suite_report
    _finish(write_suite_report(out, page or out / "report.html", curves, baseline, words(recipe or ())), as_json)


@bench.command(name="learner")
def bench_learner(
    agent: Annotated[str, typer.Option(help="Which recipe, such as sac or rlpd.")] = "sac",
    seconds: Annotated[float, typer.Option(help="Seconds of each turn.")] = 4.0,
    repetitions: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
    threads: Annotated[int, typer.Option(help="Cores and threads of everybody; 0: as each library chooses.")] = 0,
    set_: Options = None,
    peer_python: Annotated[str, typer.Option(help="Python that has the extra `bench` installed.")] = sys.executable,
    peer: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="Checkout of public code, repeatable: "
                                                   "rlpd, mrq, or xqc (for default).")] = None,
    out: Annotated[Path | None, typer.Option(help="Page with the figures and a picture of every turn.")] = None,
    as_json: Json = False,
) -> None:
    """Gradient updates per second against Stable-Baselines3 and sbx (install the extra `bench`), and public code."""
    from robot_rl import session
    from robot_rl.learn.bench import bench as run
    from robot_rl.learn.bench import checkouts
    from robot_rl.page.rates import write_page
    found = run(agent, repetitions, seconds, threads or None, peer_python=peer_python,
                report=lambda line: print(line, file=sys.stderr), checkouts=checkouts(peer or []),
                **session.options(agent, set_ or []))
    if out:
        write_page(out, found)
        found["page"] = str(out)
    _finish(found, as_json)


@bench.command(name="world")
def bench_world(
    agent: Annotated[str, typer.Option(help="Which recipe with a world model.")] = "tdmpc2",
    seconds: Annotated[float, typer.Option(help="Seconds of each turn.")] = 4.0,
    repetitions: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
    threads: Annotated[int, typer.Option(help="Cores and threads of everybody; 0: as each library chooses.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    set_: Options = None,
    peer: Annotated[Path | None, typer.Option(help="The folder `tdmpc2` of a checkout of the public TD-MPC2.")] = None,
    peer_python: Annotated[str, typer.Option(help="Python that has what it needs installed.")] = sys.executable,
    as_json: Json = False,
) -> None:
    """Updates and plans per second of a world-model learner; with --peer against the public TD-MPC2, same sizes."""
    from robot_rl import session
    from robot_rl.learn.bench_world import bench as run
    _finish(run(agent, repetitions, seconds, threads or None, device, session.options(agent, set_ or []), peer,
                peer_python, lambda line: print(line, file=sys.stderr)), as_json)


@bench.command(name="replay")
def bench_replay(
    seconds: Annotated[float, typer.Option(help="Seconds of each turn.")] = 2.0,
    repetitions: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
    peer_python: Annotated[str, typer.Option(help="Python that has the extra `bench` installed.")] = sys.executable,
    as_json: Json = False,
) -> None:
    """Batches per second and bytes per transition against Stable-Baselines3's replay: states, stacked frames."""
    from robot_rl.learn.bench_replay import bench as run
    _finish(run(repetitions, seconds, peer_python, lambda line: print(line, file=sys.stderr)), as_json)


@bench.command(name="collect")
def bench_collect(
    task: Annotated[str, typer.Argument(help="gym:<id>, dmc:<domain>-<task> or our own.")] = "gym:HalfCheetah-v5",
    recipe: Annotated[str, typer.Option(help="Whose policy acts in one of the figures.")] = "default",
    seconds: Annotated[float, typer.Option(help="Seconds of each turn.")] = 1.0,
    repetitions: Annotated[int, typer.Option(help="Turns of each.")] = 5,
    processes: Annotated[int, typer.Option(help="Environments at once in another; 0: one for each core.")] = 0,
    as_json: Json = False,
) -> None:
    """Environment steps per second of collecting, with random actions and with a policy, against bare `env.step`."""
    from robot_rl import session
    from robot_rl.learn.bench import machine
    from sim.collect_bench import bench as run
    agent = session.acting(task, recipe)
    _finish(run(task, agent, seconds, repetitions, processes, lambda line: print(line, file=sys.stderr))
            | {"machine": machine()}, as_json)


@bench.command(name="bus")
def bench_bus(bus: BusOption = "auto",
              seconds: Annotated[float, typer.Option(help="Seconds of each measurement.")] = 5.0,
              as_json: Json = False) -> None:
    """Round trips of a JointState and of a raw VGA image between two processes, ms."""
    from hardware.bus.bench import bench as run
    _finish(run(bus, seconds=seconds), as_json)  # type: ignore[arg-type]  # connect checks it


@bench.command(name="recorder")
def bench_recorder(
    seconds: Annotated[float, typer.Option(help="Seconds of each turn.")] = 60.0,
    cameras: Annotated[int, typer.Option(help="Raw cameras of 640x480 pixels at 30 Hz.")] = 2,
    rate: Annotated[float, typer.Option(help="Joint states, Hz.")] = 1_000.0,
    compression: Annotated[str, typer.Option(help="none, zstd and lz4, with commas between them.")] = "none,zstd,lz4",
    flush: Annotated[float, typer.Option(help="The recorder's flush interval, s.")] = 0.5,
    out: Annotated[Path | None, typer.Option(help="Keep the bags in this folder.")] = None,
    bus: BusOption = "auto",
    as_json: Json = False,
) -> None:
    """What the recorder loses and what it costs: cameras and fast joint states, with and without compression."""
    from hardware.recorder_bench import bench as run
    _finish(run(seconds, cameras, rate, compression.split(","), bus, flush, out,
                lambda line: print(line, file=sys.stderr)), as_json)


@bench.command(name="loop")
def bench_loop(
    rate: Annotated[str, typer.Option(help="Control rates, Hz, with commas between them.")] = "100",
    seconds: Annotated[float, typer.Option(help="How long each turn is, s.")] = 30.0,
    policy: Annotated[str, typer.Option(help="Policy file or name in models/policies; one that sees gets a camera "
                                        "process for each of its cameras.")] = "furuta-swingup",
    cameras: Annotated[int, typer.Option(help="Instead, an untrained policy that sees through 1 or 2 cameras of "
                                         "640x480 pixels at 30 Hz.")] = 0,
    loops: Annotated[str, typer.Option(help="ours, sleep (sleeps what is left of a period) and timer (a plain rclpy "
                                            "node; left out where rclpy is absent).")] = "ours,sleep,timer",
    load: Annotated[str, typer.Option(help="idle, and busy: every core has a process that never rests.")] = "idle",
    repetitions: Annotated[int, typer.Option(help="Turns of each loop; they alternate.")] = 1,
    cpu: Annotated[int | None, typer.Option(help="Processor that our loop stays on.")] = None,
    cores: Annotated[int, typer.Option(help="Keep everything to so many cores; 0: all.")] = 0,
    rehearse: Annotated[bool, typer.Option(help="Our loop runs a decision for nothing before each deadline, so that "
                                                "the real one finds the processor's caches warm.")] = True,
    out: Annotated[Path | None, typer.Option(help="Page with the figures and their histograms.")] = None,
    bus: BusOption = "auto",
    as_json: Json = False,
) -> None:
    """Control loops against a simulated robot in another process: deadlines, jitter, latency, CPU share."""
    from tempfile import TemporaryDirectory

    from hardware.loop_bench import bench as run
    with TemporaryDirectory() as folder:
        if cameras:
            from robot_rl import session
            policy = str(session.camera_policy(Path(folder) / "camera.onnx", cameras))
        _finish(run([float(r) for r in rate.split(",")], seconds, policy, loops.split(","), load.split(","),
                    repetitions, bus, cpu=cpu, cores=cores, rehearse=rehearse, out=out,
                    report=lambda line: print(line, file=sys.stderr)), as_json)


def main() -> None:
    """Entry point: errors at the door are one line and status 2."""
    from hardware.bus import own_arguments
    try:
        app(own_arguments())
    except (SpecError, ValueError, FloatingPointError, TimeoutError, FileNotFoundError, ConnectionError,
            ModuleNotFoundError) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name:
            hint = f"; install it with: {_install(error.name)}"
        print(f"robot-rl: {error}{hint}", file=sys.stderr)
        raise SystemExit(2) from error


def _by_name(option: str, values: list[str], known: Iterable[str], robot: str) -> dict[str, str]:
    """NAME=VALUE of an option by name, each name known and given once."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not value or name not in known or name in found:
            raise SpecError(f"{option} {text}: give NAME=VALUE once for each, NAME one of {robot}'s cameras: "
                            f"{', '.join(known) or 'none'}")
        found[name] = value
    return found


def _ask(what: str, bus: str, namespace: str, domain: int | None, as_json: bool) -> None:
    """Call a service of the policy process; what it refuses is an error at the door."""
    from hardware.deploy import BusOptions
    with BusOptions(bus, namespace, domain).connect("operator") as wire:
        done, said = wire.call(f"policy/{what}", 60.0)
        if not done:
            raise SpecError(f"{wire.resolve('policy')}: {said}")
    _finish(json.loads(said) if what == "status" else {what: said}, as_json)


def _install(module: str) -> str:
    """The pip command that brings a missing module."""
    top = module.split(".")[0]
    if top == "dm_control" and sys.version_info >= (3, 13):
        return "pip install --no-deps dm-control"  # its maze part has no build for this Python; the suite needs none
    extra = {"torch": "train", "tensorboard": "train", "onnx": "train", "mujoco": "sim", "dm_control": "sim",
            "gymnasium": "sim", "cv2": "camera", "stable_baselines3": "bench", "sbx": "bench"}.get(top, "sim,train")
    return f"pip install 'robot-rl[{extra}]'"


def _finish(figures: dict[str, Any], as_json: bool) -> None:
    """Print the figures for a person, or as one JSON line."""
    if as_json:
        print(json.dumps(figures, default=str))
        return
    width = max(map(len, figures), default=0)
    for key, value in figures.items():
        if not isinstance(value, (list, dict)) or len(value) <= 4 or _is_table(value):
            print(f"{key:<{width}}  {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(v) for v in value) + "]"
    if _is_table(value):
        return ", ".join(f"{name} {_shown(number)}" for name, number in value.items())
    return str(value)


def _is_table(value: Any) -> bool:
    """Whether it is numbers by name."""
    return isinstance(value, dict) and all(isinstance(number, (int, float)) for number in value.values())


if __name__ == "__main__":
    main()
