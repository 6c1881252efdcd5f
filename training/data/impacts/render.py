"""The picture of a scene: shaded, anti-aliased objects with their contact shadows before a dark wall on a floor."""

from __future__ import annotations

import numpy as np

from .scene import WORLD, Scene
from .shapes import Ball, Bar, Head, Shape, Wall

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "orange": (250, 130, 20),
    "yellow": (245, 225, 50),
    "green": (50, 190, 70),
    "blue": (45, 95, 235),
    "purple": (165, 60, 215),
    "white": (240, 240, 240),
}
FLOOR_COLORS: dict[str, tuple[int, int, int]] = {"wood": (92, 68, 48), "stone": (84, 84, 82), "metal": (66, 80, 92)}
BACKGROUND = np.array([34.0, 35.0, 38.0])
WALL_SHADE = 0.62  # of the floor's colour
BAR_COLOR = np.array([47.0, 45.0, 43.0])
HEAD_WIDTH = 0.7  # of its length
SIDE_LIGHT = 0.35
FLOOR_EDGE = 4.0


def render_frames(scene: Scene) -> np.ndarray:
    """Frames uint8 (F, size, size, 3) at the times i / fps."""
    times = np.arange(round(scene.seconds * scene.fps)) / scene.fps
    axis = (np.arange(scene.size) + 0.5) * WORLD / scene.size
    shapes = scene.shapes(times)
    frames = np.broadcast_to(_surroundings(scene, axis), (len(times), scene.size, scene.size, 3))
    for shape in shapes:
        if isinstance(shape, Ball | Head):
            frames = frames * (1 - _shadow(scene, axis, shape))[..., None]
    for shape in shapes:
        coverage, color = _drawn(scene, axis, shape)
        frames = frames * (1 - coverage[..., None]) + color * coverage[..., None]
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def _surroundings(scene: Scene, axis: np.ndarray) -> np.ndarray:
    """Background and floor (H, W, 3), without what stands on it and without shadows."""
    x, y = axis[None, :, None], axis[:, None, None]
    wall = BACKGROUND * scene.brightness * (1.15 - 0.3 * y / WORLD) * (1 + 0.1 * scene.light * (x / WORLD - 0.5))
    depth = (y - scene.floor_y + FLOOR_EDGE) / (WORLD - scene.floor_y + FLOOR_EDGE)
    pattern = np.ones(1)
    if scene.look.floor == "wood":
        pattern = 1 + 0.06 * np.cos(2 * np.pi * 3 * depth)
    elif scene.look.floor == "metal":
        pattern = 1 + 0.22 * np.exp(-(((x / WORLD - 0.5 - 0.3 * scene.light) / 0.16) ** 2))
    floor = np.array(FLOOR_COLORS[scene.look.floor]) * (0.85 + 0.3 * depth) * pattern
    scale = len(axis) / WORLD
    below = np.clip((y - scene.floor_y + FLOOR_EDGE) * scale + 0.5, 0, 1)
    return wall * (1 - below) + floor * below


def _shadow(scene: Scene, axis: np.ndarray, body: Ball | Head) -> np.ndarray:
    """Darkness (F, H, W) of the contact shadow: it sharpens and deepens as the body comes down."""
    lift = scene.floor_y - body.radius - body.centre[:, 1]
    spread = (body.radius * (0.75 + 0.012 * lift))[:, None, None]
    strength = (0.6 * np.exp(-lift / 12))[:, None, None]
    across = (axis[None, None, :] - body.centre[:, 0, None, None]) / spread
    along = (axis[None, :, None] - scene.floor_y) / 1.8
    return strength * np.exp(-0.5 * (across**2 + along**2)) * (axis[None, :, None] > scene.floor_y - FLOOR_EDGE)


def _drawn(scene: Scene, axis: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Coverage (F, H, W) of a shape and its colour, (F, H, W, 3) or the same everywhere."""
    scale = len(axis) / WORLD
    x, y = axis[None, None, :], axis[None, :, None]
    if isinstance(shape, Ball):
        dx, dy = x - shape.centre[:, 0, None, None], y - shape.centre[:, 1, None, None]
        coverage = np.clip((shape.radius - np.hypot(dx, dy)) * scale + 0.5, 0, 1)
        return coverage, _shaded(scene, dx / shape.radius, dy / shape.radius)
    if isinstance(shape, Head):
        dx, dy = x - shape.centre[:, 0, None, None], y - shape.centre[:, 1, None, None]
        cos, sin = (f(shape.angle)[:, None, None] for f in (np.cos, np.sin))
        across, along = dx * cos + dy * sin, dy * cos - dx * sin
        half = HEAD_WIDTH * shape.radius
        inside = np.minimum(half - np.abs(across), shape.radius - np.abs(along))
        return np.clip(inside * scale + 0.5, 0, 1), _shaded(scene, across / half, 0.3 * along / shape.radius)
    if isinstance(shape, Bar):
        coverage = np.clip((shape.width / 2 - _distance(x, y, shape)) * scale + 0.5, 0, 1)
        return coverage * min(1.0, shape.width * scale), BAR_COLOR * scene.brightness
    assert isinstance(shape, Wall)
    inside = np.minimum(
        np.minimum(x - shape.left, shape.right - x), np.minimum(y - shape.top, scene.floor_y - FLOOR_EDGE / 2 - y)
    )
    return np.clip(inside * scale + 0.5, 0, 1), WALL_SHADE * np.array(FLOOR_COLORS[scene.look.floor])


def _distance(x: np.ndarray, y: np.ndarray, bar: Bar) -> np.ndarray:
    """Distance (F, H, W) of every pixel to the middle line of a bar."""
    (x0, y0), (x1, y1) = (point.T[:, :, None, None] for point in (bar.start, bar.end))
    dx, dy = x1 - x0, y1 - y0
    share = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx**2 + dy**2), 0, 1)
    return np.hypot(x - x0 - share * dx, y - y0 - share * dy)


def _shaded(scene: Scene, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Colour (F, H, W, 3) of the object at offsets ``u``, ``v`` from its centre in radii, y downwards."""
    color = np.array(PALETTE[scene.look.color], dtype=float)
    z = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
    lamp = np.array([SIDE_LIGHT * scene.light, -0.6, 0.7])
    lamp /= np.linalg.norm(lamp)
    lambert = np.clip(u * lamp[0] + v * lamp[1] + z * lamp[2], 0, 1)
    half = lamp + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    gleam = np.clip(u * half[0] + v * half[1] + z * half[2], 0, 1)
    if scene.look.material == "rubber":
        shade, shine = 0.62 + 0.38 * lambert, np.zeros_like(gleam)
    elif scene.look.material == "wood":
        rings = 0.5 + 0.5 * np.cos(2 * np.pi * 1.6 * (u + 0.25 * v))
        shade, shine = (0.6 + 0.4 * lambert) * (1 - 0.3 * rings), np.zeros_like(gleam)
    elif scene.look.material == "metal":
        shade, shine = 0.3 + 0.75 * lambert**1.5 + 0.25 * np.clip(v, 0, 1) ** 2, 0.95 * gleam**24
    else:
        through = np.clip(-(u * lamp[0] + v * lamp[1]), 0, 1)
        shade, shine = 0.6 + 0.35 * (1 - z) + 0.5 * through**1.5, 0.95 * gleam**60
    return color * shade[..., None] * (1 - shine[..., None]) + 255.0 * shine[..., None]
