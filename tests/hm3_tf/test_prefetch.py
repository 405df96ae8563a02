"""Items made ahead: their order, their errors, and how far ahead."""

import pytest

from hm3_tf.prefetch import prefetch


@pytest.mark.parametrize("items", [[], [1], [None, 2, None]])
def test_the_items_come_in_order(items):
    assert list(prefetch(iter(items))) == items


def test_an_item_is_made_while_the_one_before_is_used():
    made = []
    source = prefetch(made.append(i) or i for i in range(5))
    assert next(source) == 0
    next(source)
    assert made[:2] == [0, 1] and len(made) <= 3


def test_an_error_is_raised_after_the_items_before_it():
    source = prefetch(1 // i for i in (1, 0))
    assert next(source) == 1
    with pytest.raises(ZeroDivisionError):
        next(source)
