"""The bus on rclpy: raw CDR in and out, no executor; whatever is read is pulled straight from the middleware.

`take_message`, `service_take_request` and `take_response` of the handles are what rclpy's own executors and
`wait_for_message` call; they are not part of its public interface, so they are called in this file only.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import Trigger

from hardware.bus import Qos, Sample, resolve

POLL_S = 0.0002


class RosBus:
    """A ROS 2 node whose topics and services are pulled."""

    def __init__(self, node: str, namespace: str = "", domain: int | None = None) -> None:
        self.node, self.namespace = node, namespace
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = Node(node, namespace=namespace or None, context=self._context, start_parameter_services=False,
                          enable_rosout=False)
        self._clients: dict[str, Any] = {}

    def publisher(self, topic: str, type: str, qos: Qos) -> RosPublisher:
        """See Bus."""
        return RosPublisher(self._node, self._node.create_publisher(_message(type), self._full(topic), _profile(qos)))

    def reader(self, topic: str, type: str, qos: Qos) -> RosReader:
        """See Bus."""
        kind = _message(type)
        subscription = self._node.create_subscription(kind, self._full(topic), _ignore, _profile(qos), raw=True)
        return RosReader(self._node, subscription, kind)

    def service(self, name: str) -> RosService:
        """See Bus."""
        return RosService(self._node, self._node.create_service(Trigger, self._full(name), _unused))

    def call(self, name: str, timeout_s: float) -> tuple[bool, str]:
        """See Bus."""
        full, end = self._full(name), time.monotonic() + timeout_s
        if full not in self._clients:
            self._clients[full] = self._node.create_client(Trigger, full)
        client = self._clients[full]
        if not client.wait_for_service(timeout_sec=timeout_s):
            raise TimeoutError(f"service '{name}': nobody serves it (waited {timeout_s:g} s)")
        number = client.handle.send_request(Trigger.Request())
        while time.monotonic() < end:
            header, response = client.handle.take_response(Trigger.Response)
            if header is not None and header.request_id.sequence_number == number:
                return response.success, response.message
            if header is None:
                time.sleep(POLL_S)
        raise TimeoutError(f"service '{name}': no answer within {timeout_s:g} s")

    def close(self) -> None:
        """See Bus."""
        if self._context.ok():
            self._node.destroy_node()
            rclpy.shutdown(context=self._context)

    def __enter__(self) -> RosBus:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _full(self, name: str) -> str:
        return "/" + resolve(name, self.namespace)


class RosPublisher:
    """See Publisher."""

    def __init__(self, node: Node, publisher: Any) -> None:
        self._node, self._publisher = node, publisher

    def publish(self, data: bytes) -> int:
        """See Publisher. The middleware stamps the sample itself, some microseconds after the stamp returned here."""
        stamp = time.time_ns()
        self._publisher.publish(bytes(data))
        return stamp

    def matched(self) -> int:
        """See Publisher."""
        return self._publisher.get_subscription_count()

    def close(self) -> None:
        """See Publisher."""
        self._node.destroy_publisher(self._publisher)


class RosReader:
    """See Reader."""

    def __init__(self, node: Node, subscription: Any, type: Any) -> None:
        self._node, self._subscription, self._type = node, subscription, type
        self._take_one: Callable[[], Any] = lambda: subscription.handle.take_message(type, True)
        self._newest: Sample | None = None
        self._waiting: deque[Sample] = deque()

    def newest(self) -> Sample | None:
        """See Reader."""
        self._waiting.clear()
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
        """See Reader."""
        end = time.monotonic() + timeout_s
        while not self._waiting:
            self._drain()
            if not self._waiting:
                if time.monotonic() > end:
                    return False
                time.sleep(POLL_S)
        return True

    def matched(self) -> int:
        """See Reader."""
        return self._subscription.handle.get_publisher_count()

    def close(self) -> None:
        """See Reader."""
        self._take_one = lambda: None
        self._node.destroy_subscription(self._subscription)

    def _drain(self) -> None:
        while (taken := self._take_one()) is not None:
            data, info = taken
            self._newest = Sample(bytes(data), info["source_timestamp"], time.monotonic_ns())
            self._waiting.append(self._newest)


class RosService:
    """See Service."""

    def __init__(self, node: Node, service: Any) -> None:
        self._node, self._service = node, service

    def take(self) -> RosRequest | None:
        """See Service."""
        request, header = self._service.handle.service_take_request(Trigger.Request)
        return None if request is None else RosRequest(self._service.handle, header)

    def close(self) -> None:
        """See Service."""
        self._node.destroy_service(self._service)


class RosRequest:
    """See Request."""

    def __init__(self, handle: Any, header: Any) -> None:
        self._handle, self._header = handle, header

    def reply(self, success: bool, message: str) -> None:
        """See Request."""
        identity = getattr(self._header, "request_id", self._header)
        self._handle.service_send_response(Trigger.Response(success=success, message=message), identity)


def _message(type: str) -> Any:
    package, kind, name = type.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), name)


def _profile(qos: Qos) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=qos.depth,
        reliability=ReliabilityPolicy.RELIABLE if qos.reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if qos.latched else DurabilityPolicy.VOLATILE)


def _ignore(message: Any) -> None:
    """Never called: no executor spins this node."""


def _unused(request: Any, response: Any) -> Any:
    """Never called: no executor spins this node."""
    return response
