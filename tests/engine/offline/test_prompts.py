"""Prompt files in their three formats, and what is refused of them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncflow import Request
from syncflow.engine.offline import read_entries
from syncflow.engine.types import MAX_SEED

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    pyarrow = None

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)
ROWS = st.fixed_dictionaries(
    {"prompt": TEXT},
    optional={
        "seed": st.integers(0, MAX_SEED),
        "steps": st.integers(1, 1000),
        "guidance": st.floats(-100, 100).map(lambda value: value + 0.0),
        "seconds": st.floats(0.1, 60),
        "negative_prompt": TEXT,
        "guidance_interval": st.just([0.25, 0.75]),
        "takes": st.integers(1, 64),
    },
)


def written(path: Path, *lines: object) -> Path:
    """A file of JSON lines; a text is a line as it is."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
@given(st.lists(ROWS, min_size=1, max_size=5))
def test_a_row_is_the_same_request_in_every_format(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("prompts")
    expected = [Request(**row) for row in rows]
    written(folder / "a.jsonl", *rows)
    columns = sorted({name for row in rows for name in row})
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    if pyarrow is not None:
        types = {"seed": pyarrow.uint64()}
        table = {name: pyarrow.array([row.get(name) for row in rows], types.get(name)) for name in columns}
        parquet.write_table(pyarrow.table(table), folder / "a.parquet")
    for file in ("a.jsonl", "a.csv") if pyarrow is None else ("a.jsonl", "a.csv", "a.parquet"):
        entries = read_entries(folder / file)
        assert [entry.request for entry in entries] == expected, [entry.error for entry in entries]
        assert [entry.id for entry in entries] == [str(i + 1) for i in range(len(rows))]


@pytest.mark.skipif(pyarrow is None, reason="pyarrow is not installed: pip install 'syncflow[parquet]'")
def test_values_of_data_frames(tmp_path):
    """A data frame has NaN for what is missing, and floats in a column of integers with such."""
    columns = {"prompt": ["a", "b"], "seed": [7.0, math.nan], "seconds": [math.nan, 2.5], "id": [1.0, 2.0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    first, second = read_entries(tmp_path / "a.parquet")
    assert (first.id, first.request) == ("1", Request("a", seed=7))
    assert (second.id, second.request) == ("2", Request("b", seconds=2.5))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"b\.parquet cannot be read as Parquet"):
        read_entries(tmp_path / "b.parquet")


def test_cells_of_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        'id,prompt,sound_only,guidance_interval,video,seconds\nx,"a, b",true,,,2\ny,1984,FALSE,0.1 0.5,clip.mp4,\n'
        'z,c,,"[0.2, 0.4]",/tmp/clip.mp4,soon\n',
        encoding="utf-8-sig",
    )
    first, second, third = read_entries(path)
    assert first.request == Request("a, b", sound_only=True, seconds=2)
    assert second.request == Request("1984", guidance_interval=(0.1, 0.5), video=tmp_path / "clip.mp4")
    assert third.request is None and third.error == "seconds is 'soon'; it must be a number"


def test_a_bad_value_is_the_error_of_its_row(tmp_path):
    path = written(tmp_path / "a.jsonl", {"prompt": "a", "steps": 0}, "", {"prompt": "b", "seed": 3}, {"seed": 1})
    bad, good, empty = read_entries(path)
    assert (bad.id, bad.place, bad.request) == ("1", "a.jsonl, line 1", None)
    assert bad.error == "steps is 0; it must be a whole number from 1 to 1000"
    assert (good.place, good.request) == ("a.jsonl, line 3", Request("b", seed=3))
    assert empty.error == "the prompt is empty; say in a sentence what the clip shows"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"prompt": "a", "stepps": 3}], "a.jsonl, line 1: a prompt file has no column stepps; did you mean steps?"),
        ([{"prompt": "a", "num_inference_steps": 3}], "did you mean steps"),
        (["{]"], "a.jsonl, line 1: this is not JSON"),
        (["[1]"], "a.jsonl, line 1: this is .1.; a line must be a JSON object"),
        ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "X"}], "line 2: the id X is that of a.jsonl, line 1, too"),
        ([{"prompt": "a", "id": "../x"}], r"the id is '\.\./x'; it names a file"),
        ([{"prompt": "a", "id": ".x"}], "it names a file"),
        ([{"prompt": "a", "id": "x" * 121}], "it names a file"),
        ([{"prompt": "a", "id": True}], "it names a file"),
        ([""], "a.jsonl has no prompts"),
        (["[" * 100_000], "this is not JSON"),
    ],
)
def test_files_that_are_refused(tmp_path, lines, said):
    with pytest.raises(ValueError, match=said):
        read_entries(written(tmp_path / "a.jsonl", *lines))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", r"must end in \.jsonl, \.ndjson, \.csv, \.parquet"),
        ("a.jsonl", b"\xff\xfe", "is not text in UTF-8"),
        ("a.csv", b"prompt,seed\na\n", "a.csv, line 2: it must have 2 cells"),
        ("a.csv", b"prompt\na,b\n", "a.csv, line 2: it must have 1 cells"),
        ("a.csv", b'prompt\n"a', "a.csv, line 2: this is not CSV"),
        ("a.csv", b"prompt,nonsense\na,b\n", "has no column nonsense"),
    ],
)
def test_other_files_that_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_entries(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be read \(No such file"):
        read_entries(tmp_path / "a.jsonl")
