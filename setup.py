from setuptools import setup
setup()  # everything is in pyproject.toml; colcon looks for this file
