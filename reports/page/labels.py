"""Where the labels of a chart's points go, so that none covers another label or another point.

Vega-Lite puts every label at the same side of its point. Here each gets the side with the least in its way, or none: a
label that can't be read says nothing, and the table has the number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LETTER, HEIGHT = 6.6, 12.0  # pixels of text at 11 pixels
GAP = 9.0  # between a point's middle and its label
# Side -> alignment, baseline, and the way there in gaps: what is drawn, and what is reckoned with here.
SIDES: dict[str, tuple[str, str, float, float]] = {
    "right above": ("left", "bottom", 1.0, -0.5),
    "left above": ("right", "bottom", -1.0, -0.5),
    "right below": ("left", "top", 1.0, 0.5),
    "left below": ("right", "top", -1.0, 0.5),
    "above": ("center", "bottom", 0.0, -1.2),
    "below": ("center", "top", 0.0, 1.2),
    "right": ("left", "middle", 1.4, 0.0),
    "left": ("right", "middle", -1.4, 0.0),
}

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """A point with its label, in pixels from the left and the top; `size` is half of its symbol's width."""

    x: float
    y: float
    text: str
    size: float = 6.0


def sides(points: Sequence[Point], strokes: Sequence[Box], width: float, height: float) -> list[str]:
    """A side of `SIDES` for each point's label; empty for one that has no room.

    Args:
        points: In the order in which they choose.
        strokes: Thin lines that a label had better not lie on, from (left, top) to (right, bottom) or across.
        width: Of the chart.
        height: Of the chart.
    """
    symbols = [(at.x - at.size, at.y - at.size, at.x + at.size, at.y + at.size) for at in points]
    taken: list[Box] = []
    chosen = []
    for own, point in enumerate(points):
        best: tuple[int, str, Box] | None = None
        for side in SIDES if point.text else ():
            box = place(point, side)
            inside = box[0] >= 0 and box[2] <= width and box[1] >= -HEIGHT / 2 and box[3] <= height
            blocked = any(overlap(box, other) for at, other in enumerate([*symbols, *taken]) if at != own)
            if inside and not blocked:
                crossed = sum(crosses(stroke, box) for stroke in strokes)
                if best is None or crossed < best[0]:
                    best = (crossed, side, box)
        chosen.append(best[1] if best else "")
        taken += [best[2]] if best else []
    return chosen


def place(point: Point, side: str) -> Box:
    """What a label covers at a side of its point."""
    align, baseline, across, down = SIDES[side]
    length = LETTER * len(point.text)
    x, y = point.x + across * GAP, point.y + down * GAP
    left = x - {"left": 0.0, "center": length / 2, "right": length}[align]
    top = y - {"top": 0.0, "middle": HEIGHT / 2, "bottom": HEIGHT}[baseline]
    return left, top, left + length, top + HEIGHT


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share any room."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def crosses(stroke: Box, box: Box) -> bool:
    """Whether a straight line between two points passes through a box (Liang and Barsky 1984)."""
    x, y, across, down = stroke[0], stroke[1], stroke[2] - stroke[0], stroke[3] - stroke[1]
    enter, leave = 0.0, 1.0
    for step, low, high in ((across, box[0] - x, box[2] - x), (down, box[1] - y, box[3] - y)):
        if step == 0:
            if low > 0 or high < 0:
                return False
        else:
            ends = sorted((low / step, high / step))
            enter, leave = max(enter, ends[0]), min(leave, ends[1])
    return enter <= leave
