"""A node's endpoints as another process sees them: names, types, quality of service and type hashes."""

from __future__ import annotations

import re
import time

from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication, BuiltinTopicDcpsSubscription
from cyclonedds.core import Policy as DdsPolicy
from cyclonedds.core import Qos as DdsQos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from hardware.bus.dds import DdsBus
from hardware.bus.dds_graph import TOPIC, graph_types, id_size
from hardware.bus.dds_types import ros_type

HASHES = {
    "std_msgs/msg/String": "df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18",
    "std_msgs/msg/Bool": "feb91e995ff9ebd09c0cb3d2aed18b11077585839fb5db80193b62d74528f6c9",
    "std_msgs/msg/Float64MultiArray": "1025ddc6b9552d191f89ef1a8d2f60f3d373e28b283d8891ddcc974e8c55397f",
    "sensor_msgs/msg/JointState": "a13ee3a330e346c9d87b5aa18d24e11690752bd33a0350f11c5882bc9179260e",
    "geometry_msgs/msg/PoseStamped": "10f3786d7d40fd2b54367835614bff85d4ad3b5dab62bf8bca0cc232d73b4cd8",
    "sensor_msgs/msg/Image": "d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47",
    "sensor_msgs/msg/CompressedImage": "15640771531571185e2efc8a100baf923961a4d15d5569652e6cb6691e8e371a",
    "sensor_msgs/msg/CameraInfo": "b3dfd68ff46c9d56c80fd3bd4ed22c7a4ddce8c8348f2f59c299e73118e7e275",
    "diagnostic_msgs/msg/DiagnosticArray": "5a8a36efb05fb25070fa0fb3810290c0e6cd4862b54a8fb975a1ee8dc55a333e",
}
"""RIHS01 of each type, as a ROS 2 Jazzy install has them in share/<package>/msg/<Type>.json."""


def endpoints(bus: DdsBus, namespace: str, name: str) -> dict[str, str]:
    """Every endpoint of a node by what ros_discovery_info says, as a row, with its type hash."""
    participant, size = bus._participant, id_size()
    info = DataReader(participant, Topic(participant, TOPIC, graph_types(size)[0]), qos=DdsQos(
        DdsPolicy.Reliability.Reliable(0), DdsPolicy.Durability.TransientLocal, DdsPolicy.History.KeepAll))
    time.sleep(0.5)
    ids = {(kind, bytes(gid.data)[:16]) for told in info.take(100) for node in told.node_entities_info_seq
           if (node.node_namespace, node.node_name) == (namespace, name)
           for kind in ("reader", "writer") for gid in getattr(node, f"{kind}_gid_seq")}
    rows = {}
    for kind, builtin in (("writer", BuiltinTopicDcpsPublication), ("reader", BuiltinTopicDcpsSubscription)):
        for end in BuiltinDataReader(participant, builtin).read(10_000):
            if end.sample_info.valid_data and (kind, end.key.bytes) in ids:
                reliable = isinstance(end.qos[DdsPolicy.Reliability], DdsPolicy.Reliability.Reliable)
                latched = end.qos[DdsPolicy.Durability] == DdsPolicy.Durability.TransientLocal
                stated = re.search(rb"typehash=RIHS01_(\w+);", end.qos[DdsPolicy.Userdata].data)
                rows[f"{kind} {end.topic_name} {ros_type(end.type_name)} {'reliable' if reliable else 'best-effort'} "
                     f"{'latched' if latched else 'volatile'}"] = stated.group(1).decode() if stated else "none"
    return rows
