"""The life cycle by itself: which transitions there are from where, and what a refusal leaves."""

from __future__ import annotations

from typing import Any

import pytest
from rosbags.typesys import Stores, get_typestore

from hardware.administration import answer
from hardware.bus.dds_graph import graph_types, id_size
from hardware.lifecycle import TRANSITIONS, LifeCycle, Operator, State


class Lamp:
    """Something to manage: notes what was done, and refuses what it is told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.refuses = ""

    def _do(self, what: str) -> None:
        if what == self.refuses:
            raise ValueError("no current")
        self.done.append(what)

    def configure(self) -> None:
        self._do("configure")

    def activate(self) -> None:
        self._do("activate")

    def deactivate(self) -> None:
        self._do("deactivate")

    def cleanup(self) -> None:
        self._do("cleanup")


PATHS = {State.UNCONFIGURED: [], State.INACTIVE: ["configure"], State.ACTIVE: ["configure", "activate"],
         State.FINALIZED: ["shutdown"]}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_every_transition_from_every_state(state: State, transition: str) -> None:
    lamp = Lamp()
    life = LifeCycle(lamp)
    assert all(life.go(step) for step in PATHS[state]) and life.state is state
    allowed = {("unconfigured", "configure"): "inactive", ("inactive", "activate"): "active",
               ("active", "deactivate"): "inactive", ("inactive", "cleanup"): "unconfigured",
               ("unconfigured", "shutdown"): "finalized", ("inactive", "shutdown"): "finalized",
               ("active", "shutdown"): "finalized"}
    wanted = allowed.get((state.value, transition))
    before = list(lamp.done)
    assert life.go(transition) == (wanted is not None)
    assert life.state.value == (wanted or state.value)
    if wanted is None:
        assert lamp.done == before and life.error == f"{transition}: it is {state.value}"
    if (state, transition) == (State.ACTIVE, "shutdown"):
        assert lamp.done[-2:] == ["deactivate", "cleanup"]


@pytest.mark.parametrize("refused", ["configure", "activate"])
def test_a_refusal_leaves_the_state_and_says_why_until_it_works(refused: str) -> None:
    lamp = Lamp()
    life = LifeCycle(lamp)
    operator = Operator(life, life.go)
    lamp.refuses = refused
    assert answer(operator.start) == (False, f"{refused}: no current")
    assert life.state is (State.UNCONFIGURED if refused == "configure" else State.INACTIVE)
    lamp.refuses = ""
    assert answer(operator.start) == (True, "active")
    assert life.error == ""
    assert answer(operator.start) == (False, "activate: it is active")
    assert life.state is State.ACTIVE


def test_a_fault_leaves_it_inactive_with_the_reason() -> None:
    lamp = Lamp()
    life = LifeCycle(lamp)
    operator = Operator(life, life.go)
    operator.start()
    operator.fail("stale")
    assert (life.state, life.error, lamp.done[-1]) == (State.INACTIVE, "stale", "deactivate")
    assert answer(operator.stop) == (True, "inactive")
    assert life.error == "stale", "nothing was stopped by that"


@pytest.mark.parametrize(("distribution", "size"), [("humble", 24), ("foxy", 24), ("iron", 16), ("jazzy", 16),
                                                    ("rolling", 16), (None, 16)])
def test_ids_in_the_graph_are_as_wide_as_the_distribution_has_them(
        distribution: str | None, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    if distribution:
        monkeypatch.setenv("ROS_DISTRO", distribution)
    assert id_size() == size
    info, node, gid = graph_types(size)
    one = gid(data=bytes(range(size)))
    told = info(gid=one, node_entities_info_seq=[node(node_namespace="/arm", node_name="policy", reader_gid_seq=[one],
                                                      writer_gid_seq=[])])
    store = get_typestore(Stores.ROS2_HUMBLE if size == 24 else Stores.ROS2_JAZZY)
    read: Any = store.deserialize_cdr(told.serialize(), "rmw_dds_common/msg/ParticipantEntitiesInfo")
    (found,) = read.node_entities_info_seq
    assert (found.node_namespace, found.node_name, len(found.writer_gid_seq)) == ("/arm", "policy", 0)
    assert list(read.gid.data) == list(found.reader_gid_seq[0].data) == list(range(size))
