"""Plots as SVG text: two axes, points, lines. Just what the reports need, and no dependency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 56


@dataclass(frozen=True)
class Scale:
    """Maps values to places along an axis.

    Attributes:
        low: Smallest value shown.
        high: Largest value shown.
        log: Whether equal ratios are equally far apart.
    """

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``."""
        low, high, value = (self._raw(v) for v in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def _raw(self, value: float) -> float:
        return math.log10(max(value, 1e-30)) if self.log else value

    def ticks(self) -> list[float]:
        """Four to nine round values within the range."""
        if self.log:
            first, last = math.floor(self._raw(self.low)), math.ceil(self._raw(self.high))
            for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
                found = [step * 10.0**decade for decade in range(first, last + 1) for step in steps]
                found = [v for v in found if self.low <= v <= self.high]
                if len(found) >= 4:
                    return found
        span = (self.high - self.low) or 1.0
        step = 10.0 ** math.floor(math.log10(span / 4))
        step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def spanning(values: Sequence[float], *, log: bool = False, margin: float = 0.08) -> Scale:
    """A scale that holds all values with some room at both ends."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** margin, 1.15)
        return Scale(low / room, high * room, log=True)
    room = (high - low) * margin or 1.0
    return Scale(low - room, high + room)


@dataclass
class Plot:
    """One plot; add to it, then take its text.

    Attributes:
        x: Horizontal scale.
        y: Vertical scale.
        width: Of the drawing in pixels.
        height: Of the drawing in pixels.
    """

    x: Scale
    y: Scale
    width: int = 560
    height: int = 300
    _parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = self.width - _LEFT - _RIGHT
        up = self.height - _TOP - _BOTTOM
        return _LEFT + across * self.x.place(x), self.height - _BOTTOM - up * self.y.place(y)

    def axes(self, x_name: str, y_name: str, x_ticks: Sequence[tuple[float, str]]) -> None:
        """Grid, tick labels and names; horizontal ticks are given, vertical ones found."""
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        for value in self.y.ticks():
            _, y = self.at(self.x.low, value)
            self._parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
            self.text(_LEFT - 6, y + 4, f"{value:.4g}", anchor="end")
        tilted = len(x_ticks) > 9
        for value, label in x_ticks:
            x, _ = self.at(value, self.y.low)
            turn = f' transform="rotate(-40 {x:.1f} {bottom + 14})"' if tilted else ""
            anchor = "end" if tilted else "middle"
            self._parts.append(
                f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="{anchor}"{turn}>'
                f"{escape(label)}</text>"
            )
        self._parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
        self.text((_LEFT + right) / 2, self.height - 4, x_name, anchor="middle")
        middle = (_TOP + bottom) / 2
        self._parts.append(
            f'<text x="12" y="{middle:.1f}" text-anchor="middle" '
            f'transform="rotate(-90 12 {middle:.1f})">{escape(y_name)}</text>'
        )

    def text(self, x: float, y: float, text: str, anchor: str = "start", style: str = "") -> None:
        """A label at pixels."""
        kind = f' class="{style}"' if style else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'
        )

    def line(
        self, points: Sequence[tuple[float, float]], style: str, *, steps: bool = False
    ) -> None:
        """A line through points; with ``steps`` it only turns at right angles."""
        path = ""
        for index, point in enumerate(points):
            x, y = self.at(*point)
            if not index:
                path = f"M{x:.1f} {y:.1f}"
            else:
                path += f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}"
        self._parts.append(f'<path class="line {style}" d="{path}"/>')

    def dot(self, x: float, y: float, style: str, tip: str, radius: float = 4.5) -> None:
        """A point with a text that shows when it is pointed at."""
        cx, cy = self.at(x, y)
        self._parts.append(
            f'<circle class="dot {style}" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius}">'
            f"<title>{escape(tip)}</title></circle>"
        )

    def band(self, x: float, label: str) -> None:
        """A vertical mark behind the points, with its name at the top."""
        place, _ = self.at(x, self.y.low)
        bottom = self.height - _BOTTOM
        self._parts.insert(
            0,
            f'<rect class="band" x="{place - 11:.1f}" y="{_TOP}" width="22" '
            f'height="{bottom - _TOP}"/>',
        )
        edge = "end" if place > self.width * 0.7 else "start"
        self.text(place + (13 if edge == "start" else -13), _TOP + 11, label, edge, "note")

    def svg(self, name: str) -> str:
        """The drawing; ``name`` is read to those who cannot see it."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(name)}">{"".join(self._parts)}</svg>'
        )


def heat_map(cells: Sequence[Sequence[float]], name: str, side: int = 260) -> str:
    """Shares from 0 to 1 as shades; one path for each shade keeps the page small."""
    rows, columns = len(cells), len(cells[0])
    scale = side / max(rows, columns)
    shades: dict[int, list[str]] = {}
    for y, row in enumerate(cells):
        for x, share in enumerate(row):
            if share > 0:
                level = min(5, math.ceil(share * 5))
                shades.setdefault(level, []).append(f"M{x} {y}h1v1h-1z")
    paths = "".join(
        f'<path fill-opacity="{level / 5:.1f}" d="{"".join(squares)}"/>'
        for level, squares in sorted(shades.items())
    )
    return (
        f'<svg class="map" viewBox="0 0 {columns} {rows}" role="img" aria-label="{escape(name)}" '
        f'style="width:{columns * scale:.0f}px;height:{rows * scale:.0f}px" '
        f'shape-rendering="crispEdges">{paths}</svg>'
    )
