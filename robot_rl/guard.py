"""A guard by kinematics: no command that brings links together, or the tool out of its box or to too high a speed.

Links are the collision geoms of the robot's MJCF as capsules and boxes, joined by the joints: no MuJoCo is needed.
Which of them may meet follows MuJoCo's own rules (contype, conaffinity, parents, exclude). Pure.
"""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robot_rl.kinematics import Mjcf, Step, guarded, step
from robot_rl.safety import Reason
from robot_rl.spec import RobotSpec, SpecError
from robot_rl.stop import Flag

SHARES = np.array([1.0, 0.75, 0.5, 0.25, 0.1])  # of a command, tried in this order
SAMPLES = np.linspace(0.0, 1.0, 33)  # along a capsule that is near a box
AHEAD_S = 0.1  # how far a commanded speed is thought on
ROUNDING = 1e-6


@dataclass(frozen=True)
class Hull:
    """One collision geom in its body's frame: a capsule about a segment, or a box (then `half` is set)."""

    name: str
    body: int
    ends: np.ndarray
    """(2, 3) m, in the body's frame; of a box its middle, twice."""
    radius: float
    half: np.ndarray | None = None
    """(3,) m."""
    turn: np.ndarray | None = None
    """(3, 3) of a box in its body's frame."""


class Links(Mjcf):
    """The bodies that a robot's joints move, and the pairs of their collision geoms that may meet.

    Bodies that hang on other joints (loose objects) and what stands in the world itself are left out. Raises SpecError
    for a geom that is no sphere, capsule, cylinder or box.
    """

    def __init__(self, mjcf: Path, names: Sequence[str]) -> None:
        super().__init__(mjcf, names)
        self._steps_of: list[list[np.ndarray | Step]] = []
        self._parents_of: list[int] = []
        self._welds: list[int] = []  # the body that each is fixed to; -1: the world
        self.hulls: list[Hull] = []
        self._bits: list[tuple[int, int]] = []
        self._names: list[str] = []
        for world in self._root.findall("worldbody"):
            self._grow(world, -1, [])
        excluded = {frozenset((e.get("body1"), e.get("body2"))) for e in self._root.iter("exclude")}
        self.pairs = [pair for pair in itertools.combinations(range(len(self.hulls)), 2)
                      if self._meet(*pair, excluded)]
        square = [hull.half is not None for hull in self.hulls]
        self._radii = np.array([hull.radius for hull in self.hulls])
        rows = [(a, b, column) for column, (a, b) in enumerate(self.pairs)]
        self._round = np.array([row for row in rows if not square[row[0]] and not square[row[1]]], int).reshape(-1, 3)
        self._square = [(a, b, column) if square[a] else (b, a, column) for a, b, column in rows
                        if square[a] or square[b]]
        both = [f"{self.hulls[a].name} and {self.hulls[b].name}" for a, b in self.pairs
                if square[a] and square[b]]
        if both:
            raise SpecError(f"{mjcf}: geoms {both[0]} are boxes that may meet: make one of them a capsule")

    def places(self, joints: np.ndarray) -> list[np.ndarray]:
        """(N, 4, 4) of each body in the world, at joints (N, J)."""
        found: list[np.ndarray] = []
        for parent, steps in zip(self._parents_of, self._steps_of, strict=True):
            place = found[parent] if parent >= 0 else np.tile(np.eye(4), (len(joints), 1, 1))
            for one in steps:
                place = place @ step(one, joints)
            found.append(place)
        return found

    def distances(self, joints: np.ndarray) -> np.ndarray:
        """(N, P) m between the two of each pair, at joints (N, J); below 0 where they overlap."""
        places = self.places(joints)
        ends = np.stack([np.einsum("nij,ej->nei", places[h.body][:, :3, :3], h.ends) + places[h.body][:, None, :3, 3]
                         for h in self.hulls], axis=1)
        out = np.full((len(joints), len(self.pairs)), np.inf)
        if len(self._round):
            one, other = (ends[:, self._round[:, side]].reshape(-1, 2, 3) for side in (0, 1))
            between = segments(one, other).reshape(len(joints), -1)
            out[:, self._round[:, 2]] = between - self._radii[self._round[:, :2]].sum(axis=1)
        for i, j, column in self._square:  # the box, the other
            box, at = self.hulls[i], ends[:, j]
            assert box.half is not None and box.turn is not None
            points = at[:, :1] + SAMPLES[:, None] * (at[:, 1:] - at[:, :1]) - ends[:, i, :1]
            out[:, column] = _box(points @ (places[box.body][:, :3, :3] @ box.turn), box.half).min(axis=1)
            out[:, column] -= self._radii[j]
        return out

    def _grow(self, element: ElementTree.Element, parent: int, before: list[np.ndarray | Step]) -> None:
        """Take in the bodies below an element; `before` holds the frames between it and the parent."""
        for child in element:
            if child.tag == "frame":
                self._grow(child, parent, [*before, self._placement(child)])
            elif child.tag == "body" and child.get("mocap") != "true" and self._ours(child):
                own = self._steps(child)
                number = len(self._names)
                self._names.append(child.get("name", ""))
                self._parents_of.append(parent)
                self._steps_of.append([*before, *own])
                fixed = len(own) == 1
                self._welds.append((self._welds[parent] if parent >= 0 else -1) if fixed else number)
                for geom in child.findall("geom"):
                    self._add(geom, number)
                self._grow(child, number, [])

    def _ours(self, body: ElementTree.Element) -> bool:
        return all(j.tag == "joint" and j.get("name") in self._known for j in body if j.tag in ("joint", "freejoint"))

    def _add(self, geom: ElementTree.Element, body: int) -> None:
        bits = int(self._get(geom, "contype") or 1), int(self._get(geom, "conaffinity") or 1)
        if bits == (0, 0):
            return
        name, kind = geom.get("name", "?"), self._get(geom, "type") or "sphere"
        size = np.array([float(word) for word in (self._get(geom, "size") or "0").split()])
        place = self._placement(geom)
        if kind not in ("sphere", "capsule", "cylinder", "box"):
            raise SpecError(f"{self._file}: geom '{name}' type={kind} may meet others: known are sphere, capsule, "
                            "cylinder, box")
        if text := self._get(geom, "fromto"):
            ends = np.array([float(word) for word in text.split()]).reshape(2, 3)
        else:
            reach = size[1] if kind in ("capsule", "cylinder") else 0.0
            ends = place[:3, 3] + np.outer([-reach, reach], place[:3, 2])
        box = kind == "box"
        self.hulls.append(Hull(name, body, ends, 0.0 if box else float(size[0]), size[:3] if box else None,
                               place[:3, :3] if box else None))
        self._bits.append(bits)

    def _meet(self, a: int, b: int, excluded: set[frozenset[str | None]]) -> bool:
        """Whether MuJoCo would look at a pair."""
        (type_a, with_a), (type_b, with_b) = self._bits[a], self._bits[b]
        i, j = self.hulls[a].body, self.hulls[b].body
        weld_i, weld_j = self._welds[i], self._welds[j]
        above = [self._welds[self._parents_of[w]] if w >= 0 and self._parents_of[w] >= 0 else -1
                 for w in (weld_i, weld_j)]
        neighbours = weld_i >= 0 and weld_j >= 0 and (weld_i == above[1] or weld_j == above[0])
        return (bool(type_a & with_b or type_b & with_a) and weld_i != weld_j and not neighbours
                and frozenset((self._names[i], self._names[j])) not in excluded)


class Guard:
    """What the kinematics of one robot say of a pose and of a command: nothing, unless its file wants a margin or a
    tool speed. Raises SpecError for an MJCF it cannot read.
    """

    def __init__(self, robot: RobotSpec, mjcf: Path) -> None:
        self._robot, self._told = robot, robot.supervisor
        wanted = self._told.margin is not None or self._told.tool_speed is not None
        self._tool = guarded(robot, mjcf) if wanted else None
        self._links = Links(mjcf, robot.names) if self._told.margin is not None else None
        if self._told.tool_speed is not None and self._tool is None:
            sensor = robot.workspace.sensor if robot.workspace else None
            raise SpecError(f"{mjcf}: supervisor.tool_speed={self._told.tool_speed} needs a workspace whose sensor "
                            f"(now {sensor}) is a site that the joints tell of")

    def check(self, position: np.ndarray) -> Flag:
        """COLLISION where links touch at the measured position (J,), rad or m."""
        if self._links is None or not self._links.pairs or not np.isfinite(position).all():
            return Flag.NONE
        return Flag.COLLISION if self._links.distances(position[None]).min() < 0 else Flag.NONE

    def limit(self, command: np.ndarray, last: np.ndarray, position: np.ndarray,
              elapsed_s: float) -> tuple[np.ndarray, Reason]:
        """So much of a command (C,) after `last` as is allowed: where it leads is thought through, seen at `position`.

        What is wrong already may get no worse. Efforts lead nowhere in particular: they pass.
        """
        interface = self._robot.command.interface
        if interface == "effort" or (self._links is None and self._tool is None):
            return command, Reason.NONE
        zero = last if interface == "position" else np.zeros_like(last)
        tried = np.concatenate([zero + SHARES[:, None] * (command - zero), zero[None]])
        poses = np.tile(position, (len(tried), 1))
        index = self._robot.actuated_index
        poses[:, index] = tried if interface == "position" else position[index] + AHEAD_S * tried
        fine = np.ones(len(tried), bool)
        if self._links is not None and self._links.pairs:
            near = self._links.distances(poses).min(axis=1)
            fine &= near >= min(self._told.margin or 0.0, near[-1]) - ROUNDING
        if self._tool is not None:
            places = self._tool.positions(poses)
            box = self._robot.workspace
            assert box is not None
            out = np.maximum(box.lower - places, places - box.upper).max(axis=1)
            fine &= out <= max(0.0, out[-1]) + ROUNDING
            if self._told.tool_speed is not None:
                seconds = elapsed_s if interface == "position" else AHEAD_S
                fine &= np.linalg.norm(places - places[-1], axis=1) <= self._told.tool_speed * seconds + ROUNDING
        best = int(np.argmax(fine))  # the last is always fine
        return (tried[best], Reason.TOOL) if best else (command, Reason.NONE)


def segments(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) distance between segments (N, 2, 3)."""
    u, v, w = a[:, 1] - a[:, 0], b[:, 1] - b[:, 0], a[:, 0] - b[:, 0]
    uu, vv, uv = (np.einsum("ni,ni->n", x, y) for x, y in ((u, u), (v, v), (u, v)))
    uw, vw = (np.einsum("ni,ni->n", x, w) for x in (u, v))
    best = np.full(len(a), np.inf)
    det = uu * vv - uv * uv
    safe = np.where(det > 1e-12, det, 1.0)
    inner = np.clip(np.where(det > 1e-12, (uv * vw - vv * uw) / safe, 0.0), 0.0, 1.0)
    for s in (inner, np.zeros(len(a)), np.ones(len(a))):  # the nearest to each of these, and back
        t = np.clip(np.where(vv > 0, (s * uv + vw) / np.where(vv > 0, vv, 1.0), 0.0), 0.0, 1.0)
        s = np.clip(np.where(uu > 0, (t * uv - uw) / np.where(uu > 0, uu, 1.0), 0.0), 0.0, 1.0)
        gap = w + s[:, None] * u - t[:, None] * v
        best = np.minimum(best, np.linalg.norm(gap, axis=1))
    return best


def _box(points: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Distance of points (..., 3) in a box's frame from it, below 0 inside."""
    over = np.abs(points) - half
    outside: np.ndarray = np.linalg.norm(np.maximum(over, 0.0), axis=-1)
    return outside + np.minimum(over.max(axis=-1), 0.0)
