"""The policy as a managed node of ROS 2: its life cycle, parameters and services, on a thread beside the control loop.

Nothing of the control tick goes through the executor here: the bus pulls its topics itself (hardware/bus/ros.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from std_srvs.srv import Trigger  # type: ignore[import-not-found]

from hardware.administration import PERIOD_S, answer
from hardware.bus.network import interface_of
from hardware.bus.ros import RosBus
from hardware.lifecycle import LifeCycle, State
from hardware.managed import Desk, ManagedPolicy, Settings
from robot_rl.spec import SpecError

if TYPE_CHECKING:
    from hardware.deploy import BusOptions

FREE = "; read when the node is activated"
STRUCTURE = "; settable while unconfigured, read when the node is configured"
PARAMETERS: dict[str, ParameterDescriptor] = {
    "policy_path": ParameterDescriptor(
        description="ONNX file, or the name of a policy that comes with the package" + STRUCTURE),
    "robot": ParameterDescriptor(description="Robot name, or path of a robot.yaml", read_only=True),
    "fade_s": ParameterDescriptor(
        description="Time over which the policy is faded in from the measured pose, s" + FREE,
        floating_point_range=[FloatingPointRange(from_value=0.0, to_value=60.0)]),
    "fresh_timeout_s": ParameterDescriptor(
        description="How long activating waits for fresh state of every input, s" + FREE,
        floating_point_range=[FloatingPointRange(from_value=0.1, to_value=600.0)]),
    "explore": ParameterDescriptor(description="Act with the learner's exploration noise" + FREE),
    "seed": ParameterDescriptor(description="Seed of the exploration noise", read_only=True,
                                integer_range=[IntegerRange(from_value=0, to_value=2**31 - 1)]),
    "autostart": ParameterDescriptor(description="Configure and activate at the start", read_only=True),
    "supervised": ParameterDescriptor(
        description="Send commands to the supervisor instead of to the robot, as the robot's file may say too",
        read_only=True),
    "acknowledge_no_watchdog": ParameterDescriptor(
        description="Command positions though nobody downstream stops the robot when commands stop", read_only=True),
}
"""By the name of a setting; the control rate is none of them: the policy's contract says it."""


class PolicyLifecycle(LifecycleNode):  # type: ignore[misc]  # rclpy has no types where it is not installed
    """The node. Its transitions are those of `life`, which is set before anything spins it."""

    life: LifeCycle

    def on_configure(self, state: Any) -> Any:
        """See Managed."""
        return self._done("configure")

    def on_activate(self, state: Any) -> Any:
        """See Managed."""
        return self._done("activate")

    def on_deactivate(self, state: Any) -> Any:
        """See Managed."""
        return self._done("deactivate")

    def on_cleanup(self, state: Any) -> Any:
        """See Managed."""
        return self._done("cleanup")

    def on_shutdown(self, state: Any) -> Any:
        """See Managed."""
        return self._done("shutdown")

    def go(self, transition: str) -> bool:
        """Do a transition as `ros2 lifecycle set` would; False when it was refused, of which `life.error` tells."""
        try:
            return bool(getattr(self, f"trigger_{transition}")() == TransitionCallbackReturn.SUCCESS)
        except Exception as error:  # rcl's own, of a class that it does not export: no such transition from here
            self.life.error = f"{transition}: it is {self.life.state.value} ({str(error).splitlines()[0]})"
            return False

    def _done(self, transition: str) -> Any:
        if self.life.go(transition):
            self.get_logger().info(self.life.state.value)
            return TransitionCallbackReturn.SUCCESS
        self.get_logger().error(self.life.error)
        return TransitionCallbackReturn.FAILURE


def serve(settings: Settings, where: BusOptions, stop: Callable[[], bool]) -> None:
    """Be the managed node until `stop`."""
    bus = RosBus("policy", where.namespace, where.domain, interface_of(None), make=PolicyLifecycle)
    node: Any = bus.ros_node
    with bus:
        try:
            for key, value in asdict(settings).items():
                node.declare_parameter(key, value, PARAMETERS[key])
        except ParameterException as error:
            raise SpecError(str(error)) from error
        managed = ManagedPolicy(bus, lambda: _settings(node))
        node.life = LifeCycle(managed)
        node.add_on_set_parameters_callback(lambda changes: _refusal(node.life, changes))
        desk = Desk(bus, managed, node.life, node.go)
        for name, call in desk.answers.items():
            node.create_service(Trigger, name, _answering(call))
        node.create_timer(PERIOD_S, desk.tell)
        fault = node.create_guard_condition(lambda: _tend(node, desk))
        first = node.create_guard_condition(lambda: answer(desk.autostart))
        first.trigger()
        executor = SingleThreadedExecutor(context=node.context)
        executor.add_node(node)
        thread = threading.Thread(target=_spin, args=(executor,), daemon=True, name="administration")
        thread.start()
        try:
            # without the administering thread nobody could stop it: it then ends, by the stop behaviour
            managed.run(lambda: stop() or not thread.is_alive(), fault.trigger)
        finally:
            executor.shutdown()
            thread.join()
            if node.life.state is not State.FINALIZED:
                node.go("shutdown")


def _settings(node: Any) -> Settings:
    """What the parameters say now."""
    return Settings(**{field.name: node.get_parameter(field.name).value for field in fields(Settings)})


def _refusal(life: LifeCycle, changes: Any) -> Any:
    """What is structure may not change under a policy that is loaded."""
    structure = [change.name for change in changes if change.name == "policy_path"]
    if structure and life.state is not State.UNCONFIGURED:
        return SetParametersResult(successful=False, reason=f"{structure[0]}: the node is {life.state.value}; "
                                   "deactivate and clean up first")
    return SetParametersResult(successful=True)


def _answering(call: Callable[[], str]) -> Callable[[Any, Any], Any]:
    def respond(_: Any, response: Any) -> Any:
        response.success, response.message = answer(call)
        return response
    return respond


def _tend(node: Any, desk: Desk) -> None:
    if fault := desk.tend():
        node.get_logger().error(f"stopped: {fault}")


def _spin(executor: Any) -> None:
    with suppress(ExternalShutdownException):
        executor.spin()
