"""std_srvs/Trigger services on DDS, as rmw_cyclonedds maps them.

A service is a topic of requests and one of replies. Both payloads begin with the caller's 8-byte id and its 8-byte call
number, which the reply gives back. Both ends of a server (and of a client) carry one id in their user data, because
DDS may connect one end before the other.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from cyclonedds.core import Policy

from hardware.bus.dds_types import payload, peers

if TYPE_CHECKING:
    from cyclonedds.pub import DataWriter
    from cyclonedds.sub import DataReader

    from hardware.bus.dds import DdsReader

CDR = b"\x00\x01\x00\x00"  # little-endian
BATCH = 64
PATIENCE_S = 1.0  # for a caller whose reply reader stays unseen
CLIENT_ID = re.compile(rb"(?:^|;)clientid=([^;]*)")


class DdsRequest:
    """See Request. `header` is the caller's id and the call's number, given back as they came."""

    def __init__(self, replies: DataWriter[Any], header: bytes, writer: int) -> None:
        self._replies, self._header = replies, header
        self.writer, self.since = writer, time.monotonic()

    def reply(self, success: bool, message: str) -> None:
        """See Request."""
        text = message.encode() + b"\0"
        body = CDR + self._header + struct.pack("<?3xI", success, len(text)) + text
        self._replies.write(payload(self._replies.data_type, body))


class DdsService:
    """See Service. A call is handed out once its caller can hear the reply."""

    def __init__(self, requests: DataReader[Any], replies: DataWriter[Any]) -> None:
        self._requests: DataReader[Any] | None = requests
        self._replies: DataWriter[Any] | None = replies
        self._waiting: deque[DdsRequest] = deque()

    def take(self) -> DdsRequest | None:
        """See Service."""
        if self._requests is None or self._replies is None:
            return None
        for one in self._requests.take(BATCH):
            if one.sample_info.valid_data:
                self._waiting.append(DdsRequest(self._replies, one.data[4:20], one.sample_info.publication_handle))
        for request in self._waiting:
            if self._hears(request.writer) or time.monotonic() - request.since > PATIENCE_S:
                self._waiting.remove(request)
                return request
        return None

    def close(self) -> None:
        """See Service."""
        self._waiting.clear()
        self._requests = self._replies = None

    def _hears(self, writer: int) -> bool:
        """Whether the caller's reply reader is connected; a caller that left or has no id is not waited for."""
        assert self._requests is not None
        assert self._replies is not None
        client = _client_id(self._requests.get_matched_publication_data(writer))
        if client is None:
            return True
        readers = peers(self._replies.get_matched_subscriptions)
        return any(_client_id(self._replies.get_matched_subscription_data(reader)) == client for reader in readers)


class DdsClient:
    """Calls one service; a reply is known by this client's id and the call's number."""

    def __init__(self, name: str, requests: DataWriter[Any], replies: DdsReader) -> None:
        self._name, self._replies = name, replies
        self._requests: DataWriter[Any] | None = requests
        self._id, self._number = os.urandom(8), 0

    def call(self, timeout_s: float) -> tuple[bool, str]:
        """(success, message). Raises TimeoutError naming the service."""
        end = time.monotonic() + timeout_s
        while not self._connected():
            if time.monotonic() > end:
                raise TimeoutError(f"service '{self._name}': nobody serves it (waited {timeout_s:g} s)")
            time.sleep(0.002)
        header = self._send()
        while (left := end - time.monotonic()) > 0:
            self._replies.wait(left)
            for sample in self._replies.take():
                if sample.data[4:20] == header:
                    success, size = struct.unpack_from("<?3xI", sample.data, 20)
                    return success, sample.data[28:28 + size - 1].decode()
        raise TimeoutError(f"service '{self._name}': no answer within {timeout_s:g} s")

    def close(self) -> None:
        """Leave the service."""
        self._requests = None
        self._replies.close()

    def _connected(self) -> bool:
        if self._requests is None:
            raise RuntimeError(f"service '{self._name}': called after close")
        return bool(peers(self._requests.get_matched_subscriptions)) and self._replies.matched() > 0

    def _send(self) -> bytes:
        assert self._requests is not None
        self._number += 1
        header = self._id + struct.pack("<q", self._number)
        self._requests.write(payload(self._requests.data_type, CDR + header + b"\0"))
        return header


def _client_id(endpoint: Any) -> bytes | None:
    """The client id in an endpoint's user data; None when it has none, or is gone."""
    if endpoint is None or Policy.Userdata not in endpoint.qos:
        return None
    found = CLIENT_ID.search(endpoint.qos[Policy.Userdata].data)
    return found.group(1) if found else None
