"""The bus: CDR bytes on named, typed ROS 2 topics, pulled by whoever reads. Two backends, one behaviour.

`dds` is Eclipse Cyclone DDS from its Python package and needs no ROS 2; `ros` is rclpy. Nothing here runs a callback:
a control tick takes the newest sample of each topic when it wants it.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from hardware.bus.network import interface_of, keep_freed_memory, resolve

__all__ = ["COMMAND", "EVENTS", "LATCHED", "SENSOR", "Bus", "Kind", "Publisher", "Qos", "Reader", "Request", "Sample",
           "Service", "chosen", "connect", "own_arguments", "resolve"]

Kind = Literal["auto", "dds", "ros"]
ROS_ARGS = "--ros-args"


@dataclass(frozen=True)
class Qos:
    """What is promised of a topic; both ends must be compatible, as in ROS 2."""

    reliable: bool = False
    latched: bool = False
    """Transient-local: who joins late still gets the last `depth` samples."""
    depth: int = 1


SENSOR = Qos()
COMMAND = Qos(reliable=True)
LATCHED = Qos(reliable=True, latched=True)
EVENTS = Qos(reliable=True, depth=1000)


class Sample(NamedTuple):
    """One message as it came."""

    data: bytes
    """CDR, with its 4-byte header. DDS pads payloads to a multiple of 4: up to 3 bytes may follow the message."""
    stamp_ns: int
    """When it was published, ns since the Unix epoch, by the publisher's clock."""
    arrival_ns: int
    """`time.monotonic_ns()` of the take that first returned it."""


class Publisher(Protocol):
    """Sends on one topic. Histories keep the last `depth`, so that publishing never waits for a slow reader."""

    def publish(self, data: bytes) -> int:
        """Send CDR bytes; returns the source stamp, ns, that readers see.

        On `ros` the middleware stamps the message itself: readers see that stamp or one later by less than the call
        took. Raises ValueError for bytes that are no message of the topic's type (`dds`) and RuntimeError once closed.
        """

    def matched(self) -> int:
        """How many readers are connected."""

    def close(self) -> None:
        """Leave the topic."""


class Reader(Protocol):
    """Receives on one topic. Use `newest` or `take` of a reader, not both: each consumes what came."""

    def newest(self) -> Sample | None:
        """The newest sample ever received; the same object again while nothing newer came."""

    def take(self) -> list[Sample]:
        """Every sample since the last take, oldest first, at most the last `depth`."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is something to take; never for a control tick."""

    def matched(self) -> int:
        """How many publishers are connected."""

    def close(self) -> None:
        """Leave the topic. `newest` still gives the last sample."""


class Request(Protocol):
    """A call of a std_srvs/Trigger service that waits for its answer."""

    def reply(self, success: bool, message: str) -> None:
        """Answer it, now or later."""


class Service(Protocol):
    """Serves one std_srvs/Trigger."""

    def take(self) -> Request | None:
        """The oldest call that was not taken yet."""

    def close(self) -> None:
        """Stop serving."""


class Bus(Protocol):
    """A participant under a ROS node name and namespace. Topics that start with '/' are absolute, with '~/' private."""

    kind: str
    node: str
    namespace: str

    def publisher(self, topic: str, type: str, qos: Qos) -> Publisher:
        """A publisher of `type`, written like `sensor_msgs/msg/JointState`."""

    def reader(self, topic: str, type: str, qos: Qos) -> Reader:
        """A reader of `type`."""

    def service(self, name: str) -> Service:
        """Serve a std_srvs/Trigger."""

    def call(self, name: str, timeout_s: float) -> tuple[bool, str]:
        """Call a std_srvs/Trigger: (success, message). Raises TimeoutError naming the service."""

    def resolve(self, name: str) -> str:
        """The absolute name that a topic or service has on the network; on `ros` with its remappings applied."""

    def now_ns(self) -> int:
        """What to stamp headers with, ns since the Unix epoch. Never for deadlines or ages: those are monotonic.

        The wall clock, but on a managed node with `use_sim_time` what /clock says.
        """

    def topics(self) -> dict[str, list[str]]:
        """Absolute names of the topics seen on the network and the types they have: why nothing connects."""

    def close(self) -> None:
        """Leave the bus, its topics and services."""

    def __enter__(self) -> Bus: ...

    def __exit__(self, *error: object) -> None: ...


def connect(kind: Kind, node: str, namespace: str = "", domain: int | None = None, interface: str | None = None) -> Bus:
    """A bus; `auto` takes `ros` where rclpy can be imported, else `dds`. Domain None is ROS_DOMAIN_ID, else 0.

    interface: name of a network interface, 'lo' for this machine only, 'auto' for the middleware's choice; None is
    ROBOT_RL_INTERFACE, else what CYCLONEDDS_URI says. With none of these `dds` stays on this machine, while `ros`
    follows ROS 2's own settings, so that ROS tools see what a ROS user expects.
    """
    backend = chosen(kind)
    keep_freed_memory()
    if backend == "ros":
        from hardware.bus.ros import RosBus
        return RosBus(node, namespace, domain, interface_of(interface))
    from hardware.bus.dds import DdsBus
    return DdsBus(node, namespace, domain, interface_of(interface))


def chosen(kind: str) -> Literal["dds", "ros"]:
    """The backend that a kind means here. ValueError for an unknown one, or ROS arguments that `dds` would not heed."""
    if kind not in ("auto", "dds", "ros"):
        raise ValueError(f"bus '{kind}': known are auto, dds, ros")
    if kind == "ros" or (kind == "auto" and importlib.util.find_spec("rclpy")):
        return "ros"
    if ROS_ARGS in sys.argv:
        raise ValueError(f"{ROS_ARGS}: remappings and parameters need the ros bus (rclpy), this is dds")
    return "dds"


def own_arguments() -> list[str]:
    """This program's arguments but for what follows `--ros-args`, which is for rclpy: it reads sys.argv itself."""
    own = sys.argv[1:]
    return own[:own.index(ROS_ARGS)] if ROS_ARGS in own else own
