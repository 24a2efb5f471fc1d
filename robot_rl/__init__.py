"""Train a policy in simulation, run it on a ROS 2 robot, learn from what was logged."""

__version__ = "0.1.0"
