"""Real cameras, video files or network streams as a robot's cameras.

    ros2 launch robot_rl camera.launch.py robot:=so101 sources:="front=/dev/video0 wrist=rtsp://192.168.1.20/stream"

Without an installed package, give the path: `ros2 launch ./launch/camera.launch.py`. robot.launch.py and
record.launch.py start the same with `camera_sources`. A process that crashes is started again.
"""

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, TimerAction
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration

ENDED, REFUSED = 0, 2  # exit statuses after which the same command would do no better


def cameras(context: LaunchContext) -> list[Action]:
    """One process for all sources; none where there are none."""
    given = {name: value for name, value in context.launch_configurations.items() if value}
    if "sources" not in given:
        return []
    command = ["python3", "-m", "robot_rl.cli", "camera", given["robot"], f"--bus={given['bus']}"]
    command += [f"--source={word}" for word in given["sources"].split()]
    command += [f"--calibration={word}" for word in given.get("calibrations", "").split()]
    command += ["--loop"] * (given["loop"] == "true")
    command += [f"--namespace={given['namespace']}"] if "namespace" in given else []

    def again(event: ProcessExited, context: LaunchContext) -> list[Action]:
        lasting = event.returncode in (ENDED, REFUSED) or context.is_shutdown
        return [] if lasting else [TimerAction(period=1.0, actions=[process()])]

    def process() -> Action:
        return ExecuteProcess(cmd=command, name="camera", output="both", on_exit=again)
    return [process()]


def generate_launch_description() -> LaunchDescription:
    """Arguments and the camera process."""
    return LaunchDescription([
        DeclareLaunchArgument("robot", default_value="so101", description="Robot name, or path of a robot.yaml."),
        DeclareLaunchArgument("sources", default_value="", description="NAME=SOURCE with spaces between them: 0, "
                              "/dev/video2, file.mp4, rtsp://... or http://... [default: no cameras]."),
        DeclareLaunchArgument("calibrations", default_value="", description="NAME=FILE with spaces between them, as "
                              "ROS's camera_calibration writes such a file."),
        DeclareLaunchArgument("loop", default_value="false", choices=["true", "false"],
                              description="Begin a file anew at its end."),
        DeclareLaunchArgument("namespace", default_value=LaunchConfiguration("ros_namespace", default=""),
                              description="Namespace of the robot's topics."),
        DeclareLaunchArgument("bus", default_value="auto", choices=["auto", "dds", "ros"],
                              description="rclpy (ros), the built-in DDS (dds), or rclpy where it is found (auto)."),
        OpaqueFunction(function=cameras),
    ])
