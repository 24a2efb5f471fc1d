"""Where a site of an MJCF is for given joints, without MuJoCo: for robots whose sensors are their joints alone.

Reads what a chain of bodies needs: includes, defaults, `frame`, positions, `quat`, `euler` and `axisangle`, hinges and
slides. An attribute on the chain that it does not read is refused.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from robot_rl.spec import POSE, RobotSpec, SpecError

UNREAD = ("xyaxes", "zaxis")


class Mjcf:
    """An MJCF file as far as a chain of bodies needs it. Raises SpecError naming file and element."""

    def __init__(self, mjcf: Path, names: Sequence[str]) -> None:
        self._file = mjcf
        self._root = root = _read(mjcf, mjcf.parent)
        compilers = root.findall("compiler")
        self._degrees = next((c.get("angle") for c in reversed(compilers) if c.get("angle")), "degree") == "degree"
        self._order = next((c.get("eulerseq") for c in reversed(compilers) if c.get("eulerseq")), None) or "xyz"
        self._defaults: dict[str, dict[str, dict[str, str]]] = {}
        for top in root.findall("default"):
            self._inherit(top, {})
        self._parents = {child: parent for parent in root.iter() for child in parent}
        self._known = {name: i for i, name in enumerate(names)}
        self.loose = False
        """Whether a free joint lies between: the robot's joints do not tell where the site is."""

    def _find(self, tag: str, name: str) -> ElementTree.Element:
        found = next((e for e in self._parents if e.tag == tag and e.get("name") == name), None)
        if found is None:
            raise SpecError(f"{self._file}: no {tag} '{name}'")
        return found

    def _above(self, element: ElementTree.Element) -> list[ElementTree.Element]:
        """The bodies and frames that hold an element, from the world on, itself last."""
        line = [element]
        while (parent := self._parents[line[0]]).tag in ("body", "frame"):
            line.insert(0, parent)
        return line

    def _steps(self, element: ElementTree.Element) -> list[np.ndarray | Step]:
        """What an element of the chain adds: a placement (4, 4), then its joints."""
        steps: list[np.ndarray | Step] = [self._placement(element)]
        for joint in element if element.tag == "body" else ():
            kind = "free" if joint.tag == "freejoint" else self._get(joint, "type") or "hinge"
            if joint.tag not in ("joint", "freejoint"):
                continue
            if kind == "ball":
                raise SpecError(f"{self._file}: joint '{joint.get('name')}' is a ball, which is not read")
            if kind == "free":
                self.loose = True
            else:
                name = joint.get("name", "")
                if name not in self._known:
                    raise SpecError(f"{self._file}: joint '{name}' is on the way, the robot has "
                                    f"{', '.join(self._known)}")
                hinge = kind == "hinge"
                rest = float(self._get(joint, "ref") or 0.0)
                axis = _numbers(self._get(joint, "axis") or "0 0 1")
                steps.append((self._known[name], hinge, axis / np.linalg.norm(axis),
                              _numbers(self._get(joint, "pos") or "0 0 0"),
                              np.deg2rad(rest) if hinge and self._degrees else rest))
        return steps

    def _placement(self, element: ElementTree.Element) -> np.ndarray:
        for key in UNREAD:
            if self._get(element, key):
                raise SpecError(f"{self._file}: {element.tag} '{element.get('name')}' {key}: write it as quat")
        place = np.eye(4)
        place[:3, 3] = _numbers(self._get(element, "pos") or "0 0 0")
        if text := self._get(element, "quat"):
            w, *vector = _numbers(text) / np.linalg.norm(_numbers(text))
            size = float(np.linalg.norm(vector))
            place[:3, :3] = rotation(np.array(vector) / size, 2 * np.arctan2(size, w)) if size else np.eye(3)
        elif text := self._get(element, "axisangle"):
            *direction, angle = _numbers(text)
            place[:3, :3] = rotation(np.array(direction) / np.linalg.norm(direction), self._angle(angle))
        elif text := self._get(element, "euler"):
            for letter, angle in zip(self._order, _numbers(text), strict=True):
                turn = rotation(np.eye(3)["xyz".index(letter.lower())], self._angle(angle))
                place[:3, :3] = place[:3, :3] @ turn if letter.islower() else turn @ place[:3, :3]
        return place

    def _angle(self, value: float) -> float:
        return float(np.deg2rad(value)) if self._degrees else value

    def _get(self, element: ElementTree.Element, key: str) -> str | None:
        """An attribute, from the element or from its default class."""
        if (own := element.get(key)) is not None:
            return own
        name = element.get("class")
        holder = self._parents.get(element)
        while name is None and holder is not None:
            name, holder = holder.get("childclass"), self._parents.get(holder)
        return self._defaults.get(name or "main", {}).get(element.tag, {}).get(key)

    def _inherit(self, default: ElementTree.Element, above: dict[str, dict[str, str]]) -> None:
        values = {tag: dict(attributes) for tag, attributes in above.items()}
        for child in default:
            if child.tag != "default":
                values.setdefault(child.tag, {}).update(child.attrib)
        self._defaults[default.get("class", "main")] = values
        for child in default.findall("default"):
            self._inherit(child, values)


class Chain(Mjcf):
    """The joints between a body, the frame, and a site. Angles rad, lengths m.

    Raises SpecError naming file and element. Joints of the chain that are not among `names` are refused.
    """

    def __init__(self, mjcf: Path, site: str, frame: str, names: Sequence[str]) -> None:
        super().__init__(mjcf, names)
        end, start = self._find("site", site), self._find("body", frame)
        above, below = self._above(start), self._above(end)
        path, back = [e for e in below if e not in above], [e for e in above if e not in below]
        self._path = [step for element in path for step in self._steps(element)]
        self._back = [step for element in back for step in self._steps(element)]

    def pose(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) m and orientation (4,) xyzw of the site in the frame, at joints (J,) as in `names`."""
        (place,) = self._places(joints[None])
        return place[:3, 3], quaternion(place[:3, :3])

    def positions(self, joints: np.ndarray) -> np.ndarray:
        """(N, 3) m of the site in the frame, at joints (N, J)."""
        return self._places(joints)[:, :3, 3]

    def _places(self, joints: np.ndarray) -> np.ndarray:
        """(N, 4, 4) of the site in the frame."""
        back = path = np.tile(np.eye(4), (len(joints), 1, 1))
        for one in self._back:
            back = back @ step(one, joints)
        for one in self._path:
            path = path @ step(one, joints)
        found: np.ndarray = np.linalg.solve(back, path)
        return found


Step = tuple[int, bool, np.ndarray, np.ndarray, float]
"""Which joint, whether it is a hinge, its axis (3,), its position (3,) and its reference."""


def guarded(robot: RobotSpec, mjcf: Path) -> Chain | None:
    """The chain to what the workspace of a robot guards; None where it guards nothing that its joints tell."""
    return None if robot.workspace is None else chains(robot, mjcf).get(robot.workspace.sensor)


def chains(robot: RobotSpec, mjcf: Path) -> dict[str, Chain]:
    """The pose sensors of a robot, by name, that its own joints tell; the others need somebody who looks."""
    found = {}
    for sensor in robot.sensors:
        if sensor.type == POSE and sensor.site is not None:
            chain = Chain(mjcf, sensor.site, sensor.frame, robot.names)
            if not chain.loose:
                found[sensor.name] = chain
    return found


def rotation(axis: np.ndarray, angle: float | np.ndarray) -> np.ndarray:
    """(..., 3, 3) turns by angles (...), rad, about a unit axis (3,)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angles = np.asarray(angle)[..., None, None]
    turn: np.ndarray = np.eye(3) + np.sin(angles) * cross + (1 - np.cos(angles)) * (cross @ cross)
    return turn


def quaternion(turn: np.ndarray) -> np.ndarray:
    """(4,) xyzw of a turn (3, 3), w not negative."""
    square = np.array([[turn[0, 0] - turn[1, 1] - turn[2, 2], 0, 0, 0],
                       [turn[0, 1] + turn[1, 0], turn[1, 1] - turn[0, 0] - turn[2, 2], 0, 0],
                       [turn[0, 2] + turn[2, 0], turn[1, 2] + turn[2, 1], turn[2, 2] - turn[0, 0] - turn[1, 1], 0],
                       [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1], np.trace(turn)]])
    found: np.ndarray = np.linalg.eigh(square)[1][:, -1]  # reads the lower triangle
    return found if found[3] >= 0 else -found


def step(one: np.ndarray | Step, joints: np.ndarray) -> np.ndarray:
    """(4, 4) of a placement, or (N, 4, 4) of a joint where it stands."""
    if isinstance(one, np.ndarray):
        return one
    index, hinge, axis, position, rest = one
    value = joints[:, index] - rest
    place = np.tile(np.eye(4), (len(joints), 1, 1))
    if hinge:
        place[:, :3, :3] = rotation(axis, value)
        place[:, :3, 3] = position - place[:, :3, :3] @ position
    else:
        place[:, :3, 3] = value[:, None] * axis
    return place


def _read(file: Path, folder: Path) -> ElementTree.Element:
    """An MJCF with what it includes in the places of the includes."""
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise SpecError(f"{file}: {error}") from error
    for holder in list(root.iter()):
        for child in list(holder):
            if child.tag == "include":
                place = list(holder).index(child)
                holder.remove(child)
                for i, part in enumerate(_read(folder / child.get("file", ""), folder)):
                    holder.insert(place + i, part)
    return root


def _numbers(text: str) -> np.ndarray:
    return np.array([float(word) for word in text.split()])
