"""Topics that latched and volatile publishers may be on: a latched reader does not match a volatile publisher."""

from __future__ import annotations

from hardware import messages
from hardware.bus import LATCHED, SENSOR, Bus, Sample

BOOL = "std_msgs/msg/Bool"


class Either:
    """Listens both ways on one topic."""

    def __init__(self, bus: Bus, topic: str, type: str) -> None:
        self.topic = topic
        self._readers = [bus.reader(topic, type, qos) for qos in (LATCHED, SENSOR)]

    def samples(self) -> list[Sample]:
        """The newest of each kind of publisher that has spoken."""
        return [sample for reader in self._readers if (sample := reader.newest()) is not None]

    def newest(self) -> Sample | None:
        """The newest of all, by its source stamp."""
        return max(self.samples(), key=lambda sample: sample.stamp_ns, default=None)

    def close(self) -> None:
        """Leave the topic."""
        for reader in self._readers:
            reader.close()


class Switch(Either):
    """A std_msgs/Bool that must never be missed, such as a protective stop."""

    def __init__(self, bus: Bus, topic: str) -> None:
        super().__init__(bus, topic, BOOL)

    def on(self) -> list[Sample]:
        """What says true, or nothing that can be read; one publisher's false does not take back what another says."""
        return [sample for sample in self.samples() if is_true(sample, otherwise=True)]


def is_true(sample: Sample, otherwise: bool) -> bool:
    """What a std_msgs/Bool says; `otherwise` for bytes that are none."""
    try:
        return bool(messages.decode(sample.data, BOOL).data)
    except ValueError:
        return otherwise
