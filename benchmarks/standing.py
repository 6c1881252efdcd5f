"""Where a step stands beside its roofline: measured on this machine, or predicted for a GPU that is not here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from syncflow.engine.engine import Engine
from syncflow.engine.presets import preset as preset_of

from .alternating import Timing, alternate
from .roofline import DATA_SHEETS, Rates, Standing, StepRoofline, measured_rates, step_roofline
from .step import runtimes, variants

PREDICTED = "h100"  # the device of ``kernels/predicted.py``


def roofline(
    name: str, batch: int, device_name: str | None, rounds: int, progress: Callable[..., Iterable[int]]
) -> tuple[StepRoofline, list[Standing]]:
    """The roofline of a step of a preset, and the steps that are known.

    On the device of a data sheet the predicted step, for the H100 alone; on this machine the steps of the bundled model
    in the automatic runtime and in plain PyTorch, if the preset is its own. Raises ``ValueError`` for an unknown preset
    or device.
    """
    config = preset_of(name)
    if device_name is not None:
        if device_name not in DATA_SHEETS:
            raise ValueError(f"the device is {device_name!r}; it must be one of {', '.join(DATA_SHEETS)}")
        found = step_roofline(config, DATA_SHEETS[device_name], batch, "bfloat16")
        return found, _predicted(name, batch) if device_name == PREDICTED else []
    engine = Engine.from_pretrained(runtime="torch", precision="float32")
    rates: Rates = measured_rates(str(engine.device))
    dtype = "float32" if engine.device.type == "cpu" else "bfloat16"
    found = step_roofline(config, rates, batch, dtype)
    if engine.config.name != name:
        return found, []
    chosen = runtimes(engine, ["auto", "torch-plain"], dtype)
    steps = {one.name: one.step for one in variants(engine, chosen, batch)}
    seconds = alternate(steps, Timing(rounds, progress=progress, device=str(engine.device)))
    return found, [Standing(f"{one}, measured", 1e3 * statistics.median(times)) for one, times in seconds.items()]


def _predicted(name: str, batch: int) -> list[Standing]:
    from .kernels.predicted_step import predict_step

    found = predict_step(name, batch)
    return [
        Standing("predicted from machine code", found.ms),
        Standing("the same with the audio tower beside the next video step", found.overlapped_ms),
    ]
