"""The bus on Eclipse Cyclone DDS: speaks the ROS 2 wire without a ROS 2 install.

Payloads stay CDR bytes from end to end; topics, types, quality of service and type hashes are as rmw_cyclonedds has
them, so that ROS nodes connect and its tools see the right thing.
"""

from __future__ import annotations

import os
import time
from typing import Any

from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication, BuiltinTopicDcpsSubscription
from cyclonedds.core import DDSException, InstanceState, Policy, ReadCondition, SampleState, ViewState, WaitSet
from cyclonedds.core import Qos as DdsQos
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.pub import Publisher as DdsPublisherGroup
from cyclonedds.sub import DataReader, Subscriber
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from hardware import messages
from hardware.bus import Qos, Sample
from hardware.bus.dds_graph import ENCLAVE, Graph
from hardware.bus.dds_service import DdsClient, DdsService
from hardware.bus.dds_types import dds_type, payload, peers, ros_type
from hardware.bus.network import LOOPBACK, cyclone_configuration, domain_of, resolve

ANY = SampleState.Any | ViewState.Any | InstanceState.Any
BATCH = 1024
CDR_HEADER = 4  # bytes
EAGER_S = 0.0002  # a wait looks this long before it sleeps: waking a sleeper costs some 50 us
SLICE_S = 0.2  # and then sleeps no longer at a time: a wait in C does not see Ctrl-C
SERVICE_QOS = Qos(reliable=True, depth=10)

_domains: dict[int, list[Any]] = {}  # [Domain, users]: DDS configures a domain once in a process


class DdsBus:
    """A DDS participant whose endpoints are those of a ROS 2 node. See Bus."""

    kind = "dds"

    def __init__(self, node: str, namespace: str = "", domain: int | None = None, interface: str | None = None) -> None:
        self.node, self.namespace = node, namespace.strip("/")
        self._domain = domain_of(domain)
        self._owned = _open_domain(self._domain, interface)
        try:
            self._participant: Any = DomainParticipant(self._domain, qos=DdsQos(Policy.EntityName(node), ENCLAVE))
        except DDSException as error:
            _close_domain(self._domain, self._owned)
            raise _no_start(self._domain, f"CYCLONEDDS_URI={os.environ.get('CYCLONEDDS_URI', '')}") from error
        self._graph = Graph(self._participant, node, self.namespace)
        self._groups: Any = (DdsPublisherGroup(self._participant), Subscriber(self._participant))
        self._topics: dict[tuple[str, str], Topic] = {}
        self._ends: list[Any] = []
        self._clients: dict[str, DdsClient] = {}

    def publisher(self, topic: str, type: str, qos: Qos) -> DdsPublisher:
        """See Bus."""
        return self._keep(DdsPublisher(topic, self._writer(f"rt/{self._resolve(topic)}", type, qos)))

    def reader(self, topic: str, type: str, qos: Qos) -> DdsReader:
        """See Bus."""
        return self._keep(DdsReader(self._reader(f"rt/{self._resolve(topic)}", type, qos)))

    def service(self, name: str) -> DdsService:
        """See Bus."""
        full, mark = self._resolve(name), f"serviceid={os.urandom(16).hex('.')};"
        return self._keep(DdsService(
            self._reader(f"rq/{full}Request", "std_srvs/srv/Trigger_Request", SERVICE_QOS, mark),
            self._writer(f"rr/{full}Reply", "std_srvs/srv/Trigger_Response", SERVICE_QOS, mark)))

    def call(self, name: str, timeout_s: float) -> tuple[bool, str]:
        """See Bus."""
        full, mark = self._resolve(name), f"clientid={os.urandom(16).hex('.')};"
        if full not in self._clients:
            self._clients[full] = self._keep(DdsClient(
                name, self._writer(f"rq/{full}Request", "std_srvs/srv/Trigger_Request", SERVICE_QOS, mark),
                DdsReader(self._reader(f"rr/{full}Reply", "std_srvs/srv/Trigger_Response", SERVICE_QOS, mark))))
        return self._clients[full].call(timeout_s)

    def resolve(self, name: str) -> str:
        """See Bus."""
        return "/" + self._resolve(name)

    def now_ns(self) -> int:
        """See Bus."""
        return time.time_ns()

    def topics(self) -> dict[str, list[str]]:
        """See Bus."""
        seen: dict[str, set[str]] = {}
        for builtin in (BuiltinTopicDcpsPublication, BuiltinTopicDcpsSubscription):
            for end in BuiltinDataReader(self._participant, builtin).read(100_000):
                if end.sample_info.valid_data and end.topic_name.startswith("rt/"):
                    seen.setdefault(end.topic_name[2:], set()).add(ros_type(end.type_name))
        return {topic: sorted(types) for topic, types in sorted(seen.items())}

    def close(self) -> None:
        """See Bus."""
        self._graph.close()
        for end in self._ends:
            end.close()
        self._ends.clear()
        self._clients.clear()
        self._topics.clear()
        if self._participant is not None:
            self._participant = self._groups = None
            _close_domain(self._domain, self._owned)

    def __enter__(self) -> DdsBus:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _keep(self, end: Any) -> Any:
        self._ends.append(end)
        return end

    def _resolve(self, name: str) -> str:
        if self._participant is None:
            raise RuntimeError(f"bus of node '{self.node}' is closed: '{name}' cannot be used")
        return resolve(name, self.namespace, self.node)

    def _writer(self, topic: str, type: str, qos: Qos, mark: str = "") -> DataWriter[Any]:
        end = DataWriter(self._groups[0], self._topic(topic, type), qos=_policies(type, qos, mark))
        return self._graph.add("writer", end)

    def _reader(self, topic: str, type: str, qos: Qos, mark: str = "") -> DataReader[Any]:
        end = DataReader(self._groups[1], self._topic(topic, type), qos=_policies(type, qos, mark))
        return self._graph.add("reader", end)

    def _topic(self, name: str, type: str) -> Topic[Any]:
        if (name, type) not in self._topics:
            self._topics[name, type] = Topic(self._participant, name, dds_type(type))
        return self._topics[name, type]


class DdsPublisher:
    """See Publisher."""

    def __init__(self, topic: str, writer: DataWriter[Any]) -> None:
        self._topic, self._type = topic, writer.data_type
        self._writer: DataWriter[Any] | None = writer

    def publish(self, data: bytes) -> int:
        """See Publisher."""
        if self._writer is None:
            raise RuntimeError(f"topic '{self._topic}': published after close")
        if len(data) <= CDR_HEADER:  # Cyclone would read beyond the end
            raise ValueError(f"topic '{self._topic}': {len(data)} bytes are no CDR message")
        stamp = time.time_ns()
        try:
            self._writer.write(payload(self._type, data), stamp)
        except DDSException as error:
            if error.code != DDSException.DDS_RETCODE_BAD_PARAMETER:
                raise
            raise ValueError(f"topic '{self._topic}': {len(data)} bytes are no {self._type.ros_type}") from error
        return stamp

    def matched(self) -> int:
        """See Publisher."""
        return len(peers(self._writer.get_matched_subscriptions)) if self._writer is not None else 0

    def close(self) -> None:
        """See Publisher."""
        self._writer = None


class DdsReader:
    """See Reader."""

    def __init__(self, reader: DataReader[Any]) -> None:
        self._reader: DataReader[Any] | None = reader
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
            got = self._reader.take(BATCH)
            if not got:
                break
            now = time.monotonic_ns()
            samples += [Sample(one.data, one.sample_info.source_timestamp, now)
                        for one in got if one.sample_info.valid_data]
            if len(got) < BATCH:
                break
        if samples:
            self._newest = samples[-1]
        return samples

    def wait(self, timeout_s: float) -> bool:
        """See Reader."""
        if self._reader is None:
            return False
        if self._waitset is None:
            participant = self._reader.participant
            assert participant is not None
            self._waitset = WaitSet(participant)
            self._waitset.attach(ReadCondition(self._reader, ANY))
        start = time.monotonic()
        while time.monotonic() - start < min(timeout_s, EAGER_S):
            if self._waitset.wait(0) > 0:
                return True
            os.sched_yield()
        while True:
            left = start + timeout_s - time.monotonic()
            if self._waitset.wait(duration(seconds=min(max(left, 0.0), SLICE_S))) > 0:
                return True
            if left <= SLICE_S:
                return False

    def matched(self) -> int:
        """See Reader."""
        return len(peers(self._reader.get_matched_publications)) if self._reader is not None else 0

    def close(self) -> None:
        """See Reader."""
        self._waitset = self._reader = None


def _open_domain(domain: int, interface: str | None) -> bool:
    """Configure the domain unless CYCLONEDDS_URI does; True when it is ours to close.

    The first bus of a process on a domain decides its interface.
    """
    if interface is None and os.environ.get("CYCLONEDDS_URI"):
        return False
    if domain not in _domains:
        try:
            _domains[domain] = [Domain(domain, cyclone_configuration(interface or LOOPBACK)), 0]
        except DDSException as error:
            raise _no_start(domain, f"interface {interface or LOOPBACK!r}") from error
    _domains[domain][1] += 1
    return True


def _no_start(domain: int, by: str) -> ConnectionError:
    return ConnectionError(f"DDS does not start on domain {domain} with {by}; Cyclone said above what it refuses")


def _close_domain(domain: int, owned: bool) -> None:
    if owned:
        _domains[domain][1] -= 1
        if _domains[domain][1] == 0:
            del _domains[domain]


def _policies(type: str, qos: Qos, mark: str) -> DdsQos:
    """What rmw_cyclonedds sets for the same promises."""
    kept = Policy.History.KeepLast(qos.depth)
    chosen = [
        Policy.Reliability.Reliable(duration(milliseconds=100)) if qos.reliable else Policy.Reliability.BestEffort,
        Policy.Durability.TransientLocal if qos.latched else Policy.Durability.Volatile,
        kept,
        Policy.WriterDataLifecycle(autodispose=False),
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.Userdata(f"{mark}typehash={messages.type_hash(type)};".encode()),
    ]
    if qos.latched:
        chosen.append(Policy.DurabilityService(cleanup_delay=0, history=kept, max_samples=-1, max_instances=-1,
                                               max_samples_per_instance=-1))
    return DdsQos(*chosen)
