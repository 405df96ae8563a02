"""Items made ahead: their order, their errors, and how far ahead."""

import threading

import pytest

from hm3_tf.prefetch import prefetch


@pytest.mark.parametrize("items", [[], [1], [None, 2, None]])
def test_the_items_come_in_order(items):
    assert list(prefetch(iter(items))) == items


def test_an_item_is_made_while_the_one_before_is_used_and_none_further_ahead():
    made = [threading.Event() for _ in range(5)]
    source = prefetch(event.set() or i for i, event in enumerate(made))
    assert next(source) == 0
    assert made[1].wait(10), "the next one is made without being asked for"
    assert next(source) == 1 and made[2].wait(10)
    assert not made[3].is_set()


def test_an_error_is_raised_after_the_items_before_it():
    source = prefetch(1 // i for i in (1, 0))
    assert next(source) == 1
    with pytest.raises(ZeroDivisionError):
        next(source)
