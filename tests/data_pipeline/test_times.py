"""Times of a column, whatever they are written as."""

import numpy as np

from data_pipeline.hashing import MISSING_INT64
from data_pipeline.times import Times


def test_times_are_read_whatever_they_are_written_as():
    day = np.datetime64("2022-05-02").astype(np.int64)
    second = 86_400 * day + 37_800  # 10:30:00
    numbers = np.array([20220502, second, second * 10**3, second * 10**6, second * 10**9])
    for values in (numbers, np.array([str(number).encode() for number in numbers], object)):
        assert Times.of(values).days.tolist() == [day] * 5
        assert Times.of(values).ms[1:].tolist() == [second * 1000] * 4
    texts = (
        *("2022-05-02 10:30:00", "2022-05-02 10:30:00.123 UTC", "2022-05-02T10:30", "2022-05-02T10:30:00Z"),
        *("2022-05-02 18:30:00+08:00", "2022-05-02T18:30:00.5 +0800", "2022-05-02T07:00-03:30", "2022-05-02 18:30+08"),
    )
    assert Times.of(np.array([text.encode() for text in texts], object)).ms.tolist() == [second * 1000] * 8


def test_durations_counts_and_what_stands_for_never_are_no_times():
    numbers = np.array([0, 6, 19_114, 86_400_000, 20221302, 20220532, 99991231, 2**62, -1, MISSING_INT64])
    assert not Times.of(numbers).known.any()
    texts = [b"", b"soon", b"7", b"9" * 5_000, b"9999-12-31", b"2022-02-30", b"2022-05-02 10:30 Moon"]
    assert not Times.of(np.array(texts, object)).known.any()
    assert Times.of(np.array([0, 6, 19_114, 86_400_000]), numbered=True).known.tolist() == [True] * 3 + [False]


def test_a_time_is_later_than_a_day_when_it_is_over_in_every_time_zone():
    days = Times.of(np.array([20220502, 20220503]))
    seconds = Times.of(np.array([b"2022-05-02 23:00:00", b"2022-05-03 23:00:00"], object))
    for late, times, expected in (
        (np.array([b"2022-05-03 23:59:59", b"2022-05-05 00:00:01"], object), days, [False, True]),
        (np.array([20220503, 20220505]), days, [False, True]),
        (np.array([20220503, 20220505]), seconds, [False, True]),
        (np.array([b"2022-05-02 23:00:00", b"2022-05-03 23:00:01"], object), seconds, [False, True]),
    ):
        assert Times.of(late).after(times).tolist() == expected
    numbered = Times.of(np.array([4]), numbered=True)
    assert not Times.of(np.array([20220502])).after(numbered).any()


def test_a_number_that_no_calendar_has_is_not_known():
    numbers = np.array([20220228, 20220229, 20221301, 20220010, 20220500])
    assert Times.of(numbers).known.tolist() == [True, False, False, False, False]
