"""``syncflow batch``: generate the clips of a prompt file."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options


def batch(
    prompts: Annotated[
        Path,
        typer.Argument(
            help="Prompt file, .jsonl, .csv or .parquet: a request in each row, with the columns prompt, id and those "
            "of `Request` (seed, steps, seconds, width, height, video, …)."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the clips and the manifest; clips in it are kept.")
    ],
    format: Annotated[
        Literal["mp4", "mov", "mkv", "webm", "gif", "wav"], typer.Option(help="Format of the clips.")
    ] = "mp4",
    keep_latents: Annotated[
        bool, typer.Option("--keep-latents", help="Save the video latents beside each mp4, for `syncflow retake`.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests of one shape in a step, at least 1.")] = 8,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Step every request alone: no bit of a clip depends on other requests."),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(help="I/N: only every N-th row, beginning with row I; a process for each I from 1 to N."),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Use the workers of a Ray cluster (RAY_ADDRESS), or of a new one on this host."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Workers with --ray, at least 1; default: one for each GPU, or each host without GPUs."
        ),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPUs of each worker with --ray, at least 1; default: 1, or an equal share without GPUs."
        ),
    ] = None,
    model: options.Model = None,
    runtime: options.Runtime = "auto",
    precision: options.RuntimePrecision = "auto",
    cuda_graphs: options.CudaGraphs = None,
    overlap: options.Overlap = None,
    fp8: options.Fp8 = False,
    memory: options.Memory = None,
    quantization: options.Quantization = None,
    json: options.Json = False,
) -> None:
    """Generate the clips of a prompt file into a folder; run again, it makes what is missing.

    A row that fails is listed, and the others go on; the exit code is then 1.
    """
    began = time.perf_counter()
    if not ray and (workers or cpus):
        raise ValueError("--workers and --cpus are those of a Ray cluster; add --ray")

    from ..engine.offline import ClusterOptions, EngineSettings, Outputs, Shard, generate_entries, read_entries
    from ..engine.offline.plan import manifest_name
    from .batch_progress import BatchProgress

    part = None if shard is None else Shard.parse(shard)
    outputs = Outputs(output.absolute(), format, keep_latents)
    chosen = {
        "runtime": runtime,
        "precision": precision,
        "cuda_graphs": cuda_graphs,
        "overlap": overlap,
        "fp8": fp8,
        "memory": memory,
        "quantization": quantization,
    }
    folder = model.absolute() if model is not None and model.exists() else model
    settings = EngineSettings(folder, batch_size, {**chosen, "deterministic": deterministic})
    with BatchProgress(quiet=json) as progress:
        records = generate_entries(
            read_entries(prompts.absolute()),
            outputs,
            settings,
            shard=part,
            cluster=ClusterOptions(workers, cpus) if ray else None,
            on_plan=progress.planned,
        )
        with closing(records):
            for record in records:
                progress.ended(record)
    seconds = time.perf_counter() - began
    if json:
        options.show_json(
            {
                "folder": str(output),
                "manifest": str(output / manifest_name(part)),
                "generated": progress.done,
                "skipped": progress.skipped,
                "failed": len(progress.failures),
                "failures": [{"id": name, "error": error} for name, error in progress.failures],
                "seconds": round(seconds, 3),
                "clips_per_second": round(progress.rate, 3),
            }
        )
    else:
        before = f", {progress.skipped} done before" if progress.skipped else ""
        failed = f", {len(progress.failures)} failed" if progress.failures else ""
        print(f"{output}: {progress.done} generated{before}{failed}, {seconds:.1f} s")
    if progress.failures:
        raise typer.Exit(1)
