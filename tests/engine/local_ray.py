"""Ray on this host alone, for a test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from syncflow.engine.offline.cluster import import_ray


@contextmanager
def local_ray(cpus: int) -> Iterator[Any]:
    """A cluster of this many CPUs; the test is skipped where there is no Ray, or where it does not start in time."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'syncflow[cluster]'")
    ray = import_ray()
    try:
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("Ray has not started within its 30 s: the machine is too busy")
    try:
        yield ray
    finally:
        ray.shutdown()
