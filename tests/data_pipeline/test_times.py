"""Times of a column, whatever they are written as."""

import numpy as np

from data_pipeline.hashing import MISSING_INT64
from data_pipeline.times import Times


def test_times_are_read_whatever_they_are_written_as():
    day = np.datetime64("2022-05-02").astype(np.int64)
    second = 86_400 * day + 37_800  # 10:30:00
    numbers = np.array([20220502, day, second, second * 10**3, second * 10**6, second * 10**9, -1, MISSING_INT64])
    assert Times.of(numbers).known.tolist() == [True] * 6 + [False] * 2
    assert Times.of(numbers).days[:6].tolist() == [day] * 6
    assert Times.of(numbers).ms[2:6].tolist() == [second * 1000] * 4
    texts = np.array(
        [b"2022-05-02", b"20220502", b"2022-05-02 10:30:00.123 UTC", b"2022-05-02T10:30", b"", b"soon"], object
    )
    assert Times.of(texts).known.tolist() == [True] * 4 + [False] * 2
    assert Times.of(texts).ms[2:4].tolist() == [second * 1000] * 2


def test_a_number_that_no_calendar_has_is_not_known():
    numbers = np.array([20220228, 20220229, 20221301, 20220010, 20220500])
    assert Times.of(numbers).known.tolist() == [True, False, False, False, False]


def test_a_time_is_later_than_a_day_when_the_day_is_over():
    times = Times.of(np.array([20220502, 20220503]))
    stamps = Times.of(np.array([b"2022-05-02 23:59:59", b"2022-05-04 00:00:00"]))
    assert stamps.after(times).tolist() == [False, True]
    assert not Times.of(np.array([5, MISSING_INT64])).after(Times.of(np.array([4, 20220502]))).any()  # numbers of days
    assert Times.of(np.array([10**9, 10**9 + 1])).after(Times.of(np.array([10**9, 10**9]))).tolist() == [False, True]
