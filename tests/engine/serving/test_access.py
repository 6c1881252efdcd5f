"""API keys, tenants, rates and quotas."""

from __future__ import annotations

import json
import stat

import pytest

from syncflow.engine.serving.keys import ApiKey, KeyRing, RateLimiter, add_key

from .helpers import FAST, service_of


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.json"
    return path, {name: {"Authorization": f"Bearer {add_key(path, name)}"} for name in ("alice", "bob")}


@pytest.mark.slow
def test_tenants_do_not_see_each_other(start, keys):
    path, headers = keys
    client = start(keys=path)
    mine = client.post("/v1/videos", json=FAST, headers=headers["alice"]).json()["id"]
    assert [video["id"] for video in client.get("/v1/videos", headers=headers["alice"]).json()["data"]] == [mine]
    assert client.get("/v1/videos", headers=headers["bob"]).json()["data"] == []
    for method, tail in (("GET", ""), ("GET", "/content"), ("GET", "/events"), ("GET", "/inspection"), ("DELETE", "")):
        assert client.request(method, f"/v1/videos/{mine}{tail}", headers=headers["bob"]).status_code == 404
    assert client.get("/v1/videos", params={"after": mine}, headers=headers["bob"]).status_code == 422
    assert client.get(f"/v1/videos/{mine}", headers=headers["alice"]).status_code == 200
    one, other = (
        client.post("/v1/videos", json=FAST, headers=headers[name] | {"Idempotency-Key": "1"}).json()["id"]
        for name in ("alice", "bob")
    )
    assert one != other


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", "Basic YTpi", "bearer sf-"], ids=str)
def test_missing_and_wrong_keys_are_refused(start, keys, given):
    client = start(keys=keys[0])
    headers = {} if given is None else {"Authorization": given}
    for method, path in (
        ("GET", "/v1/videos"),
        ("POST", "/v1/videos"),
        ("GET", "/v1/models"),
        ("GET", "/debug/engine"),
    ):
        response = client.request(method, path, headers=headers)
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert client.get("/health").status_code == 200


def test_the_state_of_the_engine_is_for_administrators(start, keys):
    path, headers = keys
    token = add_key(path, "root", admin=True)
    client = start(keys=path)
    assert client.get("/debug/engine", headers=headers["alice"]).status_code == 403
    assert client.get("/debug/engine", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_quotas_and_rates(start, tmp_path):
    path = tmp_path / "keys.json"
    token = add_key(path, "carol", requests_per_minute=4, videos_per_day=1)
    client, headers = start(keys=path), {"Authorization": f"Bearer {token}"}
    assert client.post("/v1/videos", json=FAST, headers=headers).status_code == 200
    over = client.post("/v1/videos", json=FAST, headers=headers)
    assert (over.status_code, over.json()["error"]["code"]) == (429, "quota_exceeded")
    statuses = [client.get("/v1/videos", headers=headers) for _ in range(4)]
    assert [response.status_code for response in statuses][:2] == [200, 200]
    assert statuses[-1].status_code == 429 and int(statuses[-1].headers["Retry-After"]) >= 1


def test_the_file_holds_no_token(tmp_path):
    path = tmp_path / "keys.json"
    token = add_key(path, "alice")
    assert token not in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600
    ring = KeyRing.load(path)
    assert ring.find(token).tenant == "alice" and ring.find(token[:-1]) is None and ring.find(None) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no file of keys"),
        ('{"keys": []}', "holds no keys"),
        ('{"keys": [{"tenant": "a", "sha256": "12"}]}', "64 hexadecimal"),
        (json.dumps({"keys": [{"tenant": "a", "sha256": "0" * 64, "rate": 3}]}), "no setting rate"),
        (json.dumps({"keys": [{"tenant": "", "sha256": "0" * 64}]}), "1 to 64 characters"),
    ],
)
def test_a_wrong_file_of_keys_is_refused(tmp_path, content, message):
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        KeyRing.load(tmp_path / "keys.json")


def test_a_rate_comes_back_with_time():
    now = [0.0]
    limiter, key = RateLimiter(lambda: now[0]), ApiKey("a", requests_per_minute=60)
    assert [limiter.take(key) for _ in range(61)] == [0.0] * 60 + [1.0]
    now[0] = 1.0
    assert limiter.take(key) == 0.0 and limiter.take(key) == 1.0
    assert limiter.take(ApiKey("b", requests_per_minute=60)) == 0.0


def test_without_keys_everybody_is_one_tenant(client):
    assert service_of(client).keys.find(None).tenant == "default"
    assert client.get("/v1/videos", headers={"Authorization": "Bearer whatever"}).status_code == 200
