"""The event join against a search through all rows, its edges by hand, and what it says about bad tables."""

import collections
import dataclasses
import json
import math
import os
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import event_join as event_join_module
from data_pipeline.event_engine import EventCounts, EventEngine, History, Window
from data_pipeline.event_join import EventJoin, join_events, join_table, parse_histories, parse_windows
from data_pipeline.event_tables import EventColumns, EventTable
from data_pipeline.sources.base import TableFiles
from hm3_tf.errors import DataError, Hm3Error, UsageError

COLUMNS = EventColumns("user", "item", "time", "behavior", "ns")
INT64 = pa.int64()
WINDOWS = (Window("click", 3), Window("buy", 9))
HISTORIES = (History("click", 2), History("view", 3))


class Shown(NamedTuple):
    user: int | str
    item: int | str
    time: int


class Event(NamedTuple):
    user: int | str
    item: int | str
    time: int
    behavior: str


def key_columns(rows, key):
    types = {"user": key, "item": key, "time": pa.int64()}
    return {name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in types.items()}


def shown_table(rows, key=INT64):
    return pa.table({**key_columns(rows, key), "row": list(range(len(rows)))})


def event_table(rows, key=INT64):
    return pa.table({**key_columns(rows, key), "behavior": pa.array([row.behavior for row in rows], pa.string())})


def join(
    folder,
    impressions,
    events,
    *,
    columns=COLUMNS,
    windows=WINDOWS,
    histories=HISTORIES,
    memory_limit="1GiB",
    of_part=True,
):
    """Joins tables or rows, in which any behavior may be missing, and returns (joined table, report)."""
    impressions = impressions if isinstance(impressions, pa.Table) else shown_table(impressions)
    events = events if isinstance(events, pa.Table) else event_table(events)
    for name, rows in (("impressions", impressions), ("events", events)):
        os.makedirs(folder / name, exist_ok=True)
        pq.write_table(rows, folder / name / "0.parquet")
    tables = folder / "impressions", folder / "events"
    whole = event_join(*tables, columns, windows, histories)
    report = join_events(dataclasses.replace(whole, of_part=of_part), str(folder / "joined"), memory_limit)
    return pq.read_table(folder / "joined"), report


def event_join(impressions, events, columns=COLUMNS, windows=WINDOWS, histories=()):
    tables = (
        EventTable(TableFiles(str(path), "parquet"), columns, is_events)
        for path, is_events in ((impressions, False), (events, True))
    )
    return EventJoin(*tables, windows, histories)


def search(impressions, events):
    """Returns (labels, histories, counts), each by a search through all rows for every row."""
    labels = [{"click": 0, "buy": 0} for _ in impressions]
    counts = {name: dict.fromkeys(("joined", "late", "without_impression", "duplicates"), 0) for name in labels[0]}
    for i, event in enumerate(events):
        if event.behavior in counts:
            kind, number = find_impression(event, events[:i], impressions)
            counts[event.behavior][kind] += 1
            if kind == "joined":
                labels[number][event.behavior] = 1
    histories = [
        {f"{name}_history": past_items(row, name, events)[:length] for name, length in (("click", 2), ("view", 3))}
        for row in impressions
    ]
    return labels, histories, counts


def find_impression(event, events_before, impressions):
    """Returns what becomes of an event, and the number of its user's last impression of the item."""
    shown = [
        (row.time, number) for number, row in enumerate(impressions) if row[:2] == event[:2] and row.time <= event.time
    ]
    if event in events_before:
        return "duplicates", None
    if not shown:
        return "without_impression", None
    time, number = max(shown)
    return ("joined" if event.time - time <= {"click": 3, "buy": 9}[event.behavior] else "late"), number


def past_items(row, behavior, events):
    """Returns the items of a user's events before an impression, the latest first."""
    past = {e for e in events if e.behavior == behavior and e.user == row.user and e.time < row.time}
    return [event.item for event in sorted(past, key=lambda event: (event.time, event.item), reverse=True)]


USERS, ITEMS, TIMES = st.integers(0, 1), st.integers(-1, 1), st.integers(-5, 10)
IMPRESSIONS = st.lists(st.builds(Shown, USERS, ITEMS, TIMES), min_size=1, max_size=12)
EVENTS = st.lists(st.builds(Event, USERS, ITEMS, TIMES, st.sampled_from(["click", "buy", "view", "wish"])), max_size=40)


@settings(max_examples=40, deadline=None)
@given(impressions=IMPRESSIONS, events=EVENTS, key=st.sampled_from([int, str]))
def test_the_join_equals_a_search_through_all_rows(tmp_path_factory, impressions, events, key):
    impressions, events = (
        [row._replace(user=key(row.user), item=key(row.item)) for row in rows] for rows in (impressions, events)
    )
    kind = pa.int64() if key is int else pa.string()
    joined, report = join(tmp_path_factory.mktemp("join"), shown_table(impressions, kind), event_table(events, kind))
    labels, histories, counts = search(impressions, events)
    assert joined.select(["click", "buy"]).to_pylist() == labels
    assert joined.select(["click_history", "view_history"]).to_pylist() == histories
    assert {name: dataclasses.asdict(found) for name, found in report.events.items()} == counts
    assert report.other_events == collections.Counter(e.behavior for e in events if e.behavior in ("view", "wish"))
    counted = [n for found in counts.values() for n in found.values()] + list(report.other_events.values())
    assert sum(counted) == len(events)
    assert report.labelled == {name: sum(row[name] for row in labels) for name in ("click", "buy")}
    assert report.same_impressions == len(impressions) - len(set(impressions))
    assert joined.column("row").to_pylist() == list(range(len(impressions)))


def test_an_event_belongs_to_the_last_impression_at_or_before_it(tmp_path):
    impressions = [Shown(1, 1, 10), Shown(1, 1, 12), Shown(1, 1, 14), Shown(1, 2, 12), Shown(2, 1, 12)]
    joined, _ = join(tmp_path, impressions, [Event(1, 1, 12, "click"), Event(1, 1, 13, "buy")])
    assert joined.column("click").to_pylist() == [0, 1, 0, 0, 0]
    assert joined.column("buy").to_pylist() == [0, 1, 0, 0, 0]


def test_a_window_includes_its_end_and_nothing_after_it(tmp_path):
    impressions = [Shown(user, 1, 10) for user in range(3)]
    events = [Event(0, 1, 13, "click"), Event(1, 1, 14, "click"), Event(2, 1, 9, "click")]
    joined, report = join(tmp_path, impressions, events)
    assert joined.column("click").to_pylist() == [1, 0, 0]
    assert report.events["click"] == EventCounts(joined=1, late=1, without_impression=1, duplicates=0)


def test_of_impressions_at_one_time_the_last_row_takes_the_events(tmp_path):
    joined, report = join(tmp_path, [Shown(1, 1, 5), Shown(1, 1, 5), Shown(1, 1, 4)], [Event(1, 1, 6, "click")])
    assert joined.column("click").to_pylist() == [0, 1, 0]
    assert report.same_impressions == 1


def test_equal_events_are_one_and_the_others_are_counted(tmp_path):
    events = [Event(1, 1, 4, "click")] * 3 + [Event(1, 1, 4, "buy"), Event(1, 1, 5, "click")]
    joined, report = join(tmp_path, [Shown(1, 1, 4), Shown(1, 7, 9)], events)
    assert report.events["click"] == EventCounts(joined=2, late=0, without_impression=0, duplicates=2)
    assert report.labelled == {"click": 1, "buy": 1}
    assert joined.column("click_history").to_pylist() == [[], [1, 1]]


def test_a_history_ends_before_its_impression(tmp_path):
    events = [Event(1, item, time, "click") for item, time in ((7, 3), (8, 4), (9, 5), (6, 6))]
    joined, _ = join(tmp_path, [Shown(1, 1, 5), Shown(1, 1, 3), Shown(2, 1, 5)], events)
    assert joined.column("click_history").to_pylist() == [[8, 7], [], []]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9])
def test_a_history_has_the_latest_items_first_at_any_length(tmp_path, length):
    events = [Event(1, 100 + time, time, "click") for time in range(8)]
    joined, _ = join(tmp_path, [Shown(1, 1, time) for time in range(9)], events, histories=(History("click", length),))
    expected = [[100 + t for t in range(time - 1, -1, -1)][:length] for time in range(9)]
    assert joined.column("click_history").to_pylist() == expected
    assert joined.schema.field("click_history").type.value_type == pa.int64()


def test_a_history_goes_on_from_batch_to_batch(tmp_path):
    """DuckDB gives rows in batches of 65,536, and the impression is in the second one."""
    events = {"user": [1] * 65_540, "item": range(65_540), "time": range(65_540), "behavior": ["click"] * 65_540}
    joined, _ = join(tmp_path, [Shown(1, 1, 65_538)], pa.table(events), histories=(History("click", 4),))
    assert joined.column("click_history").to_pylist() == [[65_537, 65_536, 65_535, 65_534]]


def test_keys_may_be_text_and_large_ids_stay_distinct(tmp_path):
    impressions = pa.table({"user": ["a", "b"], "item": [2**53, 2**53 + 1], "time": [1, 1]})
    events = pa.table({"user": ["a", "b"], "item": [2**53 + 1] * 2, "time": [1, 1], "behavior": ["buy"] * 2})
    impressions = impressions.set_column(0, "user", impressions.column("user").dictionary_encode())
    joined, _ = join(tmp_path, impressions, events, histories=())
    assert joined.column("buy").to_pylist() == [0, 1]
    assert joined.column("user").to_pylist() == ["a", "b"]


def test_items_of_text_make_histories_of_text(tmp_path):
    impressions = pa.table({"user": [1], "item": ["ä"], "time": [5]})
    events = pa.table({"user": [1, 1], "item": ["b", "ä"], "time": [1, 2], "behavior": ["click"] * 2})
    joined, _ = join(tmp_path, impressions, events, histories=(History("click", 5),))
    assert joined.column("click_history").to_pylist() == [["ä", "b"]]


def test_times_of_several_units_meet(tmp_path):
    """A click 3 s and one 3.001 s after impressions in whole seconds, in a window of 3 s."""
    times = pa.array(np.array(["2022-05-01T00:00:00"] * 2, "datetime64[s]"))
    start_ms = 1_651_363_200_000
    impressions = pa.table({"user": [1, 2], "item": [1, 1], "time": times})
    clicks = [start_ms + 3_000, start_ms + 3_001]
    events = pa.table({"user": [1, 2], "item": [1, 1], "time": clicks, "behavior": ["click"] * 2})
    windows = parse_windows("click:3s")
    columns = dataclasses.replace(COLUMNS, time_unit="ms")
    joined, _ = join(tmp_path, impressions, events, windows=windows, histories=(), columns=columns)
    assert joined.column("click").to_pylist() == [1, 0]


def test_times_of_several_zones_meet(tmp_path):
    at = pa.array([0, 60], pa.int64())
    impressions = pa.table({"user": [1, 2], "item": [1, 1], "time": at.cast(pa.timestamp("s", "UTC"))})
    clicks = at.cast(pa.timestamp("s", "Asia/Tokyo"))
    events = pa.table({"user": [1, 2], "item": [1, 1], "time": clicks, "behavior": ["click"] * 2})
    _, report = join(tmp_path, impressions, events, windows=parse_windows("click:0s"), histories=())
    assert report.labelled == {"click": 2}


def test_a_delay_of_centuries_is_late(tmp_path):
    """An impression of 1690 and a click of 2250: more nanoseconds than an int64 has."""
    _, report = join(tmp_path, [Shown(1, 1, -8_800_000_000 * 10**9)], [Event(1, 1, 8_800_000_000 * 10**9, "click")])
    assert report.events["click"] == EventCounts(joined=0, late=1, without_impression=0, duplicates=0)


def test_labels_may_have_any_names(tmp_path):
    """Those of DuckDB's own columns too, and one name in small letters and in capitals."""
    windows = [Window(name, 3) for name in ("id", "click", "Click", "label0", 'a"b')]
    events = [Event(1, 1, 5, name) for name in ("Click", 'a"b')]
    joined, _ = join(tmp_path, [Shown(1, 1, 5)], events, windows=tuple(windows), histories=(History("Click", 2),))
    found = joined.drop_columns(["user", "item", "time", "row"]).to_pylist()
    assert found == [{"id": 0, "click": 0, "Click": 1, "label0": 0, 'a"b': 1, "Click_history": []}]


def test_a_file_of_impressions_becomes_a_file_with_the_same_columns_and_rows(tmp_path):
    os.makedirs(tmp_path / "impressions")
    kept = {
        "price": pa.array([0.5, None, 2.0]),
        "tags": pa.array([[1], [], None]),
        "day": pa.array([1, 2, 3], pa.date32()),
    }
    rows = pa.table({"user": [1, 1, 2], "item": [1, 2, 1], "time": [5, 5, 5], **kept})
    pq.write_table(rows.slice(0, 1), tmp_path / "impressions" / "a.parquet")
    pq.write_table(rows.slice(1), tmp_path / "impressions" / "b.parquet")
    pq.write_table(event_table([Event(1, 2, 6, "click"), Event(2, 1, 6, "buy")]), tmp_path / "events.parquet")
    job = event_join(tmp_path / "impressions", tmp_path / "events.parquet")
    report = join_events(job, str(tmp_path / "joined"), "1GiB")
    assert sorted(os.listdir(tmp_path / "joined")) == ["_join.json", "part-00000.parquet", "part-00001.parquet"]
    assert pq.read_table(tmp_path / "joined" / "part-00000.parquet").num_rows == 1
    joined = pq.read_table(tmp_path / "joined")
    assert joined.select(rows.column_names).to_pylist() == rows.to_pylist()
    assert joined.schema.field("day").type == pa.date32()
    assert joined.column("click").to_pylist() == [0, 1, 0]
    with open(tmp_path / "joined" / "_join.json") as file:
        assert json.load(file) == dataclasses.asdict(report)


def error_of(tmp_path, impressions, events, **options):
    with pytest.raises((DataError, UsageError, Hm3Error)) as caught:
        join(tmp_path, impressions, events, **options)
    assert not [name for name in os.listdir(tmp_path) if name.startswith("joined")]
    return str(caught.value)


GOOD = {"user": [1, 2], "item": [3, 4], "time": [5, 6]}
GOOD_EVENTS = {**GOOD, "behavior": ["click", "buy"]}
BAD_TABLES = {
    "a missing column": ({"usr": [1]}, {}, "user", "expected a column 'user', found none; did you mean 'usr'?"),
    "a float id": ({"item": [1.5, 2.0]}, {}, None, "expected integers or text in column 'item', got double"),
    "a time of text": ({}, {"time": ["a", "b"]}, None, "expected timestamps or integers in column 'time', got string"),
    "a behavior that is a number": ({}, {"behavior": [1, 2]}, None, "expected text in column 'behavior', got int64"),
    "ids of two kinds": ({"user": ["1", "2"]}, {}, None, "got string in impressions and int64 in events; cast one"),
    "a null item": ({"item": [None, 3]}, {}, None, "row 0: expected a value of column 'item', got null"),
    "a null time": ({"time": [1, None]}, {}, None, "row 1: expected a value of column 'time', got null"),
    "a time that is not a number": (
        {"time": [1.0, math.nan]},
        {},
        None,
        "expected timestamps or integers in column 'time'",
    ),
    "an id without room": ({"item": pa.array([1, 2**63], pa.uint64())}, {}, None, "expected ids below 2^63"),
    "a null user": ({}, {"user": [1, None]}, None, "row 1: expected a value of column 'user', got null"),
    "a null behavior": (
        {},
        {"behavior": ["click", None]},
        None,
        "row 1: expected a value of column 'behavior', got null",
    ),
    "a label that is there": ({"click": [0, 1]}, {}, None, "expected names of new columns, got 'click'"),
    "no impressions": ({name: pa.array([], pa.int64()) for name in GOOD}, {}, None, "expected impressions, got none"),
}


@pytest.mark.parametrize(("impressions", "events", "without", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_table_is_named_and_nothing_is_written(tmp_path, impressions, events, without, message):
    shown = {name: values[: len(next(iter(impressions.values()), GOOD["user"]))] for name, values in GOOD.items()}
    shown = {name: values for name, values in {**shown, **impressions}.items() if name != without}
    assert message in error_of(tmp_path, pa.table(shown), pa.table({**GOOD_EVENTS, **events}))


@pytest.mark.parametrize(
    ("windows", "histories", "message"),
    [
        ("click:1s,by:1d", "", "'by' of --window, found none; did you mean 'buy'?"),
        ("click:1s", "clik:5", "'clik' of --history, found none; did you mean 'click'?"),
        ("click:1s,favorite:1d", "", "'favorite' of --window, found none; known: buy, click"),
    ],
)
def test_a_behavior_that_never_occurs_is_refused(tmp_path, windows, histories, message):
    wanted = {"windows": parse_windows(windows), "histories": parse_histories(histories), "of_part": False}
    tables = pa.table(GOOD), pa.table(GOOD_EVENTS)
    assert f"expected events of the behavior {message}" in error_of(tmp_path, *tables, **wanted)


def test_integer_times_need_a_unit_that_they_fit(tmp_path):
    events = pa.table({**GOOD_EVENTS, "time": [1_651_363_200_000] * 2})
    without = dataclasses.replace(COLUMNS, time_unit=None)
    assert "--time_unit: expected one of" in error_of(tmp_path, pa.table(GOOD), events, columns=without)
    seconds = dataclasses.replace(COLUMNS, time_unit="s")
    assert "times from 1678 to 2262 in the unit s" in error_of(tmp_path, pa.table(GOOD), events, columns=seconds)


def test_times_with_a_zone_and_without_do_not_meet(tmp_path):
    times = pa.array([5, 6], pa.timestamp("s"))
    impressions = pa.table({**GOOD, "time": times})
    events = pa.table({**GOOD_EVENTS, "time": times.cast(pa.timestamp("s", "UTC"))})
    assert "timestamps with a time zone in both tables" in error_of(tmp_path, impressions, events)


def test_a_memory_limit_that_is_none_or_too_low_is_named(tmp_path):
    tables = pa.table(GOOD), pa.table(GOOD_EVENTS)
    assert "--memory_limit: expected a size such as 2GiB, got 'lots'" in error_of(
        tmp_path, *tables, memory_limit="lots"
    )
    assert "give it more memory (--memory_limit)" in error_of(tmp_path, *tables, memory_limit="1KB")


def test_events_are_no_impressions_and_the_output_is_none_of_the_input(tmp_path):
    os.makedirs(tmp_path / "log" / "events")
    pq.write_table(event_table([Event(1, 1, 1, "click")]), tmp_path / "log" / "events" / "0.parquet")
    with pytest.raises(UsageError, match="expected files beside those of --events, got .*/log/events in "):
        join_events(event_join(tmp_path / "log", tmp_path / "log" / "events"), str(tmp_path / "joined"), "1GiB")
    pq.write_table(shown_table([Shown(1, 1, 1)]), tmp_path / "shown.parquet")
    job = event_join(tmp_path / "shown.parquet", tmp_path / "log" / "events")
    with pytest.raises(UsageError, match="--output: expected a folder outside of --events"):
        join_events(job, str(tmp_path / "log" / "events" / "joined"), "1GiB")


def random_tables(rows):
    """Returns impressions, and three times as many events that follow some of them."""
    rng = np.random.default_rng(0)
    shown = {
        "user": rng.integers(0, 2_000, rows),
        "item": rng.integers(0, 500, rows),
        "time": rng.integers(0, 10**6, rows),
    }
    events = pa.table(shown).take(rng.integers(0, rows, 3 * rows))
    times = pa.array(events.column("time").to_numpy() + rng.integers(0, 1_000, 3 * rows))
    behaviors = pa.array(rng.choice(["click", "buy", "view"], 3 * rows))
    return pa.table(shown), events.set_column(2, "time", times).append_column("behavior", behaviors)


def test_a_join_that_goes_to_disk_finds_the_same(tmp_path, monkeypatch):
    tables = random_tables(100_000)
    spilled = []

    class Watched(EventEngine):
        def __init__(self, *arguments):
            super().__init__(*arguments[:6], threads=2)  # each core more needs memory of its own
            self._spill = arguments[5]

        def join(self):
            counts = super().join()
            spilled.append(sum(os.path.getsize(os.path.join(self._spill, name)) for name in os.listdir(self._spill)))
            return counts

    monkeypatch.setattr(event_join_module, "EventEngine", Watched)
    windows = Window("click", 300), Window("buy", 900)
    results = [
        join(tmp_path / limit, *tables, windows=windows, histories=(History("view", 20),), memory_limit=limit)
        for limit in ("2GiB", "48MiB")
    ]
    assert spilled[0] == 0 < spilled[1]
    assert results[0] == results[1]


def test_a_join_that_runs_out_of_memory_on_its_way_leaves_nothing(tmp_path):
    message = error_of(tmp_path, *random_tables(100_000), memory_limit="16MiB")
    assert "expected room for its tables, got: Out of Memory Error" in message and "(--memory_limit)" in message


@pytest.mark.parametrize("times", [0, 2])
def test_impressions_that_change_meanwhile_are_refused(tmp_path, times):
    class Changing(TableFiles):
        def batches(self, columns=None):
            for batch in super().batches(columns):
                yield from [batch] * (1 if columns else times)

    pq.write_table(pa.table(GOOD), tmp_path / "impressions.parquet")
    pq.write_table(pa.table(GOOD_EVENTS), tmp_path / "events.parquet")
    job = event_join(tmp_path / "impressions.parquet", tmp_path / "events.parquet")
    files = Changing(job.impressions.files.path, "parquet")
    job = dataclasses.replace(job, impressions=dataclasses.replace(job.impressions, files=files))
    with pytest.raises(DataError, match="their number changed"):
        join_events(job, str(tmp_path / "joined"), "1GiB")
    assert sorted(os.listdir(tmp_path)) == ["events.parquet", "impressions.parquet"]


def test_a_folder_with_files_in_it_is_not_overwritten(tmp_path):
    os.makedirs(tmp_path / "joined")
    (tmp_path / "joined" / "mine").write_text("")
    with pytest.raises(Hm3Error, match="expected a new or empty folder"):
        join(tmp_path, pa.table(GOOD), pa.table(GOOD_EVENTS))
    assert os.listdir(tmp_path / "joined") == ["mine"]


def test_windows_and_histories_are_read_from_text():
    assert parse_windows("a:90s, b:30m,c:2h,d:7d") == (
        *(Window("a", 90 * 10**9), Window("b", 1_800 * 10**9)),
        *(Window("c", 7_200 * 10**9), Window("d", 604_800 * 10**9)),
    )
    assert parse_histories("click:50,buy:1") == (History("click", 50), History("buy", 1))
    assert parse_histories("") == ()


@pytest.mark.parametrize(
    "text", ["", "click", "click:", "click:30", "click:30w", ":3m", "a:1m,a:2m", "a:36501d", "a:-1m"]
)
def test_a_window_of_another_form_is_refused(text):
    with pytest.raises(UsageError, match="--window: expected"):
        parse_windows(text)


@pytest.mark.parametrize("text", ["click", "click:0", "click:x", ":5", "a:1,a:2", "a:10000"])
def test_a_history_of_another_form_is_refused(text):
    with pytest.raises(UsageError, match="--history: expected"):
        parse_histories(text)


def test_the_printed_table_has_every_count(tmp_path):
    events = [Event(1, 1, 5, "click"), Event(1, 1, 5, "click"), Event(1, 1, 9, "wish"), Event(1, 1, 99, "buy")]
    _, report = join(tmp_path, [Shown(1, 1, 5), Shown(1, 1, 5)], events)
    lines = [line.split() for line in join_table(report).splitlines()]
    assert lines[1:3] == [["click", "1", "1", "0", "0", "1"], ["buy", "0", "0", "1", "0", "0"]]
    assert "1 events of 'wish', which has no window" in join_table(report)
    assert "1 impressions at the time of a later one" in join_table(report)
