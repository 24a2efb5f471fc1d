"""The bus on Eclipse Cyclone DDS: speaks the ROS 2 wire without a ROS 2 install.

Payloads stay CDR bytes from end to end: the type that Cyclone sees has the ROS type's name, and its C layer is handed
bytes and gives bytes back. Topics, types, services and type hashes are named as rmw_cyclonedds names them.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import new_class
from typing import Any

from cyclonedds._clayer import ddspy_take, ddspy_write_ts
from cyclonedds.core import InstanceState, Policy, ReadCondition, SampleState, ViewState, WaitSet
from cyclonedds.core import Qos as DdsQos
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import uint8
from cyclonedds.pub import DataWriter, Publisher
from cyclonedds.sub import DataReader, Subscriber
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from hardware import messages
from hardware.bus import Qos, Sample, resolve

ANY = SampleState.Any | ViewState.Any | InstanceState.Any
BATCH = 256
INTERFACE_VARIABLE = "ROBOT_RL_INTERFACE"
_SERVICE_QOS = Qos(reliable=True, depth=10)
_HEADER = b"\x00\x01\x00\x00"  # CDR, little-endian
_domains: dict[int, Domain] = {}  # a domain is configured once a process


class DdsBus:
    """A DDS participant that behaves as a ROS 2 node's endpoints do."""

    def __init__(self, node: str, namespace: str = "", domain: int | None = None) -> None:
        self.node, self.namespace = node, namespace
        self._participant = _participant(int(os.environ.get("ROS_DOMAIN_ID") or 0) if domain is None else domain)
        self._publisher, self._subscriber = Publisher(self._participant), Subscriber(self._participant)
        self._ends: list[Any] = []
        self._clients: dict[str, _Client] = {}

    def publisher(self, topic: str, type: str, qos: Qos) -> DdsPublisher:
        """See Bus."""
        return self._keep(DdsPublisher(self._writer("rt/" + resolve(topic, self.namespace), type, qos)))

    def reader(self, topic: str, type: str, qos: Qos) -> DdsReader:
        """See Bus."""
        return self._keep(DdsReader(self._reader("rt/" + resolve(topic, self.namespace), type, qos), self._participant))

    def service(self, name: str) -> DdsService:
        """See Bus."""
        requests, replies = self._ends_of(name)
        return self._keep(DdsService(
            DdsReader(self._reader(*requests, _SERVICE_QOS), self._participant),
            DdsPublisher(self._writer(*replies, _SERVICE_QOS))))

    def call(self, name: str, timeout_s: float) -> tuple[bool, str]:
        """See Bus."""
        if name not in self._clients:
            requests, replies = self._ends_of(name)
            self._clients[name] = self._keep(_Client(
                DdsPublisher(self._writer(*requests, _SERVICE_QOS)),
                DdsReader(self._reader(*replies, _SERVICE_QOS), self._participant)))
        return self._clients[name].call(name, timeout_s)

    def close(self) -> None:
        """See Bus."""
        for end in self._ends:
            end.close()
        self._ends.clear()

    def __enter__(self) -> DdsBus:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _keep(self, end: Any) -> Any:
        self._ends.append(end)
        return end

    def _ends_of(self, name: str) -> tuple[tuple[str, str], tuple[str, str]]:
        full = resolve(name, self.namespace)
        kind = "std_srvs/srv/Trigger"
        return (f"rq/{full}Request", f"{kind}_Request"), (f"rr/{full}Reply", f"{kind}_Response")

    def _writer(self, topic: str, type: str, qos: Qos) -> DataWriter:
        policies = _policies(type, qos)
        return DataWriter(self._publisher, Topic(self._participant, topic, _idl_type(type)), qos=policies)

    def _reader(self, topic: str, type: str, qos: Qos) -> DataReader:
        policies = _policies(type, qos)
        return DataReader(self._subscriber, Topic(self._participant, topic, _idl_type(type)), qos=policies)


class DdsPublisher:
    """See Publisher."""

    def __init__(self, writer: DataWriter) -> None:
        self._writer: DataWriter | None = writer

    def publish(self, data: bytes) -> int:
        """See Publisher."""
        assert self._writer is not None, "published after close"
        stamp = time.time_ns()
        code = ddspy_write_ts(self._writer._ref, data, stamp)
        if code < 0:
            raise OSError(f"DDS write failed with code {code}")
        return stamp

    def matched(self) -> int:
        """See Publisher."""
        return len(self._writer.get_matched_subscriptions()) if self._writer is not None else 0

    def close(self) -> None:
        """See Publisher."""
        self._writer = None


class DdsReader:
    """See Reader."""

    def __init__(self, reader: DataReader, participant: DomainParticipant) -> None:
        self._reader: DataReader | None = reader
        self._participant = participant
        self._newest: Sample | None = None
        self._waitset: WaitSet | None = None

    def newest(self) -> Sample | None:
        """See Reader."""
        self.take()
        return self._newest

    def take(self) -> list[Sample]:
        """See Reader."""
        samples: list[Sample] = []
        while self._reader is not None:
            got = ddspy_take(self._reader._ref, ANY, BATCH)
            if isinstance(got, int):
                raise OSError(f"DDS take failed with code {got}")
            now = time.monotonic_ns()
            samples += [Sample(data, info.source_timestamp, now) for data, info in got if info.valid_data]
            if len(got) < BATCH:
                break
        if samples:
            self._newest = samples[-1]
        return samples

    def wait(self, timeout_s: float) -> bool:
        """See Reader."""
        if self._waitset is None:
            self._waitset = WaitSet(self._participant)
            self._waitset.attach(ReadCondition(self._reader, ANY))
        return self._waitset.wait(duration(seconds=timeout_s)) > 0

    def matched(self) -> int:
        """See Reader."""
        return len(self._reader.get_matched_publications()) if self._reader is not None else 0

    def close(self) -> None:
        """See Reader."""
        self._waitset = self._reader = None


class DdsService:
    """See Service."""

    def __init__(self, requests: DdsReader, replies: DdsPublisher) -> None:
        self._requests, self._replies = requests, replies
        self._queue: deque[bytes] = deque()

    def take(self) -> DdsRequest | None:
        """See Service."""
        self._queue.extend(s.data[4:20] for s in self._requests.take())
        return DdsRequest(self._replies.publish, self._queue.popleft()) if self._queue else None

    def close(self) -> None:
        """See Service."""
        self._requests.close()
        self._replies.close()


@dataclass
class DdsRequest:
    """See Request. `header` is the caller's 8-byte id and 8-byte sequence number, given back as they came."""

    send: Callable[[bytes], int]
    header: bytes

    def reply(self, success: bool, message: str) -> None:
        """See Request."""
        text = message.encode() + b"\0"
        self.send(_HEADER + self.header + struct.pack("<B3xI", success, len(text)) + text)


class _Client:
    """Calls one service; a reply is known by this client's id and the call's number."""

    def __init__(self, requests: DdsPublisher, replies: DdsReader) -> None:
        self._requests, self._replies = requests, replies
        self._id, self._number = os.urandom(8), 0

    def call(self, name: str, timeout_s: float) -> tuple[bool, str]:
        end = time.monotonic() + timeout_s
        while not (self._requests.matched() and self._replies.matched()):
            if time.monotonic() > end:
                raise TimeoutError(f"service '{name}': nobody serves it (waited {timeout_s:g} s)")
            time.sleep(0.005)
        self._number += 1
        header = self._id + struct.pack("<q", self._number)
        self._requests.publish(_HEADER + header + b"\0")
        while (left := end - time.monotonic()) > 0:
            self._replies.wait(min(left, 0.5))
            for sample in self._replies.take():
                if sample.data[4:20] == header:
                    success, size = struct.unpack_from("<B3xI", sample.data, 20)
                    return bool(success), sample.data[28:28 + size - 1].decode()
        raise TimeoutError(f"service '{name}': no answer within {timeout_s:g} s")

    def close(self) -> None:
        self._requests.close()
        self._replies.close()


def _participant(domain: int) -> DomainParticipant:
    """A participant of a domain, which stays on this machine unless the user says otherwise.

    CYCLONEDDS_URI is taken as it is; else the network interface that ROBOT_RL_INTERFACE names; else loopback only,
    without multicast, which many loopback interfaces lack.
    """
    if not os.environ.get("CYCLONEDDS_URI") and domain not in _domains:
        _domains[domain] = Domain(domain, _configuration(os.environ.get(INTERFACE_VARIABLE, "lo")))
    return DomainParticipant(domain)


def _configuration(interface: str) -> str:
    local = interface == "lo"
    alone = "<AllowMulticast>false</AllowMulticast>" if local else ""
    peers = ("<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>100</MaxAutoParticipantIndex>"
             '<Peers><Peer address="127.0.0.1"/></Peers></Discovery>') if local else ""
    return ('<CycloneDDS><Domain id="any"><General><Interfaces>'
            f'<NetworkInterface name="{interface}"/></Interfaces>{alone}'
            f"<MaxMessageSize>65500B</MaxMessageSize></General>{peers}</Domain></CycloneDDS>")


@cache
def _idl_type(type: str) -> Any:
    """A type that carries the ROS type's DDS name and leaves the payload alone.

    Between two of ours DDS compares the structure, not the name, so its one field is named after the type.
    """
    package, kind, name = type.split("/")
    fields = {"__annotations__": {f"{package}_{kind}_{name}": uint8}}
    made = new_class(name, (IdlStruct,), {"typename": f"{package}.{kind}.dds_.{name}_"}, lambda body: body.update(fields))
    return dataclass(made)


def _policies(type: str, qos: Qos) -> DdsQos:
    reliability = (Policy.Reliability.Reliable(duration(seconds=1)) if qos.reliable else Policy.Reliability.BestEffort)
    durability = Policy.Durability.TransientLocal if qos.latched else Policy.Durability.Volatile
    chosen = [reliability, durability, Policy.History.KeepLast(qos.depth),
              Policy.Userdata(f"typehash={messages.type_hash(type)};".encode())]
    if qos.latched:
        chosen.append(Policy.DurabilityService(
            cleanup_delay=0, history=Policy.History.KeepLast(qos.depth), max_samples=-1, max_instances=-1,
            max_samples_per_instance=-1))
    return DdsQos(*chosen)
