"""Measuring cells: the models and clips that they need, and which function scores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from syncflow.engine.components import Components
from syncflow.engine.engine import Engine, bundled_model
from syncflow.engine.package import open_package
from syncflow.training.data.clips import ClipFolder
from syncflow.training.data.impacts import render_impacts
from syncflow.training.data.latents import LatentSet, cached_latents

from .ablation import Ablation, Variant
from .cells import measured
from .scoring import TOWERS, Size, score, score_trained

CLIPS, UNSEEN = 512, 32  # rendered to train on, and for validation losses
DATA_SEED, UNSEEN_SEED = 11, 90_000


class Measurement:
    """Cells of ``size`` in ``folder``; engines and latents are made when the first cell needs them.

    ``data``: clips to train on, rendered ones by default; ``models``: folders of models by their names, besides those
    that are bundled.
    """

    def __init__(
        self, folder: Path, size: Size, *, data: Path | None, models: Mapping[str, Path], runtime: str
    ) -> None:
        self.folder, self.size, self.given, self.runtime = folder, size, data, runtime
        self.models = models
        self.engine = lru_cache(1)(self._engine)

    def model(self, name: str) -> Path:
        """The folder of a named model, given or bundled. Raises ``ValueError`` where it is neither."""
        folder = self.models.get(name) or bundled_model(name)
        if not folder.is_dir():
            raise ValueError(f"{name} is not bundled; name its folder: --model {name}=FOLDER")
        return folder

    def has_model(self, ablation: Ablation) -> bool:
        """Whether the model of the ablation is given or bundled."""
        return (self.models.get(ablation.model) or bundled_model(ablation.model or TOWERS)).is_dir()

    def measure(self, ablation: Ablation, variant: Variant, seed: int) -> None:
        """The cell of a variant and a seed, if the folder does not have it."""
        model = self.model(ablation.model or TOWERS)
        sampled = {name: value for name, value in asdict(self.size).items() if name not in ("steps", "batch")}
        settings = {"model": open_package(model).digest} | (asdict(self.size) if ablation.training else sampled)
        if ablation.training and self.given:
            settings |= {"data": str(self.given)}

        def trained() -> Mapping[str, Any]:
            name = f"{ablation.name}-{ablation.variants.index(variant)}-{seed}-{self.size.steps}x{self.size.batch}"
            sets = self.latents, self.unseen
            run = self.folder / "runs" / name
            return score_trained(ablation, variant, seed, self.size, *sets, run, towers=model, runtime=self.runtime)

        def sampled_as_it_is() -> Mapping[str, Any]:
            return score(self.engine(model), ablation, variant, seed, self.size)

        measured(self.folder, ablation, variant, seed, settings, trained if ablation.training else sampled_as_it_is)

    def _engine(self, folder: Path) -> Engine:
        return Engine.from_pretrained(folder, runtime=self.runtime)

    @cached_property
    def latents(self) -> LatentSet:
        """Of the clips to train on, which are rendered where no folder was given."""
        data = self.given or render_impacts(self.folder / "data", CLIPS, DATA_SEED)
        return self._encoded(data, "latents")

    @cached_property
    def unseen(self) -> LatentSet:
        """Of clips of kinds of object that are not among those to train on."""
        return self._encoded(render_impacts(self.folder / "unseen", UNSEEN, UNSEEN_SEED, "unseen"), "unseen-latents")

    def _encoded(self, data: Path, name: str) -> LatentSet:
        codecs = Components.load(self.model(TOWERS))
        return cached_latents(ClipFolder(data, codecs.config.sequence), self.folder / name, codecs.video, codecs.audio)
