"""Polygons along the pixel edges of a mask."""

from __future__ import annotations

import numpy as np


def trace(mask: np.ndarray) -> tuple[list[list[int]], bool]:
    """The outer outlines of a mask `[height, width]` as COCO polygons, and whether it has holes.

    Each 4-connected part gives one polygon x, y, x, y, ... along the edges between pixels, clockwise, with a corner
    only where the direction changes. COCO's polygons cannot express holes: they are left out, and reported by the
    second value; without holes, the polygons describe the mask exactly.
    """
    following = _edges(np.asarray(mask, dtype=bool))
    polygons, holes = [], False
    while following:
        loop = _walk(following)
        if _signed_area(loop) > 0:
            polygons.append([coordinate for point in loop for coordinate in point])
        else:
            holes = True
    return polygons, holes


def _edges(mask: np.ndarray) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Corner -> the next corners along the outline, with the mask on the right-hand side (y points down)."""
    padded = np.pad(mask, 1)
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    inside = padded[1:-1, 1:-1]
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # background above: along the top, to the right
        (padded[1:-1, 2:], (1, 0), (1, 1)),  # on the right: down
        (padded[2:, 1:-1], (1, 1), (0, 1)),  # below: to the left
        (padded[1:-1, :-2], (0, 1), (0, 0)),  # on the left: up
    )
    for neighbour, (from_x, from_y), (to_x, to_y) in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        for x, y in zip(columns.tolist(), rows.tolist()):
            edges.setdefault((x + from_x, y + from_y), []).append((x + to_x, y + to_y))
    return edges


def _walk(following: dict) -> list[tuple[int, int]]:
    """Take one closed loop out of `following`; its corners, without those in the middle of a straight line."""
    start = min(following)
    point, direction, loop = start, (0, 0), []
    while True:
        choices = following[point]
        if len(choices) == 2:  # two pixels touch at a corner: turn right, which stays on the same pixel
            right = (point[0] - direction[1], point[1] + direction[0])
            target = choices.pop(choices.index(right)) if right in choices else choices.pop()
        else:
            target = choices.pop()
        if not choices:
            del following[point]
        step = (target[0] - point[0], target[1] - point[1])
        if step != direction:
            loop.append(point)
            direction = step
        point = target
        if point == start:
            return loop


def _signed_area(loop: list[tuple[int, int]]) -> float:
    """Positive for a loop that runs clockwise on the screen."""
    x, y = np.array(loop, dtype=np.float64).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
