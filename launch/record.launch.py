"""One bag of everything that a robot says and is told, whoever drives it.

    ros2 launch robot_rl record.launch.py robot:=so101 record:=bags name:=drive

Without an installed package, give the path: `ros2 launch ./launch/record.launch.py`. Interrupt it to close the bag.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, Shutdown
from launch.substitutions import LaunchConfiguration


def generate_launch_description() -> LaunchDescription:
    """Arguments and the recorder process."""
    recorder = ExecuteProcess(
        cmd=["python3", "-m", "hardware.recorder",  # one word each: launch drops empty words
             ["--robot=", LaunchConfiguration("robot")], ["--out=", LaunchConfiguration("record")],
             ["--continuous=", LaunchConfiguration("name")], ["--namespace=", LaunchConfiguration("namespace")],
             ["--bus=", LaunchConfiguration("bus")]],
        name="recorder", output="both", on_exit=Shutdown(reason="the recorder has ended"))
    return LaunchDescription([
        DeclareLaunchArgument("robot", default_value="so101", description="Robot name, or path of a robot.yaml."),
        DeclareLaunchArgument("record", default_value="bags", description="Folder for the bag."),
        DeclareLaunchArgument("name", default_value="drive", description="Name of the bag."),
        DeclareLaunchArgument("namespace", default_value=LaunchConfiguration("ros_namespace", default=""),
                              description="Namespace of the robot's topics."),
        DeclareLaunchArgument("bus", default_value="auto", choices=["auto", "dds", "ros"],
                              description="rclpy (ros), the built-in DDS (dds), or rclpy where it is found (auto)."),
        recorder,
    ])
