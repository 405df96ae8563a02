"""The event join on Ray: the files, rows, report and errors of the join in one process."""

import dataclasses
import itertools
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import ray_join
from data_pipeline.event_engine import History, Window
from data_pipeline.event_join import JoinReport, join_events
from data_pipeline.ray_join import join_on_ray
from hm3_tf.errors import DataError, Hm3Error, UsageError
from hm3_tf.ray_session import connected
from tests.data_pipeline.test_event_join import event_join

WINDOWS = (Window("click", 40), Window("buy", 200))
HISTORIES = (History("click", 3), History("view", 5))


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray for all tests of the file, of two CPUs: there are two shares of the users."""
    with connected(None, 2) as ray:
        yield ray


def write_tables(folder, user, rows=4_000, users=60):
    """Writes impressions in four files, one of them empty, and events in three, and returns their join.

    Times are few, so many are the same; a user's rows are in several files.
    """
    rng = np.random.default_rng(7)
    columns = {
        "user": rng.integers(0, users, rows),
        "item": rng.integers(0, 9, rows),
        "time": rng.integers(0, 300, rows),
    }
    columns["user"] = [user(value) for value in columns["user"]]
    shown = pa.table({**columns, "price": rng.random(rows)})
    happened = pa.table({**columns, "behavior": rng.choice(["click", "buy", "view", "wish"], rows)}).slice(500)
    happened = happened.set_column(2, "time", pa.array(rng.integers(0, 300, happened.num_rows)))
    for name, table, cuts in (
        ("shown", shown, (0, 1_500, 1_500, 1_501, rows)),
        ("happened", happened, (0, 90, 3_000, rows)),
    ):
        os.makedirs(folder / name)
        for i, (start, stop) in enumerate(itertools.pairwise(cuts)):
            pq.write_table(table.slice(start, stop - start), folder / name / f"{i}.parquet")
    return event_join(folder / "shown", folder / "happened", windows=WINDOWS, histories=HISTORIES)


@pytest.mark.parametrize("user, users", [(int, 60), (str, 60), (int, 1)])
def test_the_files_are_those_of_one_process(tmp_path, user, users):
    join = write_tables(tmp_path, user, users=users)
    local = join_events(join, str(tmp_path / "local"), "1GiB")
    assert join_on_ray(join, str(tmp_path / "ray"), "100MiB") == local
    assert 0 < local.labelled["buy"] < local.impressions
    names = [sorted(os.listdir(tmp_path / engine)) for engine in ("local", "ray")]
    assert names[0] == names[1] == ["_join.json", *(f"part-{i:05d}.parquet" for i in range(4))]
    for name in names[0][1:]:
        assert pq.read_table(tmp_path / "ray" / name).equals(pq.read_table(tmp_path / "local" / name)), name
    assert (tmp_path / "ray" / "_join.json").read_text() == (tmp_path / "local" / "_join.json").read_text()


def change(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values(table.column(name).to_pylist())))
    pq.write_table(table, path)


@pytest.mark.parametrize(
    "kind, limit", [(DataError, "1GiB"), (DataError, "2GiB"), (UsageError, "lots"), (Hm3Error, "1KB")]
)
def test_what_is_wrong_is_said_as_by_one_process_and_nothing_is_left(tmp_path, kind, limit):
    join = write_tables(tmp_path, int)
    if limit == "2GiB":
        join = dataclasses.replace(join, histories=(History("views", 5),))
    elif kind is DataError:
        change(tmp_path / "happened" / "1.parquet", item=lambda items: [None, *items[1:]])
    messages = []
    for run in (join_events, join_on_ray):
        with pytest.raises(kind) as caught:
            run(join, str(tmp_path / "joined"), limit)
        messages.append(re.sub(r"[\d.]+ [KM]iB", "", str(caught.value)))  # what DuckDB had used by then
    assert messages[0] == messages[1]
    assert sorted(os.listdir(tmp_path)) == ["happened", "shown"]


def test_a_large_cluster_has_no_more_shares_than_can_be_written_at_once(tmp_path, monkeypatch, ray):
    join, made = write_tables(tmp_path, int, rows=20_000, users=10**6), []
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3_000.0})

    def split(shares, folder):
        shares.split_impressions(3, 0)
        made.extend(os.listdir(shares.path("impressions")))
        return JoinReport(0, 0, {}, {}, {})

    monkeypatch.setattr(ray_join, "_run", split)
    join_on_ray(join, str(tmp_path / "joined"), "100MiB")
    assert len(made) == 512
