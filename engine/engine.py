"""The ``Engine``: prompts in, clips with sound out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, overload

import torch

from .adapters import Adapters
from .backend import ModelBackend, groups_of_one_shape
from .batching import Batcher, Handle, Limits, OnStep, Policy
from .budget import requests_that_fit, runtime_with, tiles_that_fit, under_budget
from .components import Components
from .config import SequenceConfig
from .cost.memory import MemoryEstimator, weight_bytes
from .cost.memory_plan import MemoryPlan
from .exports import ExportLocations
from .model import DDiT
from .package import open_package
from .pipeline import Pipeline, PreparedRequest, with_noise
from .quantization import check_scheme
from .runtime.devices import UNLIMITED, find_device, memory_for_graphs
from .runtime.float32 import float32_products, set_float32_products
from .runtime.pytorch import PlainTorchDenoiser
from .runtime.selection.choose import choose, in_precision, weights_in_use
from .runtime.selection.settings import TorchOptions
from .runtime.selection.timing import Workload
from .runtime.threads import limit_threads
from .sampling.conditioning_cache import ConditioningCache
from .sampling.job import Job
from .sampling.loop import ProgressBar, StepCallback, StepEndCallback, on_step_end
from .sampling.tensor_cache import CAPACITY
from .sampling.trial import make_step
from .settings import check_settings, make_request, make_requests
from .types import Clip, Latents, Request
from .validation import byte_size, check_names, file_path, number_between, text, whole_between

BUNDLED = "syncflow-tiny"
FORKABLE = ("torch", "torch-plain", "native")  # those that compute with one thread in a forked child
ENGINE_SETTINGS = (
    "cuda_graphs",
    "overlap",
    "fp8",
    "autotune",
    "block_offload",
    "deterministic",
    "limits",
    "policy",
    "cache_bytes",
    "capture_seconds",
    "memory",
    "quantization",
)
CAPTURE_SECONDS, MAX_CAPTURE_SECONDS = 10.0, 3600.0
ENGINE_ALIASES = {"dtype": "precision", "torch_dtype": "precision"}


class Engine:
    """Generates clips with one model.

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
        cuda_graphs: bool | None = None,
        overlap: bool | None = None,
        fp8: bool = False,
        autotune: bool = False,
        block_offload: bool = False,
        folder: Path | None = None,
        deterministic: bool = False,
        limits: Limits | None = None,
        policy: Policy | None = None,
        cache_bytes: int = CAPACITY,
        capture_seconds: float = 0.0,
        memory: int | str | None = None,
        quantization: str | None = None,
    ) -> None:
        self.config = components.config
        self.device = find_device(device)
        self.threads = limit_threads()
        options = TorchOptions(cuda_graphs, overlap, fp8, autotune, block_offload)
        task = workload(self.config.sequence)
        self.memory_plan: MemoryPlan | None = None
        self.quantization = quantization
        for setting, value in {"memory": memory, "quantization": quantization}.items():
            runtime = runtime if value is None else runtime_with(setting, runtime, options)
        ddit, found = in_precision(runtime, components.ddit, self.device, precision, options)
        components = replace(components, ddit=ddit.eval())  # lets go of weights in another type
        if quantization is not None:
            check_scheme(quantization)
            components = components.quantized()
            ddit = components.ddit
        if memory is not None:
            components, self.memory_plan = under_budget(components, folder, self.device, byte_size("memory", memory))
        else:
            for module in (components.video, components.audio, components.text):
                module.to(self.device).eval()
        set_float32_products(found, self.device)
        self.export_locations = ExportLocations(folder, components.digest)
        self.chosen = choose(runtime, ddit, self.export_locations, found, task, options=options)
        self.denoiser = self.chosen.denoiser
        self.components = components = replace(components, ddit=weights_in_use(self.denoiser, ddit))
        cache_bytes = whole_between("cache_bytes", cache_bytes, 0, UNLIMITED)
        self.pipeline = Pipeline(self.chosen.with_codecs(components), self.device, cache_bytes)
        self.backend = ModelBackend(
            components,
            self.pipeline,
            self.denoiser,
            deterministic=deterministic,
            overlap=self.chosen.overlap,
            cache_bytes=cache_bytes,
        )
        self._process = os.getpid()
        self.limits, self.policy = limits or Limits(), policy or Policy()
        if self.memory_plan is not None and self.limits.memory is None:
            self.limits = replace(self.limits, memory=self.memory_plan.bytes_for_requests)
        if self.memory_plan is not None:
            self.pipeline.tiles_of = cache(partial(tiles_that_fit, self.memory_plan, self.memory))
        seconds = number_between("capture_seconds", capture_seconds, 0, MAX_CAPTURE_SECONDS)
        self.captured_batches = self.backend.capture(self.limits.batch, seconds, memory_for_graphs(self.device))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        device: str = "auto",
        runtime: str = "auto",
        precision: str = "auto",
        **settings: Any,
    ) -> Self:
        """Load a model package, or a bundled one by its name (:func:`bundled_model`).

        ``device`` "auto" takes a GPU where there is one.

        ``runtime`` "auto" takes the fastest of the runtimes that need no export and of the exported graphs (``syncflow
        export``) that ``syncflow verify`` has found correct on this machine. On a CPU it times a step of each when it
        loads a model for the first time, about a second, and stores the result; :meth:`describe` gives the times and
        the reason for the choice. ``precision`` "auto" is float32 on a CPU, and bfloat16 on a GPU (float16 on
        one without bfloat16). ``settings`` are those of the engine:

        - ``cuda_graphs``, ``overlap``, ``fp8``, ``autotune`` and ``block_offload``: see
          :class:`~syncflow.engine.runtime.selection.settings.TorchOptions`; the first two are on by default for "auto"
          on a GPU;
        - ``deterministic``: the bits of a clip do not depend on the other requests of its batch;
        - ``limits`` and ``policy`` of batching;
        - ``cache_bytes``: how much is kept of the texts of earlier requests, and as much again of what is computed from
          them and from schedules, by default 1 GiB;
        - ``capture_seconds``: with CUDA graphs, how long those of batches of the model's own clip may be captured now,
          by default 10; others are captured when they are first needed;
        - ``memory``: the most that weights and tensors may take, in bytes or such as "12GB". Parts of the model are
          then loaded when they are used, and kept or released in turn (:attr:`memory_plan`);
        - ``quantization``: "int8_weight_only" keeps the weights of the blocks of d-DiT and text encoder in 8 bits
          (:mod:`~syncflow.engine.quantization`). Both are settings of the runtimes torch and torch-plain.

        Raises ``ValueError`` for a folder that is no package or does not match its checksums, for a runtime that is not
        available, and for a setting that does not apply.
        """
        check_names(list(settings), ENGINE_SETTINGS, ENGINE_ALIASES, "an engine")
        settings.setdefault("capture_seconds", CAPTURE_SECONDS)
        found = find_device(device)
        folder = model_folder(path)
        components = Components.of(open_package(folder), values=settings.get("memory") is None)
        return cls(components, found, runtime=runtime, precision=precision, folder=folder, **settings)

    def __repr__(self) -> str:
        return f"<Engine {self.config.name} on {self.device}, runtime {self.chosen.runtime}>"

    def describe(self) -> dict[str, Any]:
        """The model, the device, the runtime with its options, and the reason for its choice.

        ``weight_bytes``: of all parts of the model; where a library runs its graphs, of their weights in its memory by
        their number. ``step_ms``: milliseconds of a step in every runtime that was timed; ``timed``: when, and under
        which conditions; ``others``: why other runtimes were not chosen.
        """
        return {
            "model": self.config.name,
            "model_hash": self.components.digest,
            "device": str(self.device),
            "threads": self.threads,
            "deterministic": self.backend.deterministic,
            "captured_batches": list(self.captured_batches),
            "float32_products": float32_products(self.device),
            "weight_bytes": weight_bytes(self.components),
            "memory": None if self.memory_plan is None else self.memory_plan.to_dict(),
            "quantization": self.quantization,
        } | self.chosen.describe()

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
        callback_on_step_end: StepEndCallback | None = None,
        latents: torch.Tensor | None = None,
        **settings: Any,
    ) -> Clip | list[Clip]:
        """Generate one clip, or one for each of several prompts or requests, those of a size and duration together.

        ``settings`` are fields of :class:`~syncflow.engine.types.Request` (seed, steps, guidance, seconds, width,
        height, …) for plain prompts; beside a request they are refused. Several prompts with one ``seed`` get seed,
        seed + 1, …. A request with several takes gives as many clips; on its own it returns a list of them.
        ``on_step(step, steps, latents)`` is called after every step; ``progress`` shows a bar on a terminal. As in
        diffusers: ``callback_on_step_end(engine, step, timestep, {"latents": …})``, and ``latents``, the videos' noise
        (B, C_v, T, H, W). Raises ``ValueError`` for a request that is not valid.
        """
        self._check_process()
        if on_step is not None and callback_on_step_end is not None:
            raise ValueError("on_step and callback_on_step_end are given; leave one of them out")
        step_end = None if callback_on_step_end is None else partial(on_step_end, self, callback_on_step_end)
        prepared = [self.pipeline.prepare(item) for item in make_requests(request, settings)]
        if latents is not None:
            prepared = with_noise(prepared, latents, self.config.ddit.video_channels)
        clips: list[list[Clip]] = [[] for _ in prepared]
        most = 1 if self.backend.deterministic else self.limits.batch
        if self.memory_plan is not None:
            most = min(requests_that_fit(self.memory_plan, self.memory, one, most) for one in prepared)
        with ProgressBar(progress) as bar:
            for group in groups_of_one_shape([one.shape for one in prepared], most):
                made = self.backend.run([prepared[i] for i in group], on_step, bar, step_end)
                for i, of_request in zip(group, made, strict=True):
                    clips[i] = of_request
        every = [clip for of_request in clips for clip in of_request]
        return every[0] if isinstance(request, (str, Request)) and len(every) == 1 else every

    def submit(
        self,
        request: str | Request,
        *,
        priority: int = 0,
        deadline: float | None = None,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Handle[list[Clip]]:
        """Generate in the background: returns a handle at once, whose result is a clip for each take.

        Requests join the running batch of their size and duration between two steps, those of a higher ``priority``
        first, and leave it when they are done, cancelled, or not done ``deadline`` seconds from now. ``settings`` are
        fields of a request, for a plain prompt. ``on_step(step, steps, preview)`` is called after every step in the
        thread that steps, so keep it short; ``preview()`` is the video's latents as they are expected to end, (C_v, T,
        H, W) on the device. Raises ``ValueError`` for a request that is not valid or that can never
        fit into memory, :class:`~syncflow.engine.batching.Full` when too many wait, and
        :class:`~syncflow.engine.batching.Closed` after :meth:`drain` or :meth:`close`.
        """
        self._check_process()
        prepared = self.pipeline.prepare(make_request(request, settings))
        return self.batcher.submit(prepared, priority=priority, deadline=deadline, on_step=on_step)

    @cached_property
    def batcher(self) -> Batcher[PreparedRequest, Job, Latents, list[Clip]]:
        """The queue and the threads behind :meth:`submit`; they start with the first request."""
        found: Batcher[PreparedRequest, Job, Latents, list[Clip]] = Batcher(self.backend, self.limits, self.policy)
        weakref.finalize(self, found.abandon).atexit = False
        return found

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that requests may use."""
        return tuple(self._adapters.loaded) if "_adapters" in vars(self) else ()

    def load_adapter(self, folder: str | Path, name: str | None = None) -> str:
        """Load a LoRA adapter in peft's format for ``Request(adapters=…)``. -> its name, by default its folder's.

        Raises ``ValueError`` for a folder of another kind, unknown tensors, a name in use, and a runtime that has no
        adapters.
        """
        return self._adapters.load(file_path("folder", folder, "the folder of an adapter"), name)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises ``ValueError`` for a name that is not loaded."""
        self._adapters.unload(name)
        self.conditioning_cache.clear()

    def merge_adapter(self, name: str, weight: float = 1.0) -> None:
        """Add an adapter to the weights for good, for all requests, and forget it. Raises as :meth:`unload_adapter`."""
        self._adapters.merge(name, weight)
        self.conditioning_cache.clear()

    @cached_property
    def _adapters(self) -> Adapters:
        model = self.denoiser.model if isinstance(self.denoiser, PlainTorchDenoiser) else self.denoiser
        if type(model) is not DDiT:
            raise ValueError(
                f"adapters need the runtime torch or torch-plain without CUDA graphs; this engine has "
                f"{self.chosen.runtime}"
            )
        if self.memory_plan is not None:
            raise ValueError("adapters need a model that stays in memory; leave the setting memory out")
        found = Adapters(model)
        self.conditioning_cache.adapters, self.pipeline.check_adapters = found, found.check
        return found

    @property
    def conditioning_cache(self) -> ConditioningCache:
        """What requests share of texts and schedules."""
        return self.backend.conditioning_cache

    @property
    def memory(self) -> MemoryEstimator:
        """Estimates of the device memory of requests."""
        return self.backend.memory_model

    def _check_process(self) -> None:
        """Refuse a forked child where the libraries of the runtime would wait for threads of the parent for ever."""
        if os.getpid() != self._process and (self.chosen.runtime not in FORKABLE or self.device.type != "cpu"):
            raise RuntimeError(
                f"the process was forked after this engine was loaded, and the runtime {self.chosen.runtime} on "
                f"{self.device} does not work in the child; load an engine in the child"
            )

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
        """Generate another sound for a clip, with another ``prompt``, ``audio_seed`` or any other field of a request.

        Fields that are left out are taken from the provenance of the clip, if this model made it. With the clip's
        latents (``Clip.latents``, or a file saved with them) its frames need no encoding, and with ``video_lead`` 1
        this costs the audio tower and one pass of the video tower. -> a clip, or a list for several ``takes``. Raises
        ``ValueError`` for a request that is not valid, and in a model whose audio does not read the video.
        """
        check_settings(settings)
        if "video" in settings:
            raise ValueError("video is the clip itself in a retake; give one of them")
        if prompt is not None:
            text("prompt", prompt)
        source = clip if isinstance(clip, Clip) else file_path("clip", clip, "a clip or the path of a file")
        return self.generate(self.pipeline.retake(source, prompt, settings), progress=progress)


def workload(sequence: SequenceConfig) -> Workload:
    """The step that is timed to choose a runtime: of one clip of this size, with text guidance."""
    return Workload(sequence, partial(make_step, sequence))


def bundled_model(name: str = BUNDLED) -> Path:
    """The folder of a model that comes with the package: ``syncflow-tiny``, its student ``syncflow-tiny-4step``,
    ``syncphony-tiny`` or ``harmony-tiny``.
    """
    return Path(str(files(__package__).joinpath("pretrained", name)))


def model_folder(path: str | Path | None = None) -> Path:
    """The folder of a model; the bundled one where none is named, or one by its name. Raises ``ValueError``."""
    if path is None:
        return bundled_model()
    folder = file_path("path", path, "the folder of a model package")
    named = bundled_model(folder.name)
    return named if str(folder) == folder.name and named.is_dir() and not folder.exists() else folder
