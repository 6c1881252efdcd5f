"""``syncflow serve`` refuses wrong settings in one sentence, before anything is loaded."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "everybody who reaches 0.0.0.0 could use the server"),
        (("--port", 99_999), "port is 99999"),
        (("--new-key", "alice"), "give --keys FILE"),
        (("--queue", 0), "queue is 0"),
        (("--max-seconds", 100), "seconds is 100"),
        (("--max-takes", 0), "takes is 0"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(run, options, message):
    pytest.importorskip("fastapi")
    code, out, err = run("serve", *options)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_new_key_is_printed_once(run, tmp_path):
    pytest.importorskip("fastapi")
    path = tmp_path / "keys.json"
    code, out, err = run("serve", "--new-key", "alice", "--admin", "--keys", path)
    assert (code, err) == (0, "") and out.startswith("sf-")
    (key,) = json.loads(path.read_text())["keys"]
    assert (key["tenant"], key["admin"]) == ("alice", True) and out.strip() not in path.read_text()
