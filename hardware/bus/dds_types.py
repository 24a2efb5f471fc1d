"""DDS types that carry ROS 2 messages as bytes.

Cyclone is told the whole structure of a message, from rosbags' layout: other DDS programs compare it when they connect,
and its C layer checks every payload against it. Its Python layer only ever sees the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from cyclonedds.idl import make_idl_struct
from cyclonedds.idl import types as idl_types
from rosbags.interfaces import Nodetype

from hardware import messages

types: Any = idl_types  # indexed like generics, which type checkers do not know
PRIMITIVES: dict[str, Any] = {"bool": bool, "byte": types.byte, "char": types.uint8} | {
    name: getattr(types, name) for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
                                            "float32", "float64")}
SERVICE_HEADER = {"client_id": types.uint64, "sequence_number": types.int64}
"""What rmw_cyclonedds puts before a service's request and reply."""


@cache
def dds_type(type: str) -> Any:
    """The DDS class of a ROS type, one object a process. Its instances hold `data`, CDR bytes."""
    made = _struct(type, SERVICE_HEADER if "/srv/" in type else {})
    made.ros_type = type
    made.serialize = _serialize
    made.deserialize = made.deserialize_key = classmethod(payload)
    return made


def payload(cls: Any, data: bytes, **_: Any) -> Any:
    """An instance of a DDS class that carries these bytes."""
    sample = object.__new__(cls)
    sample.data = data
    return sample


def peers(matched: Callable[[], list[int]]) -> list[int]:
    """The handles of those an end is connected to.

    Cyclone's Python layer counts them and then reads them: one that connects in between is an IndexError, and the
    next look has it.
    """
    while True:
        try:
            return matched()
        except IndexError:
            continue


def ros_type(dds_name: str) -> str:
    """'sensor_msgs/msg/JointState' of 'sensor_msgs::msg::dds_::JointState_'; a foreign name as it is."""
    return dds_name.replace("::dds_::", "::").rstrip("_").replace("::", "/") if "::dds_::" in dds_name else dds_name


def _serialize(self: Any, **_: Any) -> bytes:
    return self.data


def _struct(type: str, before: dict[str, Any]) -> Any:
    package, kind, name = type.split("/")
    fields = before | {field: _field(description) for field, description in messages.layout(type)}
    return make_idl_struct(f"{name}_", f"{package}.{kind}.dds_.{name}_", fields)


@cache
def _nested(type: str) -> Any:
    return _struct(type, {})


def _field(description: Any) -> Any:
    """Cyclone's type of a field from rosbags' description of it."""
    node, detail = description
    if node == Nodetype.NAME:
        return _nested(detail)
    if node == Nodetype.BASE:
        name, bound = detail
        return (types.bounded_str[bound] if bound else str) if name == "string" else PRIMITIVES[name]
    element, size = detail
    if node == Nodetype.ARRAY:
        return types.array[_field(element), size]
    return types.sequence[(_field(element), size)] if size else types.sequence[_field(element)]
