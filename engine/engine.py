"""The ``Engine``: a sentence in, a clip with sound out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, overload

import torch

from .batching import Batcher, Handle, Limits, Policy, Stages
from .components import Components
from .config import SequenceConfig
from .cost.memory import MemoryEstimator
from .exports import ExportLocations
from .pipeline import Pipeline, Prepared, Read
from .runtime.choice import choose
from .runtime.threads import limit_threads
from .runtime.timing import Workload
from .sampling.batch import Batch
from .sampling.conditioning_cache import ConditioningCache
from .sampling.loop import StepCallback, sample
from .sampling.sequential import Apart, batch_of
from .sampling.trial import stepper
from .types import Clip, Latents, Request

BUNDLED = "pretrained/syncflow-tiny"


class Engine:
    """Draws clips with one model.

    >>> engine = Engine.from_pretrained()
    >>> engine.generate("a red rubber ball bounces on a wooden floor", seed=7).save("clip.mp4")
    """

    def __init__(
        self,
        components: Components,
        device: str | torch.device = "cpu",
        *,
        runtime: str = "torch",
        precision: str = "float32",
        folder: Path | None = None,
        deterministic: bool = False,
        limits: Limits | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.components = components
        self.config = components.config
        self.device = torch.device(device)
        self.threads = limit_threads()
        for module in (components.ddit, components.video, components.audio, components.text):
            module.to(self.device).eval()
        self.export_locations = ExportLocations(folder, components.digest)
        self.chosen = choose(runtime, components.ddit, self.export_locations, precision, workload(self.config.sequence))
        self.denoiser = self.chosen.denoiser
        self.pipeline = Pipeline(self.chosen.code(components), self.device)
        self.conditioning_cache = ConditioningCache(self.denoiser)
        self.deterministic = deterministic
        self.limits, self.policy = limits or Limits(), policy or Policy()

    @classmethod
    def from_pretrained(
        cls, path: str | Path | None = None, *, device: str = "auto", runtime: str = "auto", **settings: Any
    ) -> Self:
        """Load a model package, or the bundled ``syncflow-tiny``. ``device`` "auto" takes a GPU where there is one.

        ``runtime`` computes the model: "auto" takes the fastest of those that need no export and of exported graphs
        (``syncflow export``) that were found right here (``syncflow verify``). On a CPU it times a step of each when it
        meets a model for the first time, about a second, and keeps the result; :meth:`describe` has the times and says
        which it is and why. ``settings`` are those of the engine: ``precision``, "float32" unless less is enough;
        ``deterministic``, a clip's bits do not depend on who shares its batch; ``limits`` and ``policy`` of batching.
        Raises ``ValueError`` for a folder that is no package or does not match its checksums, and for a runtime that is
        not there.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = bundled_model() if path is None else Path(path)
        return cls(Components.load(folder), device, runtime=runtime, folder=folder, **settings)

    def describe(self) -> dict[str, Any]:
        """The model, the device, and who computes on it, why and how.

        ``step_ms`` are the milliseconds of a step in every runtime that was timed, ``timed`` when and under which
        conditions; ``others`` says why not other runtimes.
        """
        model = {"model": self.config.name, "model_hash": self.components.digest, "device": str(self.device)}
        return model | {"threads": self.threads} | self.chosen.describe()

    @overload
    def generate(
        self, request: str, *, on_step: StepCallback | None = None, progress: bool = False, **settings: Any
    ) -> Clip: ...

    @overload
    def generate(self, request: Request, *, on_step: StepCallback | None = None, progress: bool = False) -> Clip: ...

    @overload
    def generate(
        self,
        request: Sequence[str | Request],
        *,
        on_step: StepCallback | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> list[Clip]: ...

    def generate(
        self,
        request: str | Request | Sequence[str | Request],
        *,
        on_step: StepCallback | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Clip | list[Clip]:
        """Draw one clip, or one for each of several prompts or requests, those of a size and duration together.

        ``settings`` are those of :class:`~syncflow.engine.types.Request` (seed, steps, guidance, seconds, width,
        height, …) and apply to plain prompts. Several prompts with one ``seed`` get seed, seed + 1, …. A request with
        several takes becomes as many clips; alone it gives a list of them. ``on_step(step, steps, latents)`` is called
        after every step; ``progress`` shows a bar. Raises ``ValueError`` for what a request must not be.
        """
        several: Sequence[str | Request] = [request] if isinstance(request, (str, Request)) else request
        if not several:
            raise ValueError("there is nothing to generate: the list of requests is empty")
        seed = settings.pop("seed", 0)
        requests = [
            item if isinstance(item, Request) else Request(item, seed=seed + i, **settings)
            for i, item in enumerate(several)
        ]
        read = [self.pipeline.read(item) for item in requests]
        clips: list[list[Clip]] = [[] for _ in read]
        with _bar(progress, on_step) as step:
            for places in _equal([one.shape for one in read], 1 if self.deterministic else self.limits.batch):
                prepared = [self.pipeline.prepare(read[i]) for i in places]
                latents = sample(self.denoiser, [one.job for one in prepared], step, self.conditioning_cache)
                sounds = latents.audio.split([len(one.job.sounds) for one in prepared])
                for k, (i, one) in enumerate(zip(places, prepared, strict=True)):
                    clips[i] = self.pipeline.finish(one, Latents(latents.video[k : k + 1], sounds[k]))
        every = [clip for of_request in clips for clip in of_request]
        return every[0] if isinstance(request, (str, Request)) and len(every) == 1 else every

    def submit(
        self, request: str | Request, *, priority: int = 0, deadline: float | None = None, **settings: Any
    ) -> Handle[list[Clip]]:
        """Draw in the background: a handle at once, and in time its result, a clip for each take.

        Requests join the running batch of their size and duration between two steps, those of a higher ``priority``
        first, and leave it when they are done, cancelled, or not done ``deadline`` seconds from now. ``settings`` are
        those of a request, for a plain prompt. Raises ``ValueError`` for what a request must not be or what can never
        fit into memory, :class:`~syncflow.engine.batching.Full` when too many wait, and
        :class:`~syncflow.engine.batching.Closed` after :meth:`drain` or :meth:`close`.
        """
        item = request if isinstance(request, Request) else Request(request, **settings)
        return self.batcher.submit(self.pipeline.read(item), priority=priority, deadline=deadline)

    @cached_property
    def batcher(self) -> Batcher[Read, Prepared, Latents, list[Clip]]:
        """The queue and the threads behind :meth:`submit`; they begin with the first request."""
        model = self.denoiser
        stages: Stages[Read, Prepared, Latents, list[Clip]] = Stages(
            key=lambda read: read.shape,
            cost=lambda read: self.memory.predict(read.sequence, read.plan, read.request.takes).request,
            prepare=self.pipeline.prepare,
            make=lambda _: _Seats(
                Apart(model, self.conditioning_cache)
                if self.deterministic
                else batch_of(model, self.conditioning_cache)
            ),
            decode=lambda _, prepared, latents: self.pipeline.finish(prepared, latents),
        )
        return Batcher(stages, self.limits, self.policy)

    @cached_property
    def memory(self) -> MemoryEstimator:
        """Estimates of the device memory of requests."""
        return MemoryEstimator(self.components)

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait until all have ended, at most ``timeout`` seconds; whether they have."""
        return "batcher" not in vars(self) or self.batcher.drain(timeout)

    def close(self) -> None:
        """Cancel what was submitted and has not ended; end the threads."""
        if "batcher" in vars(self):
            self.batcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Finish what was submitted, or cancel it when the block ends by an exception."""
        if kind is None:
            self.drain()
        self.close()

    def retake(
        self, clip: Clip | str | Path, prompt: str | None = None, *, progress: bool = False, **settings: Any
    ) -> Any:
        """Draw the sound of a clip anew: for another ``prompt``, ``audio_seed`` or any other setting of a request.

        What is not said is as the provenance of the clip has it, if this model drew it. With the clip's latents
        (``Clip.latents``, or a file saved with them) its frames need no encoding, and video first (``video_lead`` 1)
        this costs the audio tower and one pass of the video tower. -> a clip, or a list for several ``takes``. Raises
        ``ValueError`` for what a request must not be, and in a model whose audio does not read the video.
        """
        source = clip if isinstance(clip, Clip) else Path(clip)
        return self.generate(self.pipeline.retake(source, prompt, settings), progress=progress)


class _Seats:
    """A batch as the batcher steps it: its members are prepared requests."""

    def __init__(self, batch: Batch | Apart) -> None:
        self.batch = batch
        self.leave, self.step, self.progress = batch.leave, batch.step, batch.progress

    def join(self, prepared: Sequence[Prepared]) -> None:
        self.batch.join([one.job for one in prepared])


def workload(sequence: SequenceConfig) -> Workload:
    """What is timed to choose a runtime: a step of one clip of this size, with text guidance."""
    return Workload(sequence, partial(stepper, sequence))


def bundled_model() -> Path:
    """The folder of the model that comes with the package."""
    return Path(str(files(__package__).joinpath(BUNDLED)))


def _equal(keys: Sequence[object], most: int) -> list[list[int]]:
    """Indices of equal keys together, at most ``most`` of them, in the order in which they first appear."""
    places: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    return [group[first : first + most] for group in places.values() for first in range(0, len(group), most)]


class _bar:
    """A step callback that moves a progress bar and then calls the user's."""

    def __init__(self, shown: bool, on_step: StepCallback | None) -> None:
        self.shown, self.on_step = shown, on_step

    def __enter__(self) -> StepCallback:
        from tqdm import tqdm

        self.bar = tqdm(desc="sampling", unit="step", disable=not self.shown)
        return self

    def __call__(self, step: int, steps: int, latents: Latents) -> None:
        if step == 1:
            self.bar.total = (self.bar.total or 0) + steps
        self.bar.update(1)
        if self.on_step is not None:
            self.on_step(step, steps, latents)

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
