import pytest

from hm3_tf import progress
from hm3_tf.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_some_seconds_apart_and_say_how_long_it_takes(clock, capsys):
    with Progress("convert", 1_000) as rows:
        for _ in range(5):
            clock[0] += 4
            rows.advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "convert: 300 of 1,000 rows, 25 a second, 0:00:28 left",
        "convert: 500 of 1,000 rows, 25 a second, 0:00:20 left",
    ]


def test_what_was_done_before_does_not_count_as_speed(clock, capsys):
    with Progress("experiment", 100, "runs", done=90) as runs:
        clock[0] += 60
        runs.reach(95)
    assert capsys.readouterr().err.splitlines()[-1] == "experiment: 95 of 100 runs, 5.0 a minute, 0:01:00 left"


def test_work_of_unknown_length_has_no_end_in_sight(clock, capsys):
    with Progress("convert", None) as rows:
        clock[0] += 20
        rows.advance(100)
    assert set(capsys.readouterr().err.splitlines()) == {"convert: 100 rows, 5 a second"}


def test_work_that_failed_is_not_said_to_be_done(clock, capsys):
    with pytest.raises(KeyError), Progress("convert", 10):
        raise KeyError
    assert capsys.readouterr().err == ""
