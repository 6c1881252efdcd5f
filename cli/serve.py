"""``syncflow serve``: an HTTP server with durable jobs and a web page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, results

if TYPE_CHECKING:
    from ..engine.types import Clip

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on, 1 to 65535; 0: any that is free.")] = 8000,
    data: Annotated[Path, typer.Option(help="Folder of jobs, uploads and results.")] = Path("syncflow-data"),
    database: Annotated[
        str | None,
        typer.Option(
            envvar="SYNCFLOW_DATABASE",
            help="URL of the database, such as postgresql+psycopg://…; default: SQLite in --data.",
        ),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of API keys; default: none, and everybody is one tenant.")
    ] = None,
    new_key: Annotated[
        str | None, typer.Option(help="Add an API key for this tenant to --keys, print it once, and stop.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="With --new-key: the key may read /debug/engine.")] = False,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Listen on a public address although there are no keys.")
    ] = False,
    queue: Annotated[int, typer.Option(help="Jobs that may wait, from 1; one more gets status 429.")] = 256,
    in_flight: Annotated[
        int | None, typer.Option(help="Jobs that are with the engine at once, from 1; default: twice --batch.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Requests of one size that are stepped together, from 1.")] = 8,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Videos do not depend on other requests to the last bit; slower."),
    ] = False,
    retention: Annotated[float, typer.Option(help="Days that results are kept, above 0.")] = 7.0,
    disk: Annotated[float, typer.Option(help="GiB of results, above 0; the oldest are removed beyond.")] = 10.0,
    max_upload: Annotated[float, typer.Option(help="MiB of an upload, above 0.")] = 64.0,
    max_steps: Annotated[int, typer.Option(help="Euler steps of a request, 1 to 1000.")] = 200,
    max_seconds: Annotated[float, typer.Option(help="Seconds of a video, above 0 to 60.")] = 20.0,
    max_pixels: Annotated[int, typer.Option(help="Pixels of a frame, from 1.")] = 1024 * 1024,
    max_takes: Annotated[int, typer.Option(help="Soundtracks of a video, 1 to 64.")] = 8,
    attempts: Annotated[
        int, typer.Option(help="Times that a job may be interrupted by the end of the process before it fails, from 1.")
    ] = 5,
    preview_every: Annotated[int, typer.Option(help="Steps between two previews, from 1.")] = 5,
    drain: Annotated[float, typer.Option(help="Seconds that jobs in progress have after SIGTERM, from 0.")] = 30.0,
    otlp_traces_endpoint: Annotated[
        str | None,
        typer.Option(
            help="Send spans to this OTLP endpoint, such as http://127.0.0.1:4318/v1/traces; default: OTEL_*."
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
) -> None:
    """Serve the videos API, durable jobs, metrics and a web page over HTTP."""
    if new_key is not None:
        _add_key(keys, new_key, admin=admin)
        return
    if host not in LOOPBACK and keys is None and not without_keys:
        raise ValueError(f"everybody who reaches {host} could use the server; give --keys FILE, or --without-keys")
    if not 0 <= port <= 65_535:
        raise ValueError(f"port is {port}; it must be a whole number from 0 to 65535")
    try:
        from ..engine.serving import app, logs, server, tracing
        from ..engine.serving.settings import DAY, GIB, MIB, RequestLimits, ServerSettings, UploadLimits
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("syncflow"):
            raise
        raise ValueError(f"serving needs {error.name}; install it with pip install 'syncflow[serve]'") from None

    settings = ServerSettings(
        data=data,
        database=database,
        keys=keys,
        requests=RequestLimits(max_steps, max_seconds, max_pixels, max_takes),
        uploads=UploadLimits(bytes=int(max_upload * MIB)),
        queue=queue,
        in_flight=2 * batch if in_flight is None else in_flight,
        attempts=attempts,
        retention=retention * DAY,
        disk=int(disk * GIB),
        preview_every=preview_every,
        drain=drain,
    )
    from ..engine.batching import Limits
    from ..engine.engine import Engine

    spans = tracing.configured(otlp_traces_endpoint)
    logs.configure()
    engine = Engine.from_pretrained(
        model,
        runtime=runtime,
        precision=precision,
        cuda_graphs=cuda_graphs,
        overlap=overlap,
        fp8=fp8,
        memory=memory,
        quantization=quantization,
        deterministic=deterministic,
        limits=Limits(batch=batch, queue=max(64, settings.in_flight)),
    )
    results.show_memory_plan(engine)
    server.serve(app.create_app(engine, settings, inspect=_inspect, tracing=spans), host, port)
    engine.close()


def _add_key(path: Path | None, tenant: str, *, admin: bool) -> None:
    from ..engine.serving.keys import add_key

    if path is None:
        raise ValueError("--new-key needs the file that the key is added to; give --keys FILE")
    print(add_key(path, tenant, admin=admin))


def _inspect(clip: Clip) -> dict[str, Any]:
    """Motion, impacts and onsets of a clip, for the web page."""
    from ..training.evaluation.inspection import inspect_clip

    return inspect_clip(clip).to_dict()
