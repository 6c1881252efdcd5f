"""The command line as a user meets it: results, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import syncflow
from syncflow.engine.components import Components
from syncflow.engine.engine import bundled_model
from syncflow.engine.media import load_audio, load_clip, probe
from syncflow.engine.model import DDiT

pytestmark = pytest.mark.slow

PROMPT = "a large red rubber ball bounces on a wooden floor"


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, one line on standard error that has the words, no traceback."""
    code, _, err = result
    assert code == 2
    lines = [line for line in err.strip().splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("syncflow: "), err
    for word in words:
        assert word in lines[0], f"{word!r} not in {lines[0]!r}"


def test_generate_writes_an_mp4_and_says_what(run, tmp_path):
    out = tmp_path / "new folder" / "clip.mp4"
    code, text, _ = run("generate", PROMPT, "-o", out, "--steps", 2, "--seed", 3, "--json")
    assert code == 0
    said = json.loads(text)
    assert said["seed"] == 3 and said["frames"] == 32 and said["path"] == str(out)
    info = probe(out)
    assert (info.width, info.height, info.video_codec, info.audio_codec) == (64, 64, "h264", "aac")
    assert info.provenance["prompt"] == PROMPT
    assert [p.name for p in out.parent.iterdir()] == ["clip.mp4"]


def test_generate_wav(run, tmp_path):
    code, _, _ = run("generate", PROMPT, "-o", tmp_path / "clip.wav", "--steps", 1)
    assert code == 0
    assert (tmp_path / "clip.wav").stat().st_size > 96_000


def test_other_size_and_duration(run, tmp_path):
    out = tmp_path / "clip.mp4"
    assert run("generate", PROMPT, "-o", out, "--steps", 1, "--size", "96x64", "--seconds", "1.5")[0] == 0
    clip = load_clip(out)
    assert clip.frames.shape == (24, 64, 96, 3)


def test_video_to_audio_takes_any_video(run, tmp_path):
    rng = np.random.default_rng(0)
    known = syncflow.Clip(
        rng.integers(0, 255, (25, 48, 80, 3), dtype=np.uint8), np.zeros(44_100, np.float32), 25.0, 44_100
    )
    known.save(tmp_path / "known.mp4")
    out = tmp_path / "sound.mp4"
    code, _, err = run("generate", "", "--video", tmp_path / "known.mp4", "-o", out, "--steps", 2)
    assert code == 0, err
    assert load_clip(out).seconds == pytest.approx(1.0, abs=0.1)


def test_a_clip_is_begun_continued_and_varied(run, tmp_path):
    """Each from the one before, with every kind of guidance on."""
    guided = ("--steps", 2, "--sync-guidance", 2, "--sync-cfg-audio", 2, "--negative", "a small blue ball", "--json")
    first, longer, other, begun = (tmp_path / f"{name}.mp4" for name in ("first", "longer", "other", "begun"))
    steps = (
        ((PROMPT, "-o", first, "--seconds", 1), 1, "text-to-audio-video"),
        ((PROMPT, "-o", longer, "--extend", first), 2, "continuation"),
        ((PROMPT, "-o", other, "--video", longer, "--strength", 0.5), 2, "variation"),
        (
            (
                *(PROMPT, "-o", begun, "--image", other),
                *("--cfg-interval", 0.1, 0.9, "--cfg-rescale", 0.5, "--branch-interval", 2),
            ),
            2,
            "image-to-audio-video",
        ),
    )
    for arguments, seconds, task in steps:
        code, text, err = run("generate", *arguments, *guided)
        assert code == 0, err
        said = json.loads(text)
        assert (said["seconds"], said["task"], said["sync_guidance"]) == (seconds, task, 2)
    assert load_clip(longer).seconds == 2


@pytest.mark.parametrize("name", ["syncphony-tiny", "harmony-tiny"])
def test_the_other_papers_run_from_a_package(run, tmp_path, name):
    """Random weights: they draw noise, from a sound and with every guidance of theirs."""
    bundled = Components.load(bundled_model())
    config = syncflow.preset(name)
    Components(config, DDiT(config.ddit), bundled.video, bundled.audio, bundled.text).save(tmp_path / "model")
    tone = 0.3 * np.sin(np.arange(24_000) / 20, dtype=np.float32)
    syncflow.Clip(np.zeros((8, 64, 64, 3), np.uint8), tone, 16.0, 48_000).save(tmp_path / "tone.wav")
    out = tmp_path / "clip.mp4"
    arguments = ("--model", tmp_path / "model", "--audio", tmp_path / "tone.wav", "--steps", 2, "--json")
    if name == "harmony-tiny":
        arguments += ("--reference", tmp_path / "tone.wav")
    code, text, err = run("generate", PROMPT, "-o", out, *arguments)
    assert code == 0, err
    said = json.loads(text)
    assert (said["task"], said["model"], said["seconds"]) == ("audio-to-video", name, 0.5)


def test_a_sound_alone_comes_from_a_model_whose_audio_reads_the_text(run, tmp_path):
    bundled = Components.load(bundled_model())
    config = bundled.config.replace(ddit=bundled.config.ddit.replace(audio_text=True, depth=2))
    Components(config, DDiT(config.ddit), bundled.video, bundled.audio, bundled.text).save(tmp_path / "model")
    arguments = ("--model", tmp_path / "model", "--sound-only", "--seconds", 0.5, "--steps", 2)
    code, text, err = run("generate", PROMPT, "-o", tmp_path / "sound.wav", *arguments, "--json")
    assert code == 0, err
    said = json.loads(text)
    assert (said["task"], said["seconds"], said["frames"]) == ("text-to-audio", 0.5, 0)
    assert len(load_audio(tmp_path / "sound.wav")) == 24_000
    code, text, _ = run("generate", PROMPT, "-o", tmp_path / "sound.wav", *arguments)
    assert text.startswith(f"{tmp_path / 'sound.wav'}: 0.5 s, sound alone, ")


def test_takes_are_files_beside_each_other(run, tmp_path):
    arguments = ("--steps", 1, "--seconds", 0.5, "--takes", 2, "--audio-seed", 5)
    code, text, err = run("generate", PROMPT, "-o", tmp_path / "c.mp4", *arguments, "--json")
    assert code == 0, err
    said = json.loads(text)
    names = [tmp_path / "c-1.mp4", tmp_path / "c-2.mp4"]
    assert (said["paths"], said["audio_seeds"]) == ([str(name) for name in names], [5, 6])
    assert "path" not in said and "audio_seed" not in said
    assert sorted(tmp_path.iterdir()) == names
    assert [probe(name).provenance["audio_seed"] for name in names] == [5, 6]
    code, text, _ = run("generate", PROMPT, "-o", tmp_path / "c.wav", *arguments)
    first, second, last = text.splitlines()
    assert first == f"{tmp_path / 'c-1.wav'}: 0.5 s, sound alone, audio seed 5"
    assert second.endswith("audio seed 6") and last.startswith("2 takes, ")


def test_a_clip_is_taken_again(run, tmp_path):
    """Its latents lie beside it; its own seed draws its own sound, and another one another."""
    first = tmp_path / "first.mp4"
    arguments = ("--steps", 2, "--seconds", 1, "--size", "96x64", "--seed", 3)
    code, _, err = run("generate", PROMPT, "-o", first, *arguments, "--keep-latents")
    assert code == 0, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first.latents.safetensors", "first.mp4"]
    sounds = [load_clip(first).waveform]
    for out, more in (("same.wav", ()), ("other.wav", ("--seed", 4)), ("said.mp4", ("--prompt", "a small blue ball"))):
        code, text, err = run("retake", first, "-o", tmp_path / out, *more, "--json")
        assert code == 0, err
        sounds.append(load_audio(tmp_path / out)[:48_000])
    said = json.loads(text)
    assert (said["prompt"], said["seed"], said["steps"], said["width"]) == ("a small blue ball", 3, 2, 96)
    near, *far = (np.abs(sound - sounds[0]).mean() for sound in sounds[1:])
    assert near < 0.2 * min(far)  # AAC lies between
    run("retake", first, "-o", tmp_path / "more.mp4", "--takes", 2, "--keep-latents")
    names = [f"more-{i}{ending}" for i in (1, 2) for ending in (".latents.safetensors", ".mp4")]
    assert sorted(p.name for p in tmp_path.glob("more*")) == names


def test_the_plan_of_a_clip_is_printed_instead_of_drawing_it(run, tmp_path):
    code, text, err = run("generate", PROMPT, "--plan", "--steps", 2, "--takes", 2)
    assert code == 0, err
    assert text.startswith("syncflow-tiny, text-to-audio-video: 2 s, 64x64\n")
    assert "The reference loop: 8 forwards of both towers for each of 2 takes, " in text
    code, text, err = run("generate", PROMPT, "--plan", "--json", "--model", "syncphony-tiny", "-o", tmp_path / "c.mp4")
    assert code == 0, err
    said = json.loads(text)
    assert (said["model"], said["branches"]) == ("syncphony-tiny", 150)
    assert [one["rows"] for one in said["phases"][0]["video"]] == [2, 3]
    assert not list(tmp_path.iterdir())


def test_bench_flops_counts_presets(run):
    code, text, err = run("bench", "flops", "syncphony-tiny", "--json")
    assert code == 0, err
    assert json.loads(text)["step_overhead"]["syncphony-tiny"]["no_bridge"] == pytest.approx(0.492, abs=1e-3)
    refused(run("bench", "flops", "huge"), "there is no preset")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "-o", "{tmp}/c.mp4"], ["prompt is empty"]),
        (["   ", "-o", "{tmp}/c.mp4"], ["prompt is empty"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--size", "60x64"], ["60", "multiple of 16"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--size", "64"], ["WIDTHxHEIGHT"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--size", "64x99999968"], ["99999968", "2048"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--seconds", "0"], ["seconds is 0"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--seconds", "1e9"], ["at most 60"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--seconds", "nan"], ["seconds is nan"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--steps", "0"], ["steps is 0"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--cfg", "inf"], ["guidance is inf"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--seed", "-1"], ["seed is -1"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--video-lead", "2"], ["video_lead is 2"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--sync-guidance", "nan"], ["sync_guidance is nan"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--cfg-interval", "0.9", "0.1"], ["0.9 to 0.1", "rising"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--cfg-rescale", "2"], ["guidance_rescale is 2"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--branch-interval", "0"], ["branch_interval is 0"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--strength", "0.5"], ["strength", "video"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--runtime", "torch", "--fp8"], ["fp8 needs a CUDA device"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--cuda-graphs"], ["cuda_graphs needs a CUDA device"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--overlap"], ["overlap needs a CUDA device"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--autotune"], ["autotune is an option of the runtime compiled"]),
        ([PROMPT], ["-o clip.mp4"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--takes", "0"], ["takes is 0", "from 1 to 64"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--takes", "65"], ["takes is 65"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--audio-seed", "-1"], ["audio_seed is -1"]),
        ([PROMPT, "-o", "{tmp}/c.wav", "--keep-latents"], ["--keep-latents", "c.wav"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--sound-only"], ["c.mp4 must end in .wav"]),
        ([PROMPT, "-o", "{tmp}/c.wav", "--sound-only"], ["whose audio reads the text"]),
        ([PROMPT, "-o", "{tmp}/c.wav", "--sound-only", "--size", "64x64"], ["sound_only", "width, height"]),
        ([PROMPT, "-o", "{tmp}/c.wav", "--sound-only", "--video", "{tmp}/file"], ["sound_only", "video"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--reference", "{tmp}/file"], ["reference", "global_local"]),
        ([PROMPT, "--plan", "--model", "{tmp}/nowhere"], ["no model folder"]),
        ([PROMPT, "--plan", "--model", "syncphony-tiny", "--takes", "2"], ["more than one take", "audio_rope"]),
        ([PROMPT, "--plan", "--model", "syncphony-tiny", "--video", "{tmp}/file"], ["video-to-audio", "audio_rope"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--image", "{tmp}/file", "--extend", "{tmp}/file"], ["image and extend"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--image", "{tmp}/file"], ["file"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--audio", "{tmp}/file"], ["audio-to-video", "adaptor"]),
        ([PROMPT, "-o", "{tmp}/c.avi"], [".mp4"]),
        ([PROMPT, "-o", "{tmp}"], [".mp4"]),
        ([PROMPT, "-o", "{tmp}/file/c.mp4"], ["must be a folder"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--model", "{tmp}/nowhere"], ["no model folder"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--model", "{tmp}"], ["no model package"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--model", "{tmp}/damaged"], ["checksum"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--video", "{tmp}/none.mp4"], ["none.mp4", "does not exist"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--video", "{tmp}/truncated.mp4"], ["truncated"]),
        ([PROMPT, "-o", "{tmp}/c.mp4", "--video", "{tmp}/file"], ["file"]),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_writes_nothing(run, tmp_path, arguments, words):
    (tmp_path / "file").write_text("not a video")
    text = " ".join(arguments)
    if "truncated" in text:
        clip = syncflow.Clip(np.zeros((32, 64, 64, 3), np.uint8), np.zeros(96_000, np.float32), 16.0, 48_000)
        clip.save(tmp_path / "whole.mp4")
        data = (tmp_path / "whole.mp4").read_bytes()
        (tmp_path / "whole.mp4").unlink()
        (tmp_path / "truncated.mp4").write_bytes(data[: len(data) // 2])
    if "damaged" in text:
        shutil.copytree(bundled_model(), tmp_path / "damaged")
        weights = tmp_path / "damaged" / "ddit" / "diffusion_pytorch_model.safetensors"
        damaged = bytearray(weights.read_bytes())
        damaged[-1] ^= 1
        weights.write_bytes(damaged)
    before = sorted(path.name for path in tmp_path.iterdir())
    refused(run("generate", *(a.replace("{tmp}", str(tmp_path)) for a in arguments)), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/none.mp4", "-o", "{tmp}/c.mp4"], ["none.mp4", "does not exist"]),
        (["{tmp}/file", "-o", "{tmp}/c.mp4"], ["file"]),
        (["{tmp}/file", "-o", "{tmp}/c.avi"], [".mp4", ".wav"]),
        (["{tmp}/file", "-o", "{tmp}/c.mp4", "--takes", "1000000000"], ["takes is 1000000000"]),
        (["{tmp}/file", "-o", "{tmp}/c.mp4", "--seed", "-1"], ["audio_seed is -1"]),
        (["{tmp}/file", "-o", "{tmp}/c.mp4", "--cfg", "nan"], ["guidance is nan"]),
        (["{tmp}/file", "-o", "{tmp}/c.wav", "--keep-latents"], ["--keep-latents"]),
        (["{tmp}/sound.wav", "-o", "{tmp}/c.mp4"], ["sound.wav is not a video"]),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None,
)
def test_a_retake_that_cannot_be_is_one_line(run, tmp_path, arguments, words):
    (tmp_path / "file").write_text("not a video")
    syncflow.Clip(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(48_000, np.float32), 16, 48_000).save(
        tmp_path / "sound.wav"
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    refused(run("retake", *(a.replace("{tmp}", str(tmp_path)) for a in arguments)), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_long_prompt_is_cut_with_a_warning(run, tmp_path):
    code, _, err = run("generate", PROMPT * 3, "-o", tmp_path / "c.mp4", "--steps", 1, "--json")
    assert code == 0
    assert "warning" in err and "cut to 64" in err and "Traceback" not in err


def test_inspect_draws_and_measures(run, tmp_path):
    run("generate", PROMPT, "-o", tmp_path / "c.mp4", "--steps", 1)
    code, text, _ = run("inspect", tmp_path / "c.mp4", "-o", tmp_path / "c.png", "--json")
    assert code == 0
    assert json.loads(text)["frames"] == 32
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_data_evaluate_and_train_refuse_kindly(run, tmp_path):
    refused(run("evaluate", "--prompts", tmp_path / "none.txt"), "none.txt")
    (tmp_path / "page").touch()
    refused(run("evaluate", "-o", tmp_path / "page"), "page is a file; it must be a folder or not exist yet")
    refused(run("train", tmp_path / "nowhere", "--run", tmp_path / "run"), "nowhere")
    refused(run("train", tmp_path, "--run", tmp_path / "run", "--preset", "huge"), "there is no preset")
    refused(run("train", tmp_path, "--run", tmp_path / "run", "--set", "nonsense=1"), "no setting nonsense")
    refused(run("inspect", tmp_path / "none.mp4"), "does not exist")


def test_data_impacts(run, tmp_path):
    code, _, _ = run("data", "impacts", tmp_path / "clips", "--clips", 2, "--seed", 1, "--workers", 1)
    assert code == 0
    lines = (tmp_path / "clips" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == ["clip_000000.mp4", "clip_000001.mp4"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], ["Missing argument", "generate --help"]),
        (["generate", PROMPT, "--nonsense"], ["--nonsense", "syncflow generate --help"]),
        (["generate", PROMPT, "--steps", "many"], ["--steps", "integer"]),
        (["generate", PROMPT, "--precision", "int4"], ["--precision", "int4", "float32"]),
        (["generate", PROMPT, "another", "-o", "x.mp4"], ["another"]),
        (["nonsense"], ["nonsense", "syncflow --help"]),
        (["bench", "nonsense"], ["nonsense", "syncflow bench --help"]),
        (["evaluate", "--count", "-1"], ["--count", "0"]),
        (["--nonsense"], ["--nonsense"]),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else None,
)
def test_wrong_arguments_are_one_line(run, arguments, words):
    refused(run(*arguments), *words)


def test_without_arguments_there_is_help(run):
    code, out, err = run()
    assert code == 2 and "generate" in out + err and "Traceback" not in out + err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("inspect", "{clip}", "--json")], ids=" ".join)
def test_a_full_output_is_one_line(arguments, tmp_path):
    clip = tmp_path / "clip.mp4"
    if "inspect" in arguments:
        syncflow.Clip(np.zeros((8, 64, 64, 3), np.uint8), np.zeros(24_000, np.float32), 16.0, 48_000).save(clip)
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "syncflow", *(text.replace("{clip}", str(clip)) for text in arguments)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "syncflow: the output cannot be written or read (No space left on device)\n"


def test_a_closed_pipe_is_no_mistake():
    command = [sys.executable, "-m", "syncflow", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_file_holds_no_progress_bar(tmp_path):
    """A bar is for who watches; what is written to a file is lines."""
    command = [sys.executable, "-m", "syncflow", "generate", PROMPT, "--steps", "1", "--seconds", "0.25", "-o"]
    done = subprocess.run([*command, str(tmp_path / "clip.mp4")], capture_output=True, check=True)
    assert b"\r" not in done.stdout + done.stderr and b"step" not in done.stderr


def test_the_version_is_one_line(run):
    assert run("--version") == (0, f"syncflow {syncflow.__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_the_commands(run, shell, monkeypatch):
    """In the shell above this process, which need not be one here."""
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, shell))
    code, text, _ = run("--show-completion", shell)
    assert code == 0 and "complet" in text and "syncflow" in text and "pytest" not in text


def test_the_module_runs_as_a_process():
    done = subprocess.run([sys.executable, "-m", "syncflow", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "generate" in done.stdout
