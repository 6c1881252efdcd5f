"""The server as its clients see it: the OpenAPI document under random requests, OpenAI's client, Grafana.

``SYNCFLOW_FUZZ_REQUESTS`` asks for more random requests of each operation.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from syncflow.engine.serving.settings import RequestLimits

from .conftest import running
from .helpers import FAST

EXAMPLES = int(os.environ.get("SYNCFLOW_FUZZ_REQUESTS", "10"))  # of each operation
ROOT = Path(__file__).parents[3]
schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def api(engine, tmp_path_factory):
    small = RequestLimits(steps=2, seconds=0.5, takes=1, pixels=64 * 64)
    with running(engine, tmp_path_factory.mktemp("api") / "data", requests=small, queue=8) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json", wait_for_schema=30)


@pytest.mark.slow
def test_no_request_is_a_server_error(api):
    checks = schemathesis.checks
    wanted = [checks.not_a_server_error, checks.status_code_conformance, checks.response_schema_conformance]
    statuses: Counter[int] = Counter()
    for operation in api.get_all_operations():

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy())
        def try_requests(case):
            response = case.call(timeout=60)
            statuses[response.status_code] += 1
            case.validate_response(response, checks=wanted)

        try_requests()
    print(dict(statuses))
    assert statuses[200] and statuses[404] and statuses[422]


def test_the_document_has_examples_and_names_every_field(client):
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    example = body["application/json"]["examples"]["text"]["value"]
    assert client.post("/v1/videos", json=example | FAST).status_code == 200
    fields = set(document["components"]["schemas"]["JsonVideoCreateParams"]["properties"])
    extensions = "num_frames fps num_inference_steps guidance_scale sync_guidance seed takes negative_prompt task"
    assert fields >= {"prompt", "seconds", "size", "input_reference", *extensions.split()}
    assert set(body["multipart/form-data"]["schema"]["properties"]) == fields
    references = json.dumps(document).split('"$ref": "#/components/schemas/')[1:]
    assert {part.partition('"')[0] for part in references} <= document["components"]["schemas"].keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_client_of_openai(live_url, clip_file, tmp_path):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{live_url}/v1", api_key="none", max_retries=0)
    extra = {"num_inference_steps": 2, "seed": 7}
    request = {"prompt": "a ball", "seconds": "1", "size": "64x64"}
    video = client.videos.create_and_poll(**request, poll_interval_ms=50, extra_body=extra)
    assert (video.status, video.seconds, video.size, video.progress) == ("completed", "1", "64x64", 100)
    client.videos.download_content(video.id).write_to_file(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"
    assert client.videos.download_content(video.id, variant="thumbnail").read()[8:12] == b"WEBP"
    assert [one.id for one in client.videos.list(limit=1)] == [video.id]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.videos.create(prompt="a ball", size="30x30")
    assert refused.value.param == "width"


def test_the_dashboard_shows_metrics_that_exist(client):
    import re

    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    named = {name for query in queries for name in re.findall(r"syncflow_\w+", query)}
    text = client.get("/metrics").text
    assert len(named) >= 10
    assert {name for name in named if not re.search(rf"^(# TYPE )?{name}\b", text, re.M)} == set()
