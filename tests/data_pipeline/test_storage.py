"""Outputs appear under their name only when complete; paths that cannot be used say why."""

import os
import re
import shutil
import sys

import pytest
import tensorflow as tf

from data_pipeline import storage
from hm3_tf.errors import DataError, Hm3Error


def tree(folder):
    """Returns all paths in a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fail_after(path):
    """Writes half a file and fails."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("half")
        file.flush()
        assert os.path.exists(path)
        raise ZeroDivisionError


def test_a_staged_file_appears_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "new" / "figures.json"
    with storage.staged_file(str(path)) as temporary:
        with open(temporary, "w") as file:
            file.write("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert tree(tmp_path) == ["new", "new/figures.json"]


def test_a_staged_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), storage.staged_file(str(path)) as temporary:
        fail_after(temporary)
    assert path.read_text() == "old"
    assert tree(tmp_path) == ["figures.json"]


def test_a_staged_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    storage.write_text(str(path), "new")
    assert path.read_text() == "new"
    assert tree(tmp_path) == ["figures.json"]


def test_a_staged_file_may_be_given_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write_text("figures.json", "text")
    assert tree(tmp_path) == ["figures.json"]


def test_staged_files_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    for name in ("a.parquet", "b.parquet", "b.json"):
        with storage.staged_file(str(tmp_path / name)) as temporary:
            storage.write_text(temporary, "whole")
            shutil.copy(temporary, f"{temporary}7")  # of another process
    assert len(tree(tmp_path)) == 6
    storage.remove_staged_files(str(tmp_path), ".parquet")
    first, second, other, third = tree(tmp_path)
    assert (first, second, third) == ("a.parquet", "b.json", "b.parquet") and other.startswith("b.json.tmp-")


def test_a_full_disk_is_said_in_a_line(tmp_path):
    message = "no space left; check the path, its permissions and the free space"
    with pytest.raises(Hm3Error, match=message), storage.explained(str(tmp_path)):
        raise tf.errors.ResourceExhaustedError(None, None, "no space left")


def test_a_path_means_the_same_in_every_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("data/") == f"{tmp_path}/data"
    assert storage.absolute(f"{tmp_path}/data") == f"{tmp_path}/data"
    assert storage.absolute("s3://bucket/data/") == "s3://bucket/data"


def test_a_staged_folder_appears_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "above" / "data"
    with storage.staged_folder(f"{path}/") as temporary:
        storage.write_text(f"{temporary}/train/a", "x")
        assert not path.exists()
    assert tree(path) == ["train", "train/a"]
    assert os.listdir(tmp_path / "above") == ["data"]


def test_a_staged_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), storage.staged_folder(str(tmp_path / "data")) as temporary:
        fail_after(f"{temporary}/train/a")
    assert tree(tmp_path) == []


def test_a_staged_folder_may_replace_an_empty_one(tmp_path):
    (tmp_path / "data").mkdir()
    with storage.staged_folder(str(tmp_path / "data")) as temporary:
        storage.write_text(f"{temporary}/a", "x")
    assert tree(tmp_path) == ["data", "data/a"]


def test_a_folder_with_something_in_it_is_refused_and_kept(tmp_path):
    storage.write_text(str(tmp_path / "data" / "mine"), "x")
    message = f"{tmp_path}/data: expected a new or empty folder, found files"
    with pytest.raises(Hm3Error, match=re.escape(message)), storage.staged_folder(str(tmp_path / "data")):
        pass
    assert tree(tmp_path) == ["data", "data/mine"]


def test_a_folder_under_the_name_of_a_file_is_refused_and_the_file_kept(tmp_path):
    (tmp_path / "data").write_text("mine")
    with pytest.raises(Hm3Error, match=re.escape(f"{tmp_path}/data: ")), storage.staged_folder(str(tmp_path / "data")):
        pass
    assert (tmp_path / "data").read_text() == "mine"


@pytest.mark.parametrize("stage", [storage.staged_file, storage.staged_folder])
def test_a_place_that_cannot_be_written_is_named(tmp_path, stage):
    (tmp_path / "file").write_text("")
    message = rf"^{re.escape(str(tmp_path))}/file.*: expected a place that can be written, got: .*; check the path"
    with pytest.raises(Hm3Error, match=message) as caught, stage(f"{tmp_path}/file/data"):
        pass
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == ["file"]


def test_a_place_that_cannot_be_written_is_named_as_it_was_given(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(Hm3Error, match=re.escape(f"{tmp_path}/file/data: ")),
        storage.staged_folder(f"{tmp_path}/file/data"),
    ):
        pass


def test_a_failure_of_the_file_system_without_a_message_is_explained(tmp_path):
    message = re.escape(f"{tmp_path}/a: expected a place that can be written, got: ")
    with pytest.raises(Hm3Error, match=message), storage.explained(f"{tmp_path}/a"):
        raise OSError


def test_the_text_of_a_file_is_read(tmp_path):
    (tmp_path / "a").write_text("größer\n")
    assert storage.read_text(str(tmp_path / "a"), "") == "größer\n"


def test_a_file_that_is_missing_is_named_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/a: expected a file, found none; look elsewhere")):
        storage.read_text(str(tmp_path / "a"), "look elsewhere")


@pytest.mark.parametrize(
    "path, remote",
    [("s3://bucket/key", True), ("hdfs://name/a", True), ("/tmp/a", False), ("a", False), ("C:/a", False), ("", False)],
)
def test_a_url_is_remote_and_a_path_is_not(path, remote):
    assert storage.is_remote(path) is remote


def test_a_remote_path_without_tensorflow_io_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    with pytest.raises(
        Hm3Error, match="^s3://bucket/log: expected tensorflow-io .*None in sys.modules.*or a local path"
    ):
        storage.open_file_system("s3://bucket/log")


def test_a_local_path_does_not_need_tensorflow_io(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    storage.open_file_system("/some/where")


@pytest.mark.parametrize("folder", ["/a", "/a/", "s3://a"])
def test_paths_are_joined_by_one_slash(folder):
    assert storage.join(folder, "b", "c") == f"{folder.rstrip('/')}/b/c"
