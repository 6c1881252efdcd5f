"""The picture of a scene: a shaded, anti-aliased ball with its contact shadow before a dark wall on a floor."""

from __future__ import annotations

import numpy as np

from .scene import WORLD, Scene

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
WALL = np.array([34.0, 35.0, 38.0])
SIDE_LIGHT = 0.35
FLOOR_EDGE = 4.0


def render_frames(scene: Scene) -> np.ndarray:
    """Frames uint8 (F, size, size, 3) at the times i / fps."""
    scale = scene.size / WORLD
    times = np.arange(round(scene.seconds * scene.fps)) / scene.fps
    axis = (np.arange(scene.size) + 0.5) / scale
    centre = scene.positions(times)
    dx = axis[None, None, :] - centre[:, 0, None, None]
    dy = axis[None, :, None] - centre[:, 1, None, None]
    ground = _surroundings(scene, axis)[None] * (1 - _shadow(scene, axis, centre))[..., None]
    coverage = np.clip((scene.radius - np.hypot(dx, dy)) * scale + 0.5, 0, 1)[..., None]
    frames = ground * (1 - coverage) + _ball(scene, dx / scene.radius, dy / scene.radius) * coverage
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def _surroundings(scene: Scene, axis: np.ndarray) -> np.ndarray:
    """Wall and floor (H, W, 3), without ball and shadow."""
    x, y = axis[None, :, None], axis[:, None, None]
    wall = WALL * scene.brightness * (1.15 - 0.3 * y / WORLD) * (1 + 0.1 * scene.light * (x / WORLD - 0.5))
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


def _shadow(scene: Scene, axis: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Darkness (F, H, W) of the contact shadow: it sharpens and deepens as the ball comes down."""
    lift = scene.floor_y - scene.radius - centre[:, 1]
    spread = (scene.radius * (0.75 + 0.012 * lift))[:, None, None]
    strength = (0.6 * np.exp(-lift / 12))[:, None, None]
    across = (axis[None, None, :] - centre[:, 0, None, None]) / spread
    along = (axis[None, :, None] - scene.floor_y) / 1.8
    return strength * np.exp(-0.5 * (across**2 + along**2)) * (axis[None, :, None] > scene.floor_y - FLOOR_EDGE)


def _ball(scene: Scene, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Colour (F, H, W, 3) of the ball at offsets ``u``, ``v`` from its centre in radii, y downwards."""
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
