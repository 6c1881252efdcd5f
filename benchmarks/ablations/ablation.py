"""What an ablation is, as data: a baseline, its variants, the scores that compare them, and what a paper found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from syncflow.training.config import Stage

HIGHER, LOWER = 1, -1


@dataclass(frozen=True)
class Score:
    """A score by its ``name`` in a cell; ``better`` is :data:`HIGHER` or :data:`LOWER`.

    ``compared``: it measures what the paper's figure does, so that the paper's sign is one for it.
    """

    name: str
    label: str
    better: int = HIGHER
    compared: bool = True


@dataclass(frozen=True)
class Variant:
    """One setting. ``request`` are settings of a request, ``ddit`` changes of the preset's ``DDiTConfig``, ``train``
    those of its ``TrainConfig``.

    ``sign`` is the paper's: 1 better than the baseline, -1 worse, 0 where it does not say; ``reported`` its figures.
    """

    name: str
    request: dict[str, Any] = field(default_factory=dict)
    ddit: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    sign: int = 0
    reported: str = ""


@dataclass(frozen=True)
class Training:
    """What every variant of a trained ablation has in common: the recipe of a stage with ``changes``.

    The model begins with the towers of the bundled one; the weights of its audio tower whose names contain one of
    ``anew`` begin afresh.
    """

    preset: str
    stage: Stage
    changes: dict[str, Any] = field(default_factory=dict)
    anew: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ablation:
    """``variants``, the baseline first, scored on ``tasks`` (``prompts``, ``v2a``, ``a2v``) by ``scores``.

    Variants of a ``model`` differ in how it is sampled; those of a ``training`` are trained first. ``request`` are the
    settings of a request that all variants share.
    """

    name: str
    question: str
    source: str
    variants: tuple[Variant, ...]
    scores: tuple[Score, ...]
    tasks: tuple[str, ...]
    model: str = ""
    training: Training | None = None
    request: dict[str, Any] = field(default_factory=dict)
