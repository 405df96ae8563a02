"""The layers between the probabilities of training and those of the log."""

import math

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf.calibration import KeptNegatives, kept_rate


def test_the_odds_of_a_click_are_those_of_the_log_outside_of_training_only():
    # Of 10 clicked and 90 unclicked rows 9 unclicked ones are kept: odds 10 / 9 in training, 10 / 90 in the log.
    logit = tf.constant([math.log(10 / 9)])
    layer = KeptNegatives(0.1)
    np.testing.assert_allclose(layer(logit, training=False), [math.log(10 / 90)], rtol=1e-6)
    np.testing.assert_allclose(layer(logit), [math.log(10 / 90)], rtol=1e-6)
    np.testing.assert_array_equal(layer(logit, training=True), logit)


def test_the_rate_of_kept_rows_by_hand():
    assert kept_rate(0.1, 0.1) == pytest.approx(10 / 19)
    assert kept_rate(0.1, 1.0) == pytest.approx(0.1)
