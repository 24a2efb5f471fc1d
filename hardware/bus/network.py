"""Names, domain, network interface and memory: what both backends settle before they touch the wire."""

from __future__ import annotations

import ctypes
import os
import re
import sys

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
TOKEN = re.compile(r"(?!.*__)[A-Za-z_][A-Za-z0-9_]*")
MAX_DOMAIN = 232
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def resolve(name: str, namespace: str, node: str = "") -> str:
    """The absolute ROS name of a relative, absolute or private ('~/x') one, without its leading '/'.

    Raises ValueError for what ROS does not allow in a name.
    """
    if name.startswith("~/") and node:
        base, rest = f"{namespace}/{node}", name[2:]
    else:
        base, rest = ("", name[1:]) if name.startswith("/") else (namespace, name)
    tokens = [token for token in base.split("/") if token] + rest.split("/")
    if not all(TOKEN.fullmatch(token) for token in tokens):
        raise ValueError(f"name '{name}' in namespace '{namespace}': ROS names are letters, digits and single "
                         "underscores, not starting with a digit, parted by '/'")
    return "/".join(tokens)


def domain_of(domain: int | None) -> int:
    """The domain asked for, else ROS_DOMAIN_ID, else 0. Raises ValueError naming a bad one."""
    text = os.environ.get("ROS_DOMAIN_ID") or "0" if domain is None else str(domain)
    if not text.isdigit() or int(text) > MAX_DOMAIN:
        raise ValueError(f"{'ROS_DOMAIN_ID' if domain is None else 'domain'} is '{text}', not within 0 to {MAX_DOMAIN}")
    return int(text)


def interface_of(interface: str | None) -> str | None:
    """The interface asked for, else ROBOT_RL_INTERFACE, else None: nobody said."""
    return interface or os.environ.get("ROBOT_RL_INTERFACE") or None


def cyclone_configuration(interface: str) -> str:
    """Cyclone DDS configuration for one interface; rmw_cyclonedds takes the same text in CYCLONEDDS_URI.

    Loopback goes without multicast, which many loopback interfaces lack, and with the largest datagrams, which makes
    a VGA image 15 of them instead of 690. The receive buffer, as far as net.core.rmem_max allows, holds the images of
    several cameras: Cyclone's own of 1 MB lost most third ones of three that came at once.
    """
    local = interface == LOOPBACK
    name = 'autodetermine="true"' if interface == "auto" else f'name="{interface}"'
    name += ' multicast="false"' if local else ""
    general = ("<AllowMulticast>false</AllowMulticast><MaxMessageSize>65500B</MaxMessageSize>"
               "<FragmentSize>65000B</FragmentSize>") if local else ""
    discovery = ("<Discovery><ParticipantIndex>auto</ParticipantIndex>"
                 "<MaxAutoParticipantIndex>100</MaxAutoParticipantIndex>"
                 '<Peers><Peer Address="127.0.0.1"/></Peers></Discovery>') if local else ""
    buffer = '<Internal><SocketReceiveBufferSize max="8MB"/></Internal>'
    return (f'<CycloneDDS><Domain Id="any"><General><Interfaces><NetworkInterface {name}/></Interfaces>{general}'
            f"</General>{discovery}{buffer}</Domain></CycloneDDS>")


def keep_freed_memory() -> None:
    """Keep freed blocks in the process instead of giving them back to the system.

    glibc returns an image-sized block on every free, and the next image then costs hundreds of page faults: encoding
    a VGA image took 0.9 ms so, and 0.2 ms with this. The same setting is usual for real-time processes.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 16 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
