"""``syncflow batch``: its lines, its JSON, its exit codes."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow

SMALL = {"steps": 1, "seconds": 0.25, "width": 32, "height": 32}


@pytest.fixture
def prompts(tmp_path):
    def write(*rows: dict[str, object]):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def test_a_folder_of_clips(run, prompts, tmp_path):
    path = prompts({"prompt": "a ball", "id": "ball", **SMALL}, {"prompt": "b", "steps": 0})
    arguments = ("batch", path, "-o", tmp_path / "clips", "--runtime", "torch")
    code, out, err = run(*arguments)
    assert code == 1
    assert out.startswith(f"{tmp_path / 'clips'}: 1 generated, 1 failed, ")
    assert err.splitlines()[0] == "2 to generate, 0 done before"
    assert "syncflow: prompts.jsonl, line 2: steps is 0; it must be a whole number from 1 to 1000" in err.splitlines()
    assert (tmp_path / "clips" / "ball.mp4").exists()

    code, out, err = run(*arguments, "--json")
    found = json.loads(out)
    assert (code, err) == (1, "")
    assert (found["generated"], found["skipped"], found["failed"]) == (0, 1, 1)
    assert found["failures"] == [{"id": "2", "error": "steps is 0; it must be a whole number from 1 to 1000"}]
    assert found["manifest"] == str(tmp_path / "clips" / "manifest.jsonl")

    prompts({"prompt": "a ball", "id": "ball", **SMALL})
    code, out, _ = run(*arguments)
    assert (code, out.split(", ")[:2]) == (0, [f"{tmp_path / 'clips'}: 0 generated", "1 done before"])


def test_clips_under_a_budget_of_memory(run, prompts, tmp_path):
    path = prompts({"prompt": "a ball", "id": "ball", **SMALL})
    code, out, _ = run("batch", path, "-o", tmp_path / "clips", "--memory", "60MB")
    assert (code, out.split(", ")[0]) == (0, f"{tmp_path / 'clips'}: 1 generated")
    code, _, err = run("batch", path, "-o", tmp_path / "others", "--memory", "3MB")
    assert code == 2 and "memory is 3 MB" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shard", "0/2"], "shard is '0/2'; it must be I/N with I from 1 to N, for example 2/8"),
        (["--workers", "2"], "--workers and --cpus are those of a Ray cluster; add --ray"),
        (["--format", "wav", "--keep-latents"], "latents are saved beside an mp4, and the format is wav"),
        (["--model", "nowhere"], "there is no model folder nowhere"),
        (["--runtime", "steam"], "steam"),
    ],
)
def test_mistakes(run, prompts, tmp_path, arguments, said):
    code, _, err = run("batch", prompts({"prompt": "a", **SMALL}), "-o", tmp_path / "clips", *arguments)
    assert code == 2 and said in err.splitlines()[-1]


def test_an_unknown_column_is_a_mistake(run, prompts, tmp_path):
    code, _, err = run("batch", prompts({"prompt": "a", "cfg": 3}), "-o", tmp_path / "clips")
    assert code == 2
    assert err == "syncflow: prompts.jsonl, line 1: a prompt file has no column cfg; did you mean guidance?\n"
    assert not (tmp_path / "clips").exists()
