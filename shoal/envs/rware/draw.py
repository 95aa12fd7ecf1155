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
    (top, left), (bottom, right) = inside.min(0), inside.max(0)
    unit = CELL * SMOOTH
    picture = Image.new("RGB", (int(right - left + 1) * unit, int(bottom - top + 1) * unit), FLOOR)
    canvas = ImageDraw.Draw(picture)
    for y, x in inside.tolist():
        seen = int(look[y, x])
        a, b = (x - int(left)) * unit, (y - int(top)) * unit

        def square(inset: float, fill: str, outline: str | None = None, a: int = a, b: int = b) -> None:
            edge = inset * unit
            canvas.rectangle([a + edge, b + edge, a + unit - 1 - edge, b + unit - 1 - edge], fill, outline, SMOOTH)

        place = FLOOR if p.highway[y * p.stride + x] else PLACE
        square(0.0, GOAL_COLOR if seen & GOAL else place, GRID)
        if seen & SHELF:
            square(0.12, WANTED if seen & REQUESTED else STANDING, RIM if seen & LOADED else None)
        if seen & AGENT:
            middle = (a + unit / 2, b + unit / 2)
            radius, angle = 0.3 * unit, ANGLE[(seen & AGENT) - 1]
            nose = (middle[0] + 1.5 * radius * math.cos(angle), middle[1] + 1.5 * radius * math.sin(angle))
            canvas.line([middle, nose], fill=RIM, width=4 * SMOOTH)
            box = [middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius]
            canvas.ellipse(box, fill=CARRIES if seen & LOADED else FREE, outline=RIM, width=SMOOTH)
    return np.asarray(picture.resize((picture.width // SMOOTH, picture.height // SMOOTH), Image.Resampling.LANCZOS))
