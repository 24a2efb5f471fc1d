"""The stop logic, exhaustively: every state under every flag, every pair of flags and every request."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from robot_rl.stop import (
    DEFAULTS,
    DWELL_S,
    FIXED,
    FLAGS,
    MEANING,
    REST_S,
    Action,
    Flag,
    Request,
    Stand,
    State,
    actions,
    advance,
    drawn,
)

SINGLE = tuple(flag for flag in FLAGS if not flag & FIXED)
SETS = (Flag.NONE, *SINGLE, *(a | b for a, b in itertools.combinations(SINGLE, 2)))
STANDS = (Stand(), Stand(State.ARMED), Stand(State.STOPPING), Stand(State.STOPPING, Flag.SENSORS, True),
          Stand(State.STOPPING, slow_s=0.0), Stand(State.STOPPED, Flag.SENSORS, True))
TABLES = (DEFAULTS, actions({"overrun": "stop", "clamped": "disarm", "watchdog": "stop"}))
TIMES = (0.0, DWELL_S, REST_S)
DOC = Path(__file__).parents[1] / "docs" / "safety.md"


def everything() -> Iterator[tuple[Stand, Flag, Request, bool, float, dict[Flag, Action], Stand]]:
    """Every case: before, flags, request, at rest, time, actions, after."""
    for case in itertools.product(STANDS, SETS, Request, (False, True), TIMES, TABLES):
        before, flags, request, resting, now, table = case
        if now and before.state is not State.STOPPING:
            continue  # only there does time count
        yield (*case, advance(before, flags, now, resting=resting, request=request, table=table))


def worst(flags: Flag, table: dict[Flag, Action]) -> Action:
    return max((table[flag] for flag in SINGLE if flag & flags), default=Action.WARN)


def test_every_state_under_every_flag_pair_and_request() -> None:
    cases = 0
    for before, flags, request, resting, now, table, after in everything():
        cases += 1
        worse, edge = worst(flags, table), (before.state, after.state)
        # armed is reached from inactive only, when asked for, and with nothing against it
        if after.state is State.ARMED:
            assert worse is Action.WARN
            assert before.state is State.ARMED or (before.state is State.INACTIVE and request is Request.ARM)
        # whatever is worse than a warning ends it in the same step
        if before.state is State.ARMED and (worse > Action.WARN or request in (Request.STOP, Request.DISARM)):
            assert after.state is State.STOPPING
            assert after.latched == (worse is Action.STOP or request is Request.STOP)
        # a latched stop is left by a reset only, without a cause, and to inactive
        if before.state is State.STOPPED and after.state is not State.STOPPED:
            assert edge == (State.STOPPED, State.INACTIVE)
            assert request is Request.RESET
            assert worse < Action.STOP
        # a stop that is latched never becomes one that is not
        if before.latched and before.state is State.STOPPING:
            assert after.latched
            assert after.state in (State.STOPPING, State.STOPPED)
            assert before.cause in after.cause
        # a robot that is being stopped is left alone only at rest
        if edge == (State.STOPPING, State.INACTIVE):
            assert resting
            assert not before.latched
            assert worse < Action.STOP
        if before.state is State.STOPPING and now >= REST_S and request is not Request.STOP:
            assert after.state is not State.STOPPING
        # a stop that is asked for is never refused
        if request is Request.STOP:
            assert after.state in (State.STOPPING, State.STOPPED)
            assert after.latched
            assert not after.refused
        # a request that is refused changes nothing by itself, and says why
        if request is not Request.NONE:
            without = advance(before, flags, now, resting=resting, table=table)
            granted = (after.state, after.latched) != (without.state, without.latched)
            assert not (granted and after.refused)
            if request in (Request.ARM, Request.RESET) and not granted:
                assert after.refused
        else:
            assert not after.refused
    assert cases == (3 + 3 * len(TIMES)) * len(SETS) * len(Request) * 2 * len(TABLES)


def test_arming_names_every_reason_at_once() -> None:
    after = advance(Stand(), Flag.SENSORS | Flag.WATCHDOG | Flag.CLAMPED, 0.0, resting=True, request=Request.ARM)
    assert after.refused == tuple(f"{f.name.lower()}: {MEANING[f]}" for f in (Flag.SENSORS, Flag.WATCHDOG))


def test_a_reset_is_refused_while_a_cause_holds_and_lands_in_inactive() -> None:
    stand = advance(Stand(State.ARMED), Flag.PROTECTIVE_STOP, 0.0, resting=False)
    for now in (0.1, 0.1 + DWELL_S):
        stand = advance(stand, Flag.PROTECTIVE_STOP, now, resting=True)
    assert (stand.state, stand.cause) == (State.STOPPED, Flag.PROTECTIVE_STOP)
    still = advance(stand, Flag.PROTECTIVE_STOP, 1.0, resting=True, request=Request.RESET)
    assert still.state is State.STOPPED
    assert still.refused == (f"protective_stop: {MEANING[Flag.PROTECTIVE_STOP]}",)
    assert advance(still, Flag.NONE, 1.0, resting=True, request=Request.RESET).state is State.INACTIVE


def test_a_robot_that_swings_through_is_not_at_rest() -> None:
    stand = advance(Stand(State.ARMED), Flag.NONE, 0.0, resting=False, request=Request.DISARM)
    for now, resting in ((0.05, True), (0.12, False), (0.13, True), (0.2, True)):
        stand = advance(stand, Flag.NONE, now, resting=resting)
        assert stand.state is State.STOPPING
    assert advance(stand, Flag.NONE, 0.24, resting=True).state is State.INACTIVE


def test_one_that_never_rests_is_latched() -> None:
    stand = advance(Stand(State.STOPPING), Flag.NONE, REST_S, resting=False)
    assert (stand.state, stand.cause) == (State.STOPPED, Flag.MOVING)


@pytest.mark.parametrize(("changes", "words"), [
    ({"heartbeat": "warn"}, ["actions.heartbeat=warn", "looser than stop"]),
    ({"watchdog": "warn"}, ["actions.watchdog=warn", "looser than disarm"]),
    ({"hartbeat": "stop"}, ["'hartbeat'", "heartbeat"]),
    ({"operator": "stop"}, ["'operator'"]),
    ({"overrun": "fly"}, ["actions.overrun=fly", "warn, disarm, stop"]),
])
def test_actions_are_tightened_and_not_loosened(changes: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^actions") as refused:
        actions(changes)
    for word in words:
        assert word in str(refused.value)


def test_the_page_is_what_the_code_draws() -> None:
    begin, end = "<!-- drawn: robot_rl/stop.py -->\n", "\n<!-- end -->"
    text = DOC.read_text()
    assert text.split(begin)[1].split(end)[0] == drawn(), "put what robot_rl.stop.drawn() returns there"
