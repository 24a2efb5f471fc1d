"""The simulated robot as a process of its own, and a policy on it.

    ros2 launch robot_rl sim.launch.py robot:=furuta gap:=payload=0.01 record:=bags

Without an installed package, give the path: `ros2 launch ./launch/sim.launch.py`. The policy's arguments are those of
robot.launch.py; the robot's process needs the extra `sim`.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PythonExpression


def generate_launch_description() -> LaunchDescription:
    """Arguments, the robot process and the policy process."""
    cameras = PythonExpression(["'--cameras' if '", LaunchConfiguration("cameras"), "' == 'true' else '--no-cameras'"])
    robot = ExecuteProcess(
        cmd=["python3", "-m", "robot_rl.cli", "sim-robot", LaunchConfiguration("robot"),
             # one word each: launch drops empty words
             ["--gap=", LaunchConfiguration("gap")], ["--namespace=", LaunchConfiguration("namespace")],
             ["--bus=", LaunchConfiguration("bus")], ["--seed=", LaunchConfiguration("seed")], cameras],
        name="robot", output="both", on_exit=Shutdown(reason="the robot has ended"))
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).resolve().parent / "robot.launch.py")))
    return LaunchDescription([
        DeclareLaunchArgument("robot", default_value="so101", description="Robot name, or path of a robot.yaml."),
        DeclareLaunchArgument("gap", default_value="", description="Reality gap, e.g. payload=0.1,command_delay=0.05; "
                              "`robot-rl sim-robot --help` lists the names and units."),
        DeclareLaunchArgument("namespace", default_value=LaunchConfiguration("ros_namespace", default=""),
                              description="Namespace of the robot's topics."),
        DeclareLaunchArgument("cameras", default_value="true", choices=["true", "false"],
                              description="Render, publish and record the cameras."),
        DeclareLaunchArgument("bus", default_value="auto", choices=["auto", "dds", "ros"],
                              description="rclpy (ros), the built-in DDS (dds), or rclpy where it is found (auto)."),
        DeclareLaunchArgument("seed", default_value="0", description="Seed of everything random."),
        DeclareLaunchArgument("episodes", default_value="3", description="Episodes to run; 0: continuous "
                              "control, by an operator or autostart:=true."),
        robot,
        policy,
    ])
