"""A policy on a robot whose driver is already running.

    ros2 launch robot_rl robot.launch.py robot:=so101 policy_path:=policy.onnx record:=bags
    ros2 lifecycle set /policy configure; ros2 lifecycle set /policy activate

With `supervised:=true` the supervisor is started too, and waits to be armed: `ros2 service call /supervisor/arm
std_srvs/srv/Trigger`. With `camera_sources` so are real cameras (camera.launch.py). With rclpy the policy is a managed
node; on the bus `dds` it is the same process, started by `robot-rl policy start`. Either starts by itself with
autostart:=true. With episodes:=N it runs so many episodes, each after the robot's reset, and ends. Without an installed
package, give the path: `ros2 launch ./launch/robot.launch.py`. The processes run with the python3 that is first on
PATH. DDS domain: ROS_DOMAIN_ID.
"""

from pathlib import Path

import yaml
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "config"
PROGRAM = ["python3", "-m", "robot_rl.cli"]
FLAGS = ("autostart", "supervised", "acknowledge_no_watchdog")


def policy(context: LaunchContext) -> list[Action]:
    """The policy process and the supervisor; what is not given comes from the robot's file.

    RuntimeError names what is missing.
    """
    given = {name: value for name, value in context.launch_configurations.items() if value}
    robot = given["robot"]
    file = Path(given.get("params_file", CONFIG / f"{robot}.yaml"))
    if "params_file" in given and not file.is_file():
        raise RuntimeError(f"params_file: no file {file}")
    options = yaml.safe_load(file.read_text())["/**"]["ros__parameters"] if file.is_file() else {}
    options |= {key: given[key] for key in ("policy_path",) if key in given}
    if "policy_path" not in options:
        raise RuntimeError(f"robot '{robot}': give policy_path:=FILE, or write it in {file}")
    # not respawned: after a fault a person decides whether the robot moves again
    shown = {"name": "policy", "output": "both", "on_exit": Shutdown(reason="the policy has ended")}
    given |= {flag: "true" for flag in FLAGS if options.get(flag)}
    actions = _supervisor(given) if given["supervised"] == "true" else []
    if given["episodes"] != "0":
        return [*actions, ExecuteProcess(cmd=_episodes(str(options["policy_path"]), given) + _ros(given), **shown)]
    actions += _recorder(str(options["policy_path"]), given) if "record" in given else []
    options |= {flag: given[flag] == "true" for flag in FLAGS} | {"seed": given["seed"]}
    words = {"fade_s": "fade", "fresh_timeout_s": "fresh-timeout", "seed": "seed"}
    command = [*PROGRAM, "policy", "run", str(options["policy_path"]), f"--robot={robot}", f"--bus={given['bus']}",
               *(f"--{word}={options[key]}" for key, word in words.items() if key in options),
               *(f"--{flag.replace('_', '-')}" for flag in (*FLAGS, "explore") if options.get(flag))]
    command += [f"--namespace={given['namespace']}"] if "namespace" in given else []
    return [*actions, ExecuteProcess(cmd=command + _ros(given), **shown)]


def _ros(given: dict[str, str]) -> list[str]:
    """The ROS arguments."""
    words = given.get("ros_args", "").split() + ["-p", "use_sim_time:=true"] * (given["use_sim_time"] == "true")
    return ["--ros-args", *words] if words else []


def _remaps(given: dict[str, str]) -> list[str]:
    """The ROS arguments of what stands beside the policy and has to find the same topics."""
    return ["--ros-args", *given["ros_args"].split()] if given.get("ros_args") else []


def _episodes(policy_path: str, given: dict[str, str]) -> list[str]:
    """The command that runs episodes and ends."""
    command = [*PROGRAM, "deploy", policy_path, f"--robot={given['robot']}", f"--episodes={given['episodes']}",
               f"--bus={given['bus']}", f"--seed={given['seed']}",
               "--cameras" if given["cameras"] == "true" else "--no-cameras"]
    command += [f"--{flag.replace('_', '-')}" for flag in FLAGS[1:] if given[flag] == "true"]
    return command + [f"--{name}={given[name]}" for name in ("namespace", "record") if name in given]


def _supervisor(given: dict[str, str]) -> list[Action]:
    """The supervisor between policy and robot; somebody has to arm it."""
    command = [*PROGRAM, "supervisor", given["robot"], f"--bus={given['bus']}"]
    command += [f"--namespace={given['namespace']}"] if "namespace" in given else []
    command += ["--acknowledge-no-watchdog"] * (given["acknowledge_no_watchdog"] == "true")
    return [ExecuteProcess(cmd=command + _remaps(given), name="supervisor", output="both",
                           on_exit=Shutdown(reason="the supervisor has ended"))]


def _recorder(policy_path: str, given: dict[str, str]) -> list[Action]:
    """A recorder beside the managed policy: one bag each time that it is active."""
    command = ["python3", "-m", "hardware.recorder", f"--robot={given['robot']}", f"--out={given['record']}",
               f"--policy={policy_path}", f"--bus={given['bus']}", *["--no-cameras"] * (given["cameras"] == "false"),
               f"--supervised={given['supervised']}"]
    command += [f"--namespace={given['namespace']}"] if "namespace" in given else []
    return [ExecuteProcess(cmd=command + _remaps(given), name="recorder", output="both")]


def generate_launch_description() -> LaunchDescription:
    """Arguments and the policy process."""
    return LaunchDescription([
        DeclareLaunchArgument("robot", default_value="so101", description="Robot name, or path of a robot.yaml."),
        DeclareLaunchArgument("policy_path", default_value="", description="ONNX file, or the name of a policy that "
                              "comes with the package [default: from params_file]."),
        DeclareLaunchArgument("params_file", default_value="", description="YAML file of the policy node's parameters "
                              "[default: config/<robot>.yaml beside the launch file]."),
        DeclareLaunchArgument("namespace", default_value=LaunchConfiguration("ros_namespace", default=""),
                              description="Namespace of the robot's topics."),
        DeclareLaunchArgument("autostart", default_value="false", choices=["true", "false"],
                              description="Configure and activate the policy at once: the robot moves."),
        DeclareLaunchArgument("supervised", default_value="false", choices=["true", "false"],
                              description="Start the supervisor too, and send it the commands; somebody arms it."),
        DeclareLaunchArgument("acknowledge_no_watchdog", default_value="false", choices=["true", "false"],
                              description="Command positions though nobody downstream stops the robot when commands "
                              "stop."),
        DeclareLaunchArgument("episodes", default_value="0", description="Run so many episodes, each after the robot's "
                              "reset, and end; 0: continuous control, by an operator."),
        DeclareLaunchArgument("record", default_value="", description="Folder for one bag an episode, or each time "
                              "that the policy is active [default: none]."),
        DeclareLaunchArgument("cameras", default_value="true", choices=["true", "false"],
                              description="Record the cameras too."),
        DeclareLaunchArgument("bus", default_value="auto", choices=["auto", "dds", "ros"],
                              description="rclpy (ros), the built-in DDS (dds), or rclpy where it is found (auto)."),
        DeclareLaunchArgument("use_sim_time", default_value="false", choices=["true", "false"],
                              description="Stamp headers by /clock (ros only); deadlines stay on the monotonic clock."),
        DeclareLaunchArgument("ros_args", default_value="", description="More ROS arguments of the policy node, its "
                              "supervisor and its recorder (ros only), e.g. '-r joint_states:=/real/joint_states'."),
        DeclareLaunchArgument("seed", default_value="0", description="Seed of the goals and of exploration."),
        DeclareLaunchArgument("camera_sources", default_value="", description="Real cameras to publish: NAME=SOURCE "
                              "with spaces between them, as camera.launch.py's `sources` [default: none]."),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(HERE / "camera.launch.py")),
                                 launch_arguments=[("sources", LaunchConfiguration("camera_sources"))]),
        OpaqueFunction(function=policy),
    ])
