"""The report as an SVG bar chart that reads on light and dark ground."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from .report import Figure, Report, target, value

WIDTH, LEFT, RIGHT = 860, 290, 190
ROW, BAR = 26, 14

# The style carries no fixed ground, so a page's own shows through; the words "missed" and the tick
# of the target say what the colours say.
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.faint { fill: #59636e; font-size: 12px; }
.grid { stroke: #d1d9e0; }
.bar { fill: #0969da; }
.missed { fill: #bc4c00; }
.target { stroke: #1f2328; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .faint { fill: #9198a1; }
  .grid { stroke: #3d444d; }
  .bar { fill: #4493f8; }
  .missed { fill: #f0883e; }
  .target { stroke: #e6edf3; }
}
"""


def draw(report: Report) -> str:
    """Rates as multiples of H on a logarithmic scale, then the rest against their targets."""
    rates = [each for each in report.figures if each.ratio is not None]
    others = [each for each in report.figures if each.ratio is None and each.runs]
    parts: list[str] = []
    y = 24
    if rates:
        top = max(max(each.ratio or 1, each.row.target or 1) for each in rates)
        y = _rates(parts, rates, decades=max(1.0, math.log10(top)), y=y)
    if others:
        y = _others(parts, others, y + 24 * bool(rates))
    parts.append(_text(16, y + 12, f"{report.about['machine']}", "faint"))
    parts.append(_text(16, y + 30, f"{report.about['generator']}", "faint"))
    height = y + 46
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="Benchmark figures of taskcast_trio">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _rates(parts: list[str], figures: list[Figure], *, decades: float, y: int) -> int:
    parts.append(_text(16, y, "Multiples of H, a bare ASGI app on stock Hypercorn", "title"))
    parts.append(_text(16, y + 18, "longer is better; the tick is the target", "faint"))
    span = WIDTH - LEFT - RIGHT
    bottom = y + 40 + ROW * len(figures)

    def x(ratio: float) -> float:
        return LEFT + span * max(0.0, math.log10(max(ratio, 1))) / decades

    for decade in range(int(decades) + 1):
        at = x(10.0**decade)
        parts.append(_line(at, y + 38, bottom, "grid"))
        parts.append(_text(at, y + 34, f"{10**decade:,}", "faint", anchor="middle"))
    for place, each in enumerate(figures):
        assert each.ratio is not None
        tick = None if each.row.target is None else x(each.row.target)
        label = f"{value(each.ratio)} H"
        parts += _bar(each, y + 44 + ROW * place, x(each.ratio), tick, label)
    return bottom + 16


def _others(parts: list[str], figures: list[Figure], y: int) -> int:
    parts.append(_text(16, y, "Time and memory, as shares of the target", "title"))
    parts.append(_text(16, y + 18, "shorter is better; no bar where there is no target", "faint"))
    span = WIDTH - LEFT - RIGHT

    def x(share: float) -> float:
        return LEFT + span * min(share, 2.0) / 2

    for place, each in enumerate(figures):
        assert each.median is not None
        wanted = each.row.target
        end, tick = (LEFT, None) if wanted is None else (x(each.median / wanted), x(1))
        label = f"{value(each.median)} {each.row.unit.value}"
        parts += _bar(each, y + 30 + ROW * place, end, tick, label)
    return y + 42 + ROW * len(figures)


def _bar(figure: Figure, y: int, end: float, tick: float | None, label: str) -> list[str]:
    """One row: what it is, a bar from the left to ``end``, the tick of the target, the figure."""
    middle = y + BAR - 2
    kind = "missed" if figure.met is False else "bar"
    parts = [_text(LEFT - 10, middle, figure.row.title, anchor="end")]
    if end > LEFT:
        parts.append(
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR}" '
            f'rx="2"/>'
        )
    if tick is not None:
        parts.append(_line(tick, y - 3, y + BAR + 3, "target"))
    words = label + (f" (missed {target(figure.row)})" if figure.met is False else "")
    parts.append(_text(max(end, tick or 0) + 8, middle, words))
    return parts


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def _line(x: float, top: float, bottom: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>'
