"""A replaced file is the new one as a whole, or the earlier one."""

import pytest

from syncflow.engine.replacement import replacement


def test_the_file_is_replaced(tmp_path):
    path = tmp_path / "values.json"
    path.write_text("old")
    with replacement(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_earlier_file_and_the_next_attempt_begins_anew(tmp_path):
    path = tmp_path / "values.json"
    path.write_text("old")
    with pytest.raises(OSError, match="no space"), replacement(path) as part:
        part.write_text("half of a lo")
        raise OSError("no space")
    assert path.read_text() == "old"
    with replacement(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
