"""When a robot may be commanded, and when it is stopped: one pure state machine. No input, output or clock of its own.

`Flag` names what can be wrong (a flag that is not set means fine), `Action` what is done about it, `advance` is the
machine. `objections` lists every reason against arming at once. `drawn` writes all of it down for docs/safety.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, IntFlag

REST_S = 5.0  # by then a robot that is being stopped is at rest; else the stop is latched
DWELL_S = 0.1  # a robot that swings is slow at its turning points


class State(Enum):
    """Where the supervisor stands."""

    INACTIVE = "inactive"
    ARMED = "armed"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Request(Enum):
    """What an operator asks for."""

    NONE = "none"
    ARM = "arm"
    DISARM = "disarm"
    STOP = "stop"
    RESET = "reset"


class Action(IntEnum):
    """What a flag does to an armed robot, mildest first."""

    WARN = 0
    DISARM = 1
    STOP = 2


class Flag(IntFlag):
    """What is wrong."""

    NONE = 0
    PROTECTIVE_STOP = 1
    DEADMAN = 2
    HEARTBEAT = 4
    FLOOD = 8
    COMMAND = 16
    SENSORS = 32
    READINGS = 64
    WORKSPACE = 128
    COLLISION = 256
    AUTHORITY = 512
    WATCHDOG = 1024
    OVERRUN = 2048
    CLAMPED = 4096
    OPERATOR = 8192
    MOVING = 16384
    FROZEN = 32768

    def names(self) -> tuple[str, ...]:
        """The set flags, in lower case."""
        return tuple(f.name.lower() for f in FLAGS if f in self and f.name)


FLAGS = tuple(f for f in Flag if f)

MEANING = {
    Flag.PROTECTIVE_STOP: "the protective stop is pressed",
    Flag.DEADMAN: "the deadman switch is open, or silent",
    Flag.HEARTBEAT: "the policy is in control and has stopped sending commands",
    Flag.FLOOD: "commands come more than twice as often as joint states",
    Flag.COMMAND: "a command is malformed or not finite",
    Flag.SENSORS: "a sensor has never spoken, or is silent for longer than its limit",
    Flag.READINGS: "a reading is NaN or infinite, a joint is missing, or jumps further than it can move",
    Flag.FROZEN: "joint states repeat themselves to the last bit although position commands move",
    Flag.WORKSPACE: "the guarded frame is outside its box",
    Flag.COLLISION: "two links, or a link and the base, are closer than the margin",
    Flag.AUTHORITY: "somebody else publishes on the robot's command topic, or two on the supervisor's",
    Flag.WATCHDOG: "nobody downstream times out when commands stop",
    Flag.OVERRUN: "the supervisor itself was late",
    Flag.CLAMPED: "commands were limited within the last second",
    Flag.OPERATOR: "somebody asked for a stop",
    Flag.MOVING: f"the robot did not come to rest within {REST_S:g} s",
}

DEFAULTS: Mapping[Flag, Action] = dict.fromkeys(FLAGS, Action.STOP) | {
    Flag.WATCHDOG: Action.DISARM, Flag.OVERRUN: Action.WARN, Flag.CLAMPED: Action.WARN}
FIXED = Flag.OPERATOR | Flag.MOVING
"""Causes that are no condition: they come of a request or of the machine itself."""


@dataclass(frozen=True)
class Stand:
    """Where the machine stands."""

    state: State = State.INACTIVE
    cause: Flag = Flag.NONE
    """Why it was stopped."""
    latched: bool = False
    """Whether the stop lasts until somebody resets it."""
    since_s: float = 0.0
    """When it came into this state, on the caller's clock."""
    slow_s: float | None = None
    """Since when a robot that is being stopped is at rest."""
    refused: tuple[str, ...] = ()
    """Every reason against the last request; empty when it was granted, or there was none."""


def actions(changes: Mapping[str, str]) -> dict[Flag, Action]:
    """The defaults with a robot's `changes` by flag name. ValueError for one that loosens, or an unknown name."""
    chosen = dict(DEFAULTS)
    known = {flag.name.lower(): flag for flag in FLAGS if flag.name and not flag & FIXED}
    for name, word in changes.items():
        if name not in known:
            raise ValueError(f"actions: '{name}' is no flag: known are {', '.join(known)}")
        words = [action.name.lower() for action in Action]
        if word not in words:
            raise ValueError(f"actions.{name}={word}: known are {', '.join(words)}")
        action, default = Action(words.index(word)), DEFAULTS[known[name]]
        if action < default:
            raise ValueError(f"actions.{name}={word} is looser than {default.name.lower()}, the default: "
                             "it can be tightened only")
        chosen[known[name]] = action
    return chosen


def unwatched(watchdog: str, interface: str, acknowledged: bool) -> Flag:
    """WATCHDOG where nobody downstream stops a robot whose commands stop; of positions that may be `acknowledged`."""
    excused = acknowledged and interface == "position"
    return Flag.WATCHDOG if watchdog == "none" and not excused else Flag.NONE


def demanding(flags: Flag, table: Mapping[Flag, Action], least: Action) -> Flag:
    """Those flags whose action is at least `least`."""
    found = Flag.NONE
    for flag in FLAGS:
        if flag in flags and table[flag] >= least:
            found |= flag
    return found


def objections(flags: Flag, table: Mapping[Flag, Action], least: Action = Action.DISARM) -> tuple[str, ...]:
    """Every reason against arming; with `least` STOP those against a reset."""
    against = demanding(flags, table, least)
    return tuple(f"{flag.name.lower()}: {MEANING[flag]}" for flag in FLAGS if flag in against and flag.name)


def advance(stand: Stand, flags: Flag, now_s: float, *, resting: bool, request: Request = Request.NONE,
            table: Mapping[Flag, Action] = DEFAULTS) -> Stand:
    """The next stand: `flags` hold now, `resting` says that no commanded joint moves."""
    stops, ends = demanding(flags, table, Action.STOP), demanding(flags, table, Action.DISARM)
    stand = replace(stand, refused=())
    if request is Request.STOP and not (stand.state is State.STOPPED and stand.latched):
        return Stand(State.STOPPING, stand.cause | Flag.OPERATOR | stops, True, now_s)
    if stand.state is State.INACTIVE:
        return _inactive(stand, flags, now_s, request, table)
    if stand.state is State.ARMED:
        if ends:
            return Stand(State.STOPPING, ends, bool(stops), now_s, refused=_against(request, State.STOPPING))
        if request is Request.DISARM:
            return Stand(State.STOPPING, Flag.NONE, False, now_s)
        return replace(stand, refused=_against(request, stand.state))
    if stand.state is State.STOPPING:
        return _stopping(stand, stops, now_s, resting, request)
    if request is Request.RESET:
        against = objections(flags, table, Action.STOP)
        return replace(stand, refused=against) if against else Stand(since_s=now_s)
    return replace(stand, refused=_against(request, stand.state))


def _inactive(stand: Stand, flags: Flag, now_s: float, request: Request, table: Mapping[Flag, Action]) -> Stand:
    if request is Request.ARM:
        against = objections(flags, table)
        return replace(stand, refused=against) if against else Stand(State.ARMED, since_s=now_s)
    return replace(stand, refused=_against(request, stand.state))


def _stopping(stand: Stand, stops: Flag, now_s: float, resting: bool, request: Request) -> Stand:
    """The stop behaviour, until the robot has been at rest for a moment; a worse cause may come on the way."""
    cause, latched = stand.cause | stops, stand.latched or bool(stops)
    slow_s = (now_s if stand.slow_s is None else stand.slow_s) if resting else None
    refused = _against(request, stand.state)
    if slow_s is not None and now_s - slow_s >= DWELL_S:
        return Stand(State.STOPPED, cause, True, now_s, refused=refused) if latched else Stand(
            since_s=now_s, refused=refused)
    if now_s - stand.since_s >= REST_S:
        return Stand(State.STOPPED, cause | Flag.MOVING, True, now_s, refused=refused)
    return replace(stand, cause=cause, latched=latched, slow_s=slow_s, refused=refused)


def _against(request: Request, state: State) -> tuple[str, ...]:
    """Why a request does not suit a state; disarming what is not armed is granted."""
    if request in (Request.NONE, Request.STOP) or (request is Request.DISARM and state is not State.STOPPED):
        return ()
    first = {State.STOPPED: "reset it first", State.STOPPING: "wait until the robot is at rest"}.get(state, "")
    if request is Request.RESET and state is not State.STOPPING:
        first = "there is nothing to reset"
    return (f"{request.value}: it is {state.value}" + (f", {first}" if first else ""),)


def drawn() -> str:
    """Flags, actions and transitions in Markdown, found by asking `advance` for every state, flag and request."""
    lines = ["| flag | set when | default action | against |", "|---|---|---|---|"]
    for flag in FLAGS:
        if not flag & FIXED and flag.name:
            against = {Action.WARN: "nothing", Action.DISARM: "arming"}.get(DEFAULTS[flag], "arming, reset")
            lines.append(f"| `{flag.name.lower()}` | {MEANING[flag]} | {DEFAULTS[flag].name.lower()} | {against} |")
    lines += ["", "```mermaid", "stateDiagram-v2", "    [*] --> inactive"]
    lines += [f"    {before} --> {after}: {' or '.join(words)}" for (before, after), words in transitions().items()]
    return "\n".join([*lines, "```"])


def transitions() -> dict[tuple[str, str], list[str]]:
    """What leads from one state to another: a request, an action's flag, or time."""
    edges: dict[tuple[str, str], list[str]] = {}
    for name, stand in _stands().items():
        for label, after in _outcomes(stand).items():
            if after.state is not stand.state:
                words = edges.setdefault((stand.state.value, after.state.value), [])
                said = f"{name} {label}" if stand.state is State.STOPPING else label
                if said not in words:
                    words.append(said)
    return edges


def _stands() -> dict[str, Stand]:
    """One of each kind, by what the diagram adds in words."""
    return {"inactive": Stand(), "armed": Stand(State.ARMED), "stopped": Stand(State.STOPPED, Flag.SENSORS, True),
            "latched,": Stand(State.STOPPING, Flag.SENSORS, True), "not latched,": Stand(State.STOPPING)}


def _outcomes(stand: Stand) -> dict[str, Stand]:
    """Where a stand leads, by what happens."""
    found = {}
    for request in Request:
        if request is not Request.NONE:
            found[request.value] = advance(stand, Flag.NONE, 0.0, resting=False, request=request)
    for flag in FLAGS:
        if not flag & FIXED:
            found[f"a flag of action {DEFAULTS[flag].name.lower()}"] = advance(stand, flag, 0.0, resting=False)
    rested = advance(stand, Flag.NONE, 0.0, resting=True)
    found["at rest"] = advance(rested, Flag.NONE, DWELL_S, resting=True)
    found[f"not at rest after {REST_S:g} s"] = advance(stand, Flag.NONE, REST_S, resting=False)
    return found
