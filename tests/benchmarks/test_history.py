"""The history of benchmarks, and its page: complete in itself, safe, and readable without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from syncflow.benchmarks import history
from syncflow.benchmarks.history import Run
from syncflow.benchmarks.machine import Machine, this_machine
from syncflow.cli import main


def machine(**changes: object) -> Machine:
    values = {
        "processor": "Some <CPU>", "digest": "ab" * 20, "instructions": "x86-64-v3", "cores": 2, "threads": 2,
        "load": 0.5, "revision": "0123456789ab", "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    return Machine(**(values | changes))


def test_runs_are_kept_by_kind_of_machine(tmp_path):
    for day, one in ((2, machine()), (1, machine(load=3.0)), (3, machine(threads=1))):
        history.append(tmp_path, Run("bench step", f"2026-01-0{day}", one, {"a, ms": day}))
    found = history.read(tmp_path)
    assert {kind: [run.date for run in runs] for kind, runs in found.items()} == {
        "some-cpu-abababab-x86-64-v3-2-threads": ["2026-01-01", "2026-01-02"],
        "some-cpu-abababab-x86-64-v3-1-threads": ["2026-01-03"],
    }
    assert found["some-cpu-abababab-x86-64-v3-2-threads"][1] == Run("bench step", "2026-01-02", machine(), {"a, ms": 2})


def test_a_run_of_this_process_is_recorded(tmp_path):
    history.record(tmp_path, "bench step", {"a, ms": 1.5})
    ((kind, (run,)),) = history.read(tmp_path).items()
    assert kind == this_machine().kind and run.figures == {"a, ms": 1.5}
    assert run.machine.processor and run.machine.instructions and "torch" in run.machine.versions


class Page(HTMLParser):
    """Tags that are open, and addresses that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.points = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.points += tag == "circle"
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset")]
        assert tag != "script"
        if tag not in ("meta", "line", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in ("line", "polyline")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_complete_in_itself(tmp_path, capsys, monkeypatch):
    for day in (1, 2, 3):
        history.append(tmp_path, Run("bench <step>", f"2026-01-0{day}", machine(), {"a & b": day, "c": -1}))
    command = ["syncflow", "bench", "history", str(tmp_path), "-o", str(tmp_path / "trends.html")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert capsys.readouterr().out == f"{tmp_path / 'trends.html'}: 3 runs\n"
    text = (tmp_path / "trends.html").read_text()
    found = Page(text)
    assert not found.open and not found.addresses and found.points == 6
    assert "Some &lt;CPU&gt;" in text and "bench &lt;step&gt;" in text and "a &amp; b" in text
    assert not re.search(r"https?:|@import|url\(", text) and "prefers-color-scheme: dark" in text


def test_points_stand_by_their_value():
    values = (2.0, 0.0, 1.0)
    runs = [Run("c", f"2026-01-0{i + 1}", machine(), {"a": value}) for i, value in enumerate(values)]
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', history.page({"kind": runs}))]
    top, bottom = history.MARGIN, history.HEIGHT - history.MARGIN
    assert heights == pytest.approx([top, bottom, (top + bottom) / 2], abs=0.1)


@pytest.mark.parametrize("line", ["{}", "nothing", '{"command": "a", "date": "b", "machine": {}, "figures": {}}'])
def test_a_damaged_history_is_refused(tmp_path, line):
    (tmp_path / "some.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"some\.jsonl, line 1 is no run"):
        history.read(tmp_path)


def test_a_folder_without_a_history_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no history"):
        history.read(tmp_path)
