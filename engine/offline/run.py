"""A run: plan, generate, record."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from ..engine import model_folder
from ..package import open_package
from .cluster import ClusterOptions, write_on_cluster
from .manifest import Manifest, Record
from .outputs import Outputs
from .plan import Plan, Shard, make_plan, manifest_name
from .prompts import Entry
from .worker import EngineSettings, write_here


def generate_entries(
    entries: Sequence[Entry],
    outputs: Outputs,
    settings: EngineSettings,
    *,
    shard: Shard | None = None,
    cluster: ClusterOptions | None = None,
    on_plan: Callable[[Plan], object] = lambda plan: None,
) -> Generator[Record, None, None]:
    """Make the clips of entries that are not done yet, in this process or on a Ray ``cluster``.

    Yields a record of each entry once it is in the manifest; closing the iterator cancels the rest. ``on_plan`` is
    called with the plan, before the engine is loaded. Raises ``ValueError`` for a model that is none, for a folder that
    cannot be written or that another run writes to, and where no worker can start.
    """
    package = open_package(model_folder(settings.model))
    with Manifest(outputs.folder / manifest_name(shard)) as manifest:
        outputs.remove_stale()
        plan = make_plan(entries, outputs, package.config, package.digest, shard)
        on_plan(plan)
        left = [item.entry for item in plan.items]
        if not left:
            return
        if cluster is None:
            records = write_here(left, settings, outputs)
        else:
            records = write_on_cluster(left, settings, outputs, package.digest, cluster)
        with closing(records):
            for record in records:
                manifest.append(record)
                yield record
