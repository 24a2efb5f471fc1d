"""A ROS 2 node's name in the graph that ROS tools see, without ROS 2: which endpoints belong to it.

Every ROS 2 participant tells on the latched DDS topic `ros_discovery_info` which of its readers and writers are whose.
Endpoints are known by their DDS ids, in fields of 24 bytes up to Humble and of 16 since, so the distribution of the
ROS 2 machines on the network has to be known: ROS_DISTRO, without which it is a newer one.
"""

from __future__ import annotations

import os
import weakref
from functools import cache
from typing import Any

from cyclonedds.core import Policy
from cyclonedds.core import Qos as DdsQos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import make_idl_struct
from cyclonedds.idl import types as idl_types
from cyclonedds.pub import DataWriter
from cyclonedds.topic import Topic

from hardware import messages

types: Any = idl_types  # indexed like generics, which type checkers do not know
TOPIC, TYPE = "ros_discovery_info", "rmw_dds_common/msg/ParticipantEntitiesInfo"
WIDE_IDS = ("dashing", "eloquent", "foxy", "galactic", "humble")
ENCLAVE = Policy.Userdata(b"enclave=/;")
"""What a participant carries, or ROS 2 takes it for one that has no nodes."""


class Graph:
    """One node of a participant. Endpoints are added when made and leave when nothing holds them any more."""

    def __init__(self, participant: DomainParticipant, node: str, namespace: str) -> None:
        self._size = id_size()
        self._names = f"/{namespace}", node
        self._ids: dict[str, dict[bytes, None]] = {"reader": {}, "writer": {}}
        self._participant = participant.guid.bytes
        kept = Policy.History.KeepLast(1)
        self._writer: DataWriter[Any] | None = DataWriter(
            participant, Topic(participant, TOPIC, graph_types(self._size)[0]), qos=DdsQos(
                Policy.Reliability.Reliable(0), Policy.Durability.TransientLocal, kept,
                Policy.DurabilityService(0, kept, -1, -1, -1), Policy.WriterDataLifecycle(autodispose=False),
                Policy.DataRepresentation(use_cdrv0_representation=True),
                Policy.Userdata(f"typehash={messages.type_hash(TYPE)};".encode())))
        self._tell()

    def add(self, kind: str, endpoint: Any) -> Any:
        """Make a new 'reader' or 'writer' the node's; returns it."""
        key = endpoint.guid.bytes
        self._ids[kind][key] = None
        weakref.finalize(endpoint, self._remove, kind, key).atexit = False
        self._tell()
        return endpoint

    def close(self) -> None:
        """Say nothing more; the participant leaves with all it has."""
        self._writer = None

    def _remove(self, kind: str, key: bytes) -> None:
        del self._ids[kind][key]
        self._tell()

    def _tell(self) -> None:
        if self._writer is None:
            return
        info, node, gid = graph_types(self._size)

        def wide(key: bytes) -> Any:
            return gid(data=key.ljust(self._size, b"\0"))
        self._writer.write(info(gid=wide(self._participant), node_entities_info_seq=[node(
            node_namespace=self._names[0], node_name=self._names[1],
            reader_gid_seq=[wide(key) for key in self._ids["reader"]],
            writer_gid_seq=[wide(key) for key in self._ids["writer"]])]))


def id_size() -> int:
    """Bytes of an endpoint's id in the distribution that ROS_DISTRO names."""
    return 24 if os.environ.get("ROS_DISTRO") in WIDE_IDS else 16


@cache
def graph_types(size: int) -> tuple[Any, Any, Any]:
    """The DDS types of ParticipantEntitiesInfo, NodeEntitiesInfo and Gid with ids of so many bytes."""
    def struct(name: str, **fields: Any) -> Any:
        return make_idl_struct(f"{name}_", f"rmw_dds_common.msg.dds_.{name}_", fields)
    gid = struct("Gid", data=types.array[types.uint8, size])
    node = struct("NodeEntitiesInfo", node_namespace=types.bounded_str[256], node_name=types.bounded_str[256],
                  reader_gid_seq=types.sequence[gid], writer_gid_seq=types.sequence[gid])
    return struct("ParticipantEntitiesInfo", gid=gid, node_entities_info_seq=types.sequence[node]), node, gid
