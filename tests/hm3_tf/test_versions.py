"""Versions appear whole, in order, one writer at a time; what a killed one left goes, and so do old ones."""

from pathlib import Path

import pytest

from data_pipeline import storage
from data_pipeline.storage import LOCK_FILE, lock
from hm3_tf.errors import ConfigError, Hm3Error
from hm3_tf.versions import DONE_FILE, new_version, version_numbers, whole_versions


def write(folder, keep=None):
    """Makes a version with a file in it and returns its path."""
    with new_version(str(folder), keep) as (staged, version):
        (Path(staged) / "saved_model.pb").write_text("model")
    return version


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_versions_count_up_as_numbers_and_leave_all_else_alone(tmp_path):
    assert write(tmp_path / "new").endswith("new/1")
    for name in ("9", "10", "notes", "11.tmp-old"):
        (tmp_path / "new" / name).mkdir()
    assert write(tmp_path / "new").endswith("new/11")
    assert names(tmp_path / "new") == ["1", "10", "11", "11.tmp-old", "9", LOCK_FILE, "notes"]
    assert version_numbers(str(tmp_path / "new")) == [1, 9, 10, 11]
    assert version_numbers(str(tmp_path / "gone")) == []


def test_who_watches_the_folder_sees_no_version_before_it_is_whole(tmp_path):
    write(tmp_path)
    with new_version(str(tmp_path)) as (staged, version):
        (Path(staged) / "saved_model.pb").write_text("half")
        assert [name for name in names(tmp_path) if name.isdigit()] == ["1"]
        assert not (Path(staged) / DONE_FILE).exists()
    assert names(Path(version)) == [DONE_FILE, "saved_model.pb"]


def test_the_mark_that_it_is_done_is_written_after_all_else(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("hm3_tf.versions.storage.write_text", lambda path, text: seen.append((path, names(tmp_path))))
    write(tmp_path)
    ((path, there),) = seen
    assert path.endswith(DONE_FILE) and "1" not in there, "it comes with the rename"


def test_of_a_remote_folder_half_a_version_is_none_and_costs_no_whole_one(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "is_remote", lambda path: True)
    monkeypatch.setattr(storage, "open_file_system", lambda path: None)
    for _ in range(2):
        write(tmp_path)
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "saved_model.pb").write_text("half")
    assert (version_numbers(str(tmp_path)), whole_versions(str(tmp_path))) == ([1, 2, 3], [1, 2])
    assert write(tmp_path, keep=2).endswith("/4")
    assert whole_versions(str(tmp_path)) == [2, 4]


def test_fewer_than_two_versions_cannot_be_kept(tmp_path):
    with pytest.raises(ConfigError, match="keep: expected at least 2 versions, .* got 1"):
        write(tmp_path, keep=1)


def fail(folder):
    with new_version(str(folder), keep=2) as (staged, _):
        (Path(staged) / "saved_model.pb").write_text("half")
        raise RuntimeError("the disk is on fire")


def test_a_version_that_fails_does_not_appear_and_costs_no_other(tmp_path):
    for _ in range(3):
        write(tmp_path)
    with pytest.raises(RuntimeError, match="on fire"):
        fail(tmp_path)
    assert names(tmp_path) == ["1", "2", "3", LOCK_FILE]


def test_the_newest_versions_are_kept_once_the_new_one_is_there(tmp_path):
    for _ in range(4):
        write(tmp_path)
    with new_version(str(tmp_path), keep=2):
        assert version_numbers(str(tmp_path)) == [1, 2, 3, 4]
    assert names(tmp_path) == ["4", "5", LOCK_FILE]
    write(tmp_path, keep=9)
    assert names(tmp_path) == ["4", "5", "6", LOCK_FILE]


def test_what_a_killed_one_left_is_cleared_by_the_next(tmp_path):
    write(tmp_path)
    for name in ("2.tmp-77", "1.tmp-78"):  # while it wrote a version, and while it removed one
        (tmp_path / name / "variables").mkdir(parents=True)
    with new_version(str(tmp_path)):
        assert not {"2.tmp-77", "1.tmp-78"} & set(names(tmp_path))


def test_while_one_is_at_work_another_is_refused_and_clears_nothing(tmp_path):
    (tmp_path / "1.tmp-77").mkdir()
    with lock(str(tmp_path)), pytest.raises(Hm3Error, match="expected no other work here, but a process holds lock"):
        write(tmp_path)
    assert names(tmp_path) == ["1.tmp-77", LOCK_FILE]
