"""A denoiser computed by PyTorch's own operations alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ...kernels import implementation
from .delegate import Delegate


class PlainTorchDenoiser(Delegate):
    """``model`` without the C++ operations and without Triton: every call runs in ``implementation("torch")``.

    The choice of an implementation belongs to a thread, so each call makes it anew: engines with other runtimes may
    compute beside this one, in the same thread or in others.
    """

    def operations(self) -> AbstractContextManager[None]:
        """The context in which the sampling loop runs operations of its own."""
        return implementation("torch")

    @implementation("torch")
    def condition(self, *args: Any) -> Any:
        """See :class:`~syncflow.engine.model.denoiser.Denoiser`, as for the methods below."""
        return self.model.condition(*args)

    @implementation("torch")
    def modulation(self, *args: Any) -> Any:
        """See :meth:`condition`."""
        return self.model.modulation(*args)

    @implementation("torch")
    def audio_time(self, *args: Any) -> Any:
        """See :meth:`condition`."""
        return self.model.audio_time(*args)

    @implementation("torch")
    def video_pass(self, *args: Any, **options: Any) -> Any:
        """See :meth:`condition`."""
        return self.model.video_pass(*args, **options)

    @implementation("torch")
    def audio_pass(self, *args: Any, **options: Any) -> Any:
        """See :meth:`condition`."""
        return self.model.audio_pass(*args, **options)

    @implementation("torch")
    def joint_pass(self, *args: Any, **options: Any) -> Any:
        """See :meth:`condition`."""
        return self.model.joint_pass(*args, **options)

    @implementation("torch")
    def describe(self) -> dict[str, Any]:
        """Which switches are on."""
        return super().describe()
