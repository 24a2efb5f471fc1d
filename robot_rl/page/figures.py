"""Charts as SVG text, drawn without a plotting library.

Colours are left to the page's style sheet (a series is a class name), so charts follow light and dark. Every chart is
`WIDTH` units wide: one unit is about one pixel of a phone's screen, which keeps the text readable there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike

WIDTH, LEFT, RIGHT, BOTTOM = 380, 42, 12, 40
HEAD = 24  # the y axis' label
TOP_AXIS = 18  # a second x axis' numbers


@dataclass(frozen=True)
class Axis:
    """A range of numbers with a label; `log` needs low > 0, `reverse` puts low at the right."""

    low: float
    high: float
    label: str
    log: bool = False
    reverse: bool = False
    percent: bool = False

    def share(self, values: ArrayLike) -> np.ndarray:
        """Where values stand between low (0) and high (1); what lies outside is moved to the edge."""
        v = np.clip(np.asarray(values, float), self.low, self.high)
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        share = ((np.log(v) if self.log else v) - low) / (high - low)
        return 1.0 - share if self.reverse else share

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers in the range."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = math.log10(self.high / self.low) < 1.5
            found = [m * 10.0**e for e in exponents for m in ((1, 2, 5) if few else (1,))]
        else:
            step = _round_step((self.high - self.low) / about)
            found = [step * k for k in range(math.ceil(self.low / step - 1e-9), int(self.high / step + 1e-9) + 1)]
        return [t for t in found if self.low * (1 - 1e-9) <= t <= self.high * (1 + 1e-9) or t == 0 >= self.low]

    def text(self, tick: float) -> str:
        """A tick's number."""
        return f"{tick * 100:.0f}%" if self.percent else number(tick)


def span(*values: ArrayLike, pad: float = 0.05, include: Sequence[float] = ()) -> tuple[float, float]:
    """The range of all finite values and of `include`, widened by a share `pad`; (0, 1) when there are none."""
    parts = [np.ravel(np.asarray(v, float)) for v in values] + [np.array(include, float)]
    every = np.concatenate(parts)
    every = every[np.isfinite(every)]
    if not len(every):
        return 0.0, 1.0
    low, high = float(every.min()), float(every.max())
    wide = (high - low) or abs(high) or 1.0
    return low - pad * wide, high + pad * wide


def number(value: float) -> str:
    """Short text of a number: 12k, 1.5M, 0.05."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.10g}".replace("-", "\N{MINUS SIGN}")


class Chart:
    """One pair of axes. `equal`: a unit is as long on y as on x; `top`: a second x axis of (x, text) and a label."""

    def __init__(self, x: Axis, y: Axis, *, height: float = 170, equal: bool = False,
                 top: tuple[Sequence[tuple[float, str]], str] | None = None) -> None:
        self.x, self.y, self._top = x, y, top
        self._width = WIDTH - LEFT - RIGHT
        self._height = self._width * (y.high - y.low) / (x.high - x.low) if equal else height
        self._head = HEAD + (TOP_AXIS if top else 0)
        self._parts: list[str] = []

    def line(self, x: ArrayLike, y: ArrayLike, series: str, title: str = "") -> None:
        """A line (N,), broken where a value is not finite."""
        px, py = self._at(x, y)
        points = np.stack([px, py], 1)
        commands = [f"M{_path(*thin(points[part], 0.4).T)}" for part in _runs(np.isfinite(points).all(1))]
        if commands:
            self._add(f'<path class="line {series}" d="{"".join(commands)}">{_title(title)}</path>')

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, series: str) -> None:
        """The area between two lines (N,)."""
        px, bottom = self._at(x, low)
        _, top = self._at(x, high)
        for part in _runs(np.isfinite(px) & np.isfinite(bottom) & np.isfinite(top)):
            there, back = _path(px[part], top[part]), _path(px[part][::-1], bottom[part][::-1])
            self._add(f'<path class="band {series}" d="M{there}L{back}Z"/>')

    def dots(self, x: ArrayLike, y: ArrayLike, series: str, titles: Sequence[str] = (), radius: float = 2.6) -> None:
        """A dot for each (N,) point."""
        px, py = self._at(x, y)
        for i in np.flatnonzero(np.isfinite(px) & np.isfinite(py)).tolist():
            self._add(f'<circle class="dot {series}" cx="{px[i]:.1f}" cy="{py[i]:.1f}" r="{radius}">'
                      f'{_title(titles[i] if len(titles) else "")}</circle>')

    def cross(self, x: float, y: float, series: str, title: str = "") -> None:
        """A small diagonal cross."""
        (px,), (py,) = self._at([x], [y])
        self._add(f'<path class="mark {series}" d="M{px - 3:.1f},{py - 3:.1f}l6,6m0,-6l-6,6">{_title(title)}</path>')

    def circle(self, x: float, y: float, radius: float, series: str, title: str = "") -> None:
        """A circle of `radius` in units of the x axis (for charts with `equal`)."""
        (px,), (py,) = self._at([x], [y])
        size = radius * self._width / (self.x.high - self.x.low)
        self._add(f'<circle class="ring {series}" cx="{px:.1f}" cy="{py:.1f}" r="{size:.1f}">{_title(title)}</circle>')

    def rule(self, y: float, label: str) -> None:
        """A dashed horizontal line with a label at its left end."""
        _, (py,) = self._at([self.x.low], [y])
        self._add(f'<path class="rule" d="M{LEFT},{py:.1f}h{self._width}"/>'
                  f'<text class="note" x="{LEFT + 5}" y="{py - 5:.1f}">{escape(label)}</text>')

    def histogram(self, edges: ArrayLike, counts: ArrayLike, series: str) -> None:
        """Counts (N,) between edges (N+1,) as a filled outline; zero counts stand on the axis."""
        px, py = self._at(edges, np.append(np.maximum(counts, self.y.low), self.y.low))
        floor = self._head + self._height
        tops = "".join(f"V{y:.1f}H{x:.1f}" for x, y in zip(px[1:], py[:-1], strict=True))
        self._add(f'<path class="area {series}" d="M{px[0]:.1f},{floor:.1f}{tops}V{floor:.1f}"/>')

    def flag(self, x: float, series: str, label: str, row: int, left: bool) -> None:
        """A vertical line at x with its label beside it, where there is room, in a row (0 is the highest)."""
        (px,), _ = self._at([x], [self.y.low])
        y, floor = self._head + 11 + 15 * row, self._head + self._height
        right = px > LEFT + 75 if left else px > WIDTH - RIGHT - 75
        self._add(f'<path class="flag {series}" d="M{px:.1f},{y - 8:.1f}V{floor:.1f}"/>'
                  f'<text class="{series} note" x="{px + (-4 if right else 4):.1f}" y="{y:.1f}" '
                  f'text-anchor="{"end" if right else "start"}">{escape(label)}</text>')

    def note(self, x: float, y: float, text: str) -> None:
        """A small square with words at its right."""
        (px,), (py,) = self._at([x], [y])
        self._add(f'<rect class="bar ink" x="{px - 3:.1f}" y="{py - 3:.1f}" width="6" height="6"/>')
        self._add(f'<text class="note" x="{px + 8:.1f}" y="{py + 4:.1f}">{escape(text)}</text>')

    def svg(self, says: str) -> str:
        """The chart; `says` is what it shows, for those who do not see it."""
        height = self._head + self._height + BOTTOM
        return (f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(says)}">'
                f'{self._axes()}{"".join(self._parts)}</svg>')

    def _axes(self) -> str:
        floor, out = self._head + self._height, []
        for tick in self.y.ticks(max(2, round(self._height / 40))):
            _, (y,) = self._at([self.x.low], [tick])
            out.append(f'<path class="grid" d="M{LEFT},{y:.1f}h{self._width}"/><text class="tick" x="{LEFT - 6}" '
                       f'y="{y + 4:.1f}" text-anchor="end">{self.y.text(tick)}</text>')
        for tick in self.x.ticks(6):
            (x,), _ = self._at([tick], [self.y.low])
            out.append(f'<path class="grid" d="M{x:.1f},{self._head}v{self._height:.1f}"/>'
                       f'<text class="tick" x="{x:.1f}" y="{floor + 15:.1f}" text-anchor="middle">'
                       f'{self.x.text(tick)}</text>')
        out.append(f'<path class="axis" d="M{LEFT},{floor:.1f}h{self._width}"/>'
                   f'<text class="label" x="0" y="12">{escape(self.y.label)}</text>'
                   f'<text class="label" x="{WIDTH - RIGHT}" y="{floor + 33:.1f}" text-anchor="end">'
                   f'{escape(self.x.label)}</text>')
        return "".join(out) + self._second()

    def _second(self) -> str:
        if not self._top:
            return ""
        ticks, label = self._top
        out = [f'<path class="axis" d="M{LEFT},{self._head}h{self._width}"/>'
               f'<text class="label" x="{WIDTH - RIGHT}" y="12" text-anchor="end">{escape(label)}</text>']
        for at, text in ticks:
            (x,), _ = self._at([at], [self.y.low])
            out.append(f'<path class="axis" d="M{x:.1f},{self._head}v-4"/><text class="tick" x="{x:.1f}" '
                       f'y="{self._head - 7}" text-anchor="middle">{escape(text)}</text>')
        return "".join(out)

    def _at(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Points (N,), (N,) of the picture."""
        return (LEFT + self._width * self.x.share(x), self._head + self._height * (1.0 - self.y.share(y)))

    def _add(self, part: str) -> None:
        self._parts.append(part)


def intervals(rows: Sequence[tuple[str, str, float, float, float]], label: str, says: str, axis: Axis | None = None
              ) -> str:
    """Dots with whiskers: (name, series, low, value, high) a row; on a scale of shares unless another is given."""
    step, left, width = 46, 8, WIDTH - 24
    floor, ticks = step * len(rows) + 6, axis.ticks(4) if axis else [0, 0.25, 0.5, 0.75, 1]
    axis, out = axis or Axis(0, 1, label, percent=True), []
    for tick in ticks:
        x = left + width * float(axis.share(tick))
        anchor = "start" if tick == axis.low else "end" if tick == axis.high else "middle"
        out.append(f'<path class="grid" d="M{x:.1f},4V{floor}"/><text class="tick" x="{x:.1f}" y="{floor + 15}" '
                   f'text-anchor="{anchor}">{axis.text(tick)}</text>')
    for i, (name, series, low, value, high) in enumerate(rows):
        y, (a, x, b) = step * i + 34, (left + width * axis.share([low, value, high]))
        said = f"{value:.1%}" if axis.percent else f"{value:.3f}"
        out.append(f'<text class="name halo" x="{left}" y="{y - 14}">{escape(name)}</text><text class="name halo" '
                   f'x="{left + width}" y="{y - 14}" text-anchor="end">{said}</text>'
                   f'<path class="whisker {series}" d="M{a:.1f},{y}H{b:.1f}M{a:.1f},{y - 5}v10M{b:.1f},{y - 5}v10"/>'
                   f'<circle class="dot {series}" cx="{x:.1f}" cy="{y}" r="5.5"/>')
    out.append(f'<path class="axis" d="M{left},{floor}h{width}"/><text class="label" x="{left + width}" '
               f'y="{floor + 33}" text-anchor="end">{escape(label)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {floor + BOTTOM}" role="img" aria-label="{escape(says)}">{"".join(out)}</svg>'


def bars(rows: Mapping[str, Sequence[tuple[str, float]]], label: str, says: str) -> str:
    """Horizontal bars of shares: by name, (series, share) each; the value is written at the bar's end."""
    most = max([v for values in rows.values() for _, v in values] + [1e-3])
    out, y, width = [], 0, WIDTH - 64
    for name, values in rows.items():
        out.append(f'<text class="name" x="0" y="{y + 14}">{escape(name)}</text>')
        y += 20
        for series, value in values:
            out.append(f'<rect class="bar {series}" x="0" y="{y}" width="{max(width * value / most, 1):.1f}" '
                       f'height="11" rx="1.5"/><text class="tick" x="{width * value / most + 6:.1f}" y="{y + 10}">'
                       f'{100 * value:.2g}%</text>')
            y += 14
        y += 8
    out.append(f'<text class="label" x="0" y="{y + 12}">{escape(label)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {y + 20}" role="img" aria-label="{escape(says)}">{"".join(out)}</svg>'


def lanes(rows: Mapping[str, Sequence[tuple[float, float]]], x: Axis, series: str, says: str) -> str:
    """When each of some things was so: by name, (from, to) on the x axis each, a row under the other."""
    out, y, width = [], 0, WIDTH - RIGHT
    for name, spans in rows.items():
        out.append(f'<text class="name" x="0" y="{y + 14}">{escape(name)}</text>'
                   f'<path class="grid" d="M0,{y + 26}h{width}"/>')
        for low, high in spans:
            a, b = (width * x.share([low, high])).tolist()
            out.append(f'<rect class="bar {series}" x="{a:.1f}" y="{y + 20}" width="{max(b - a, 1.2):.1f}" '
                       f'height="11" rx="1.5"/>')
        y += 40
    for tick in x.ticks(6):
        at = width * float(x.share(tick))
        anchor = "start" if at < 10 else "end" if at > width - 10 else "middle"
        out.append(f'<text class="tick" x="{at:.1f}" y="{y + 12}" text-anchor="{anchor}">{x.text(tick)}</text>')
    out.append(f'<path class="axis" d="M0,{y - 2}h{width}"/><text class="label" x="{width}" y="{y + 30}" '
               f'text-anchor="end">{escape(x.label)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {y + 38}" role="img" aria-label="{escape(says)}">{"".join(out)}</svg>'


def outline(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) points as about `most` of them, with the lowest and the highest of each stretch; fewer are as they are."""
    if len(x) <= most:
        return x, y
    wide = -(-2 * len(x) // most)
    starts = np.arange(0, len(x), wide)
    finite = np.isfinite(y)
    low, high = np.where(finite, y, np.inf), np.where(finite, y, -np.inf)
    kept = {i for a in starts.tolist() for i in (a + int(low[a:a + wide].argmin()), a + int(high[a:a + wide].argmax()))}
    places = np.array(sorted(kept))
    return x[places], y[places]


def thin(points: np.ndarray, least: float) -> np.ndarray:
    """(N, D) points without those nearer than `least` to the one kept before; the last one always stays."""
    if len(points) < 3:
        return points
    kept, rows = [0], points.tolist()
    for i in range(1, len(rows) - 1):
        if math.dist(rows[i], rows[kept[-1]]) >= least:
            kept.append(i)
    return points[[*kept, len(points) - 1]]


def _round_step(rough: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _runs(good: np.ndarray) -> Iterable[slice]:
    """Slices of consecutive True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(int), [0]])))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
