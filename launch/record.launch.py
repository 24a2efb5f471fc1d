"""One bag of everything that a robot says and is told, whoever drives it.

    ros2 launch robot_rl record.launch.py robot:=so101 record:=bags name:=drive camera_sources:=front=/dev/video0

Without an installed package, give the path: `ros2 launch ./launch/record.launch.py`. Interrupt it to close the bag.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration


def generate_launch_description() -> LaunchDescription:
    """Arguments and the recorder process."""
    recorder = ExecuteProcess(
        cmd=["python3", "-m", "hardware.recorder",  # one word each: launch drops empty words
             ["--robot=", LaunchConfiguration("robot")], ["--out=", LaunchConfiguration("record")],
             ["--continuous=", LaunchConfiguration("name")], ["--namespace=", LaunchConfiguration("namespace")],
             ["--bus=", LaunchConfiguration("bus")], ["--also=", LaunchConfiguration("also")],
             ["--supervised=", LaunchConfiguration("supervised")]],
        name="recorder", output="both", on_exit=Shutdown(reason="the recorder has ended"))
    return LaunchDescription([
        DeclareLaunchArgument("robot", default_value="so101", description="Robot name, or path of a robot.yaml."),
        DeclareLaunchArgument("record", default_value="bags", description="Folder for the bag."),
        DeclareLaunchArgument("name", default_value="drive", description="Name of the bag."),
        DeclareLaunchArgument("namespace", default_value=LaunchConfiguration("ros_namespace", default=""),
                              description="Namespace of the robot's topics."),
        DeclareLaunchArgument("bus", default_value="auto", choices=["auto", "dds", "ros"],
                              description="rclpy (ros), the built-in DDS (dds), or rclpy where it is found (auto)."),
        DeclareLaunchArgument("supervised", default_value="false", choices=["true", "false"],
                              description="The policy's commands go through the supervisor: record what it tells."),
        DeclareLaunchArgument("also", default_value="", description="Other topics to record: TOPIC=TYPE with spaces "
                              "between them, such as cmd_vel=geometry_msgs/msg/Twist."),
        DeclareLaunchArgument("camera_sources", default_value="", description="Real cameras to publish: NAME=SOURCE "
                              "with spaces between them, as camera.launch.py's `sources` [default: none]."),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(Path(__file__).resolve().parent / "camera.launch.py")),
            launch_arguments=[("sources", LaunchConfiguration("camera_sources"))]),
        recorder,
    ])
