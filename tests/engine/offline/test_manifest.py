"""The manifest after any interruption."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow.engine.offline.manifest import FileRecord, Manifest, Record, done_by_id, read_records

FILE = FileRecord("x.mp4", 3, "00")
RECORDS = [
    Record("x", "done", {"prompt": "a ball is größer\n", "seed": 3}, "12", "34", (FILE, FILE), 1.5),
    Record("y", "failed", {"prompt": "b"}, error="steps is 0"),
    Record("x", "done", {}, "56", "34", (FILE,), 0.25),
]


def test_records_come_back(tmp_path):
    with Manifest(tmp_path / "new" / "manifest.jsonl") as manifest:
        for record in RECORDS:
            manifest.append(record)
    assert [*read_records(tmp_path / "new")] == RECORDS
    assert done_by_id(RECORDS) == {"x": [RECORDS[0], RECORDS[2]]}


@given(cut=st.integers(0, sum(len(record.line()) for record in RECORDS)))
def test_a_manifest_cut_off_anywhere_loses_one_record(tmp_path_factory, cut):
    """And the record that is appended next is whole."""
    path = tmp_path_factory.mktemp("cut") / "manifest.jsonl"
    lines = [record.line() for record in RECORDS]
    path.write_bytes(b"".join(lines)[:cut])
    whole = [record for i, record in enumerate(RECORDS) if sum(map(len, lines[: i + 1])) - 1 <= cut]
    with Manifest(path) as manifest:
        manifest.append(RECORDS[1])
    assert [*read_records(path.parent)] == [*whole, RECORDS[1]]


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"id": 1}', '{"id": "x", "status": "done", "files": [{"a": 1}]}'])
def test_lines_from_elsewhere_are_passed_over(tmp_path, line):
    (tmp_path / "manifest-1-of-2.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert [*read_records(tmp_path)] == []


def test_one_run_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    with Manifest(tmp_path / "manifest.jsonl"):
        with pytest.raises(ValueError, match=r"is in use by another run; end it first, or give each a --shard"):
            Manifest(tmp_path / "manifest.jsonl")
        with Manifest(tmp_path / "manifest-1-of-2.jsonl"):
            pass
    with Manifest(tmp_path / "manifest.jsonl"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write"):
        Manifest(tmp_path / "file" / "manifest.jsonl")
