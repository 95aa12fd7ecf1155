"""Pictures of warehouses: shelves grey, blue where requested; goals orange; agents discs that show where they look."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shoal.envs.rware.kernel import AGENT, GOAL, INSIDE, LOADED, REQUESTED, SHELF, Params, World

CELL, SMOOTH = 32, 2  # drawn larger, then scaled down: antialiasing
ANGLE = (-math.pi / 2, math.pi / 2, math.pi, 0.0)  # of up, down, left, right
FLOOR, PLACE, GRID = "#ffffff", "#eceae4", "#d5d2c9"
STANDING, WANTED, GOAL_COLOR = "#a8a294", "#2f7fd1", "#f2a33a"
FREE, CARRIES, RIM = "#e4572e", "#7b2d8b", "#333333"


def draw(p: Params, w: World, index: int) -> NDArray[np.uint8]:
    """Warehouse `index`, `[height, width, 3]`: 32 pixels a cell."""
    look = w.look[index].reshape(-1, p.stride)
    inside = np.argwhere(look & INSIDE)
    (top, left), (bottom, right) = inside.min(0).tolist(), inside.max(0).tolist()
    unit = CELL * SMOOTH
    picture = Image.new("RGB", ((right - left + 1) * unit, (bottom - top + 1) * unit), FLOOR)
    canvas = ImageDraw.Draw(picture)
    for y, x in inside.tolist():
        seen, corner = int(look[y, x]), ((x - left) * unit, (y - top) * unit)
        place = FLOOR if p.highway[y * p.stride + x] else PLACE
        _square(canvas, corner, 0.0, GOAL_COLOR if seen & GOAL else place, GRID)
        if seen & SHELF:
            _square(canvas, corner, 0.12, WANTED if seen & REQUESTED else STANDING, RIM if seen & LOADED else None)
        if seen & AGENT:
            _robot(canvas, corner, ANGLE[(seen & AGENT) - 1], CARRIES if seen & LOADED else FREE)
    return np.asarray(picture.resize((picture.width // SMOOTH, picture.height // SMOOTH), Image.Resampling.LANCZOS))


Corner = tuple[int, int]


def _square(canvas: ImageDraw.ImageDraw, corner: Corner, inset: float, fill: str, outline: str | None) -> None:
    low, high = inset * CELL * SMOOTH, (1 - inset) * CELL * SMOOTH - 1
    box = [corner[0] + low, corner[1] + low, corner[0] + high, corner[1] + high]
    canvas.rectangle(box, fill, outline, SMOOTH)


def _robot(canvas: ImageDraw.ImageDraw, corner: Corner, angle: float, fill: str) -> None:
    x, y = (edge + CELL * SMOOTH / 2 for edge in corner)
    radius = 0.3 * CELL * SMOOTH
    nose = (x + 1.5 * radius * math.cos(angle), y + 1.5 * radius * math.sin(angle))
    canvas.line([(x, y), nose], fill=RIM, width=4 * SMOOTH)
    canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=RIM, width=SMOOTH)
