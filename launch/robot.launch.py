"""A policy on a robot whose driver is already running.

    ros2 launch robot_rl robot.launch.py robot:=so101 policy_path:=policy.onnx record:=bags

Without an installed package, give the path: `ros2 launch ./launch/robot.launch.py`. The processes run with the python3
that is first on PATH. DDS domain: ROS_DOMAIN_ID.
"""

from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration

CONFIG = Path(__file__).resolve().parent / "config"


def policy(context: LaunchContext) -> list[ExecuteProcess]:
    """The policy process; what is not given comes from the robot's file. RuntimeError names what is missing."""
    given = {name: value for name, value in context.launch_configurations.items() if value}
    robot = given["robot"]
    file = Path(given.get("params_file", CONFIG / f"{robot}.yaml"))
    if "params_file" in given and not file.is_file():
        raise RuntimeError(f"params_file: no file {file}")
    options = yaml.safe_load(file.read_text()) if file.is_file() else {}
    options |= {key: given[key] for key in ("policy_path", "episodes") if key in given}
    if "policy_path" not in options:
        raise RuntimeError(f"robot '{robot}': give policy_path:=FILE, or write it in {file}")
    command = ["python3", "-m", "robot_rl.cli", "deploy", str(options["policy_path"]), f"--robot={robot}",
               f"--episodes={options.get('episodes', 1)}", f"--bus={given['bus']}", f"--seed={given['seed']}",
               "--cameras" if given["cameras"] == "true" else "--no-cameras"]
    command += [f"--{name}={given[name]}" for name in ("namespace", "record") if name in given]
    # not respawned: after a fault a person decides whether the robot moves again
    return [ExecuteProcess(cmd=command, name="policy", output="both", on_exit=Shutdown(reason="the policy has ended"))]


def generate_launch_description() -> LaunchDescription:
    """Arguments and the policy process."""
    return LaunchDescription([
        DeclareLaunchArgument("robot", default_value="so101", description="Robot name, or path of a robot.yaml."),
        DeclareLaunchArgument("policy_path", default_value="", description="ONNX file, or the name of a policy that "
                              "comes with the package [default: from params_file]."),
        DeclareLaunchArgument("params_file", default_value="", description="YAML file with policy_path and episodes "
                              "[default: config/<robot>.yaml beside the launch file]."),
        DeclareLaunchArgument("namespace", default_value=LaunchConfiguration("ros_namespace", default=""),
                              description="Namespace of the robot's topics."),
        DeclareLaunchArgument("episodes", default_value="", description="Episodes to run [default: from params_file, "
                              "else 1]."),
        DeclareLaunchArgument("record", default_value="", description="Folder for one bag an episode [default: none]."),
        DeclareLaunchArgument("cameras", default_value="true", choices=["true", "false"],
                              description="Record the cameras too."),
        DeclareLaunchArgument("bus", default_value="auto", choices=["auto", "dds", "ros"],
                              description="rclpy (ros), the built-in DDS (dds), or rclpy where it is found (auto)."),
        DeclareLaunchArgument("seed", default_value="0", description="Seed of the goals."),
        OpaqueFunction(function=policy),
    ])
