"""The bus on rclpy: raw CDR in and out, past every executor; whatever is read is pulled straight from the middleware.

The calls of `_take_message`, `_take_request`, `_send_request` and `_take_response` are what rclpy's own executors and
`wait_for_message` use. They are not part of its documented interface, so each is wrapped once, here.
"""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.callback_groups import CallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger  # type: ignore[import-not-found]

from hardware.bus import COMMAND, SENSOR, Qos, Sample
from hardware.bus.network import LOOPBACK, cyclone_configuration, domain_of, resolve

CDR_HEADER = 4  # bytes
EAGER_S, PAUSE_S = 0.002, 0.0002  # a wait polls without a pause at first, then with one


class Pulled(CallbackGroup):  # type: ignore[misc]  # rclpy has no types where it is not installed
    """What the bus reads itself: an executor that spins the node takes nothing of it and does not wake for it."""

    def can_execute(self, entity: Any) -> bool:
        """Never."""
        return False

    def beginning_execution(self, entity: Any) -> bool:
        """Never."""
        return False

    def ending_execution(self, entity: Any) -> None:
        """Nothing began."""


class RosBus:
    """A ROS 2 node whose topics and services are pulled. See Bus.

    Nothing spins it, unless `make` made a node that somebody administers, with services and a clock of its own.
    """

    kind = "ros"

    def __init__(self, node: str, namespace: str = "", domain: int | None = None, interface: str | None = None,
                 make: Callable[..., Node] | None = None) -> None:
        _pin(interface)
        self._context = rclpy.Context()
        # no signal handlers: Ctrl-C stays a KeyboardInterrupt, and the safe stop after it can still publish
        rclpy.init(context=self._context, domain_id=None if domain is None else domain_of(domain),
                   signal_handler_options=SignalHandlerOptions.NO)
        named: dict[str, Any] = {"context": self._context, "namespace": namespace.strip("/") or None}
        self._node: Node | None = make(node, **named) if make else rclpy.create_node(
            # services that nobody answers would make ROS tools hang, so the node offers none of its own
            node, enable_rosout=False, start_parameter_services=False,
            parameter_overrides=[Parameter("start_type_description_service", value=False)], **named)
        self._clock = self._node.get_clock() if make else None
        self._pulled = Pulled()
        self.node, self.namespace = self._node.get_name(), self._node.get_namespace().strip("/")
        self._ends: list[Any] = []
        self._clients: dict[str, Any] = {}

    def publisher(self, topic: str, type: str, qos: Qos) -> RosPublisher:
        """See Bus."""
        full = self._resolve(topic)
        return self._keep(RosPublisher(self._open, self._open.create_publisher(
            _message(type), full, _profile(qos))))

    def reader(self, topic: str, type: str, qos: Qos) -> RosReader:
        """See Bus."""
        full = self._resolve(topic)
        subscription = self._open.create_subscription(_message(type), full, _unused, _profile(qos), raw=True,
                                                      callback_group=self._pulled)
        for event in subscription.event_handlers:  # that quality of service does not fit is told where somebody spins
            event.callback_group = self._open.default_callback_group
            event.callback_group.add_entity(event)
        return self._keep(RosReader(self._open, subscription, qos.depth))

    def service(self, name: str) -> RosService:
        """See Bus."""
        full = self._resolve(name)
        return self._keep(RosService(self._open, self._open.create_service(
            Trigger, full, _unused, callback_group=self._pulled)))

    def call(self, name: str, timeout_s: float) -> tuple[bool, str]:
        """See Bus."""
        full, end = self._resolve(name), time.monotonic() + timeout_s
        if full not in self._clients:
            self._clients[full] = self._open.create_client(Trigger, full, callback_group=self._pulled)
        client = self._clients[full]
        while not client.service_is_ready():
            if time.monotonic() > end:
                raise TimeoutError(f"service '{name}': nobody serves it (waited {timeout_s:g} s)")
            time.sleep(0.002)
        number = _send_request(client, Trigger.Request())
        while time.monotonic() < end:
            header, response = _take_response(client)
            if header is None:
                time.sleep(PAUSE_S)
            elif header.request_id.sequence_number == number:
                return bool(response.success), str(response.message)
        raise TimeoutError(f"service '{name}': no answer within {timeout_s:g} s")

    def resolve(self, name: str) -> str:
        """See Bus."""
        return str(self._open.resolve_topic_name(self._resolve(name)))

    def now_ns(self) -> int:
        """See Bus."""
        return time.time_ns() if self._clock is None else int(self._clock.now().nanoseconds)

    def topics(self) -> dict[str, list[str]]:
        """See Bus."""
        return {topic: sorted(types) for topic, types in sorted(self._open.get_topic_names_and_types())}

    def close(self) -> None:
        """See Bus."""
        if self._node is None:
            return
        for end in self._ends:
            end.close()
        self._ends.clear()
        self._clients.clear()
        self._node.destroy_node()
        self._node = None
        rclpy.try_shutdown(context=self._context)

    def __enter__(self) -> RosBus:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def ros_node(self) -> Node:
        """The node, for whoever administers it."""
        return self._open

    @property
    def _open(self) -> Node:
        if self._node is None:
            raise RuntimeError(f"bus of node '{self.node}' is closed")
        return self._node

    def _keep(self, end: Any) -> Any:
        self._ends.append(end)
        return end

    def _resolve(self, name: str) -> str:
        """The absolute name; rclpy may still remap it, as a launch file says."""
        return "/" + resolve(name, self.namespace, self.node)


class RosPublisher:
    """See Publisher."""

    def __init__(self, node: Node, publisher: Any) -> None:
        self._node, self._topic = node, publisher.topic_name
        self._publisher: Any = publisher

    def publish(self, data: bytes) -> int:
        """See Publisher."""
        if self._publisher is None:
            raise RuntimeError(f"topic '{self._topic}': published after close")
        if len(data) <= CDR_HEADER:
            raise ValueError(f"topic '{self._topic}': {len(data)} bytes are no CDR message")
        stamp = time.time_ns()
        self._publisher.publish(bytes(data))
        return stamp

    def matched(self) -> int:
        """See Publisher."""
        return int(self._publisher.get_subscription_count()) if self._publisher is not None else 0

    def close(self) -> None:
        """See Publisher."""
        if self._publisher is not None:
            self._node.destroy_publisher(self._publisher)
            self._publisher = None


class RosReader:
    """See Reader."""

    def __init__(self, node: Node, subscription: Any, depth: int) -> None:
        self._node, self._depth = node, depth
        self._subscription: Any = subscription
        self._newest: Sample | None = None
        self._waiting: deque[Sample] = deque(maxlen=depth)

    def newest(self) -> Sample | None:
        """See Reader."""
        self._drain()
        self._waiting.clear()
        return self._newest

    def take(self) -> list[Sample]:
        """See Reader."""
        self._drain()
        samples = list(self._waiting)
        self._waiting.clear()
        return samples

    def wait(self, timeout_s: float) -> bool:
        """See Reader. rclpy documents no wait without an executor, so this polls, and keeps what it took."""
        start = time.monotonic()
        while not self._waiting and self._subscription is not None:
            self._drain()
            passed = time.monotonic() - start
            if self._waiting or passed >= timeout_s:
                break
            os.sched_yield() if passed < EAGER_S else time.sleep(PAUSE_S)
        return bool(self._waiting)

    def matched(self) -> int:
        """See Reader."""
        if self._subscription is None:
            return 0
        if hasattr(self._subscription, "get_publisher_count"):  # not in Humble, where the graph is asked by name
            return int(self._subscription.get_publisher_count())
        return int(self._node.count_publishers(self._subscription.topic_name))

    def close(self) -> None:
        """See Reader."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def _drain(self) -> None:
        """Take what waits in the middleware, at most one history: a fast publisher must not hold the caller."""
        for _ in range(self._depth if self._subscription is not None else 0):
            taken = _take_message(self._subscription)
            if taken is None:
                return
            data, info = taken
            self._newest = Sample(data, info["source_timestamp"], time.monotonic_ns())
            self._waiting.append(self._newest)


class RosService:
    """See Service."""

    def __init__(self, node: Node, service: Any) -> None:
        self._node = node
        self._service: Any = service

    def take(self) -> RosRequest | None:
        """See Service."""
        if self._service is None:
            return None
        header = _take_request(self._service)
        return None if header is None else RosRequest(self._service, header)

    def close(self) -> None:
        """See Service."""
        if self._service is not None:
            self._node.destroy_service(self._service)
            self._service = None


class RosRequest:
    """See Request."""

    def __init__(self, service: Any, header: Any) -> None:
        self._service, self._header = service, header

    def reply(self, success: bool, message: str) -> None:
        """See Request."""
        self._service.send_response(Trigger.Response(success=success, message=message), self._header)


def timer_node(node: str, namespace: str, domain: int, sensors: Sequence[tuple[str, str]],
               commands: Sequence[tuple[str, str]], rate_hz: float,
               tick: Callable[[dict[str, bytes], Callable[[str, bytes], None]], bool]) -> None:
    """A node as tutorials write it, for comparison: callbacks keep the newest message, a timer calls `tick`.

    `tick` is given the newest CDR bytes by topic and what publishes on a command topic; False ends it.
    """
    context, newest = rclpy.Context(), dict[str, bytes]()
    rclpy.init(context=context, domain_id=domain)
    plain = rclpy.create_node(node, context=context, namespace=namespace)
    for topic, type in sensors:
        plain.create_subscription(_message(type), topic, functools.partial(newest.__setitem__, topic),
                                  _profile(SENSOR), raw=True)
    publishers = {topic: plain.create_publisher(_message(type), topic, _profile(COMMAND)) for topic, type in commands}
    executor, going = SingleThreadedExecutor(context=context), True

    def on_timer() -> None:
        nonlocal going
        going = tick(newest, lambda topic, data: publishers[topic].publish(data))

    plain.create_timer(1.0 / rate_hz, on_timer)
    executor.add_node(plain)
    while going:
        executor.spin_once()
    plain.destroy_node()
    rclpy.try_shutdown(context=context)


def _take_message(subscription: Any) -> tuple[bytes, dict[str, int]] | None:
    with subscription.handle:
        return subscription.handle.take_message(subscription.msg_type, True)


def _take_request(service: Any) -> Any:
    with service.handle:
        _, header = service.handle.service_take_request(Trigger.Request)
    return header


def _send_request(client: Any, request: Any) -> int:
    with client.handle:
        return client.handle.send_request(request)


def _take_response(client: Any) -> tuple[Any, Any]:
    with client.handle:
        return client.handle.take_response(Trigger.Response)


def _pin(interface: str | None) -> None:
    """Put ROS 2 on a named interface: by CYCLONEDDS_URI; loopback also where the RMW is another."""
    if interface is None:
        return
    os.environ["CYCLONEDDS_URI"] = cyclone_configuration(interface)
    if interface == LOOPBACK and os.environ.get("RMW_IMPLEMENTATION") != "rmw_cyclonedds_cpp":
        humble = os.environ.get("ROS_DISTRO") == "humble"
        os.environ["ROS_LOCALHOST_ONLY" if humble else "ROS_AUTOMATIC_DISCOVERY_RANGE"] = "1" if humble else "LOCALHOST"


def _message(type: str) -> Any:
    """The Python class of a ROS type. Raises ValueError when its package is not in the ROS 2 install."""
    package, kind, name = type.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.{kind}"), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"message type '{type}' is not in this ROS 2 install: install package '{package}'") from error


def _profile(qos: Qos) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=qos.depth,
        reliability=ReliabilityPolicy.RELIABLE if qos.reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if qos.latched else DurabilityPolicy.VOLATILE)


def _unused(*_: Any) -> Any:
    """What rclpy would call if an executor took what is pulled; none does."""
