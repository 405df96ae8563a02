"""Every design on two replicas, each with half of the batch, is the design on one."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from hm3_tf.methods import CHAINS, METHODS
from hm3_tf.model import build_model
from tests.conftest import read_split, tiny_config

STEPS = 2


def steps(name, data, strategy):
    """Returns the mean losses of some steps, and how far the weights moved, from the same weights under a strategy."""
    config = tiny_config(name)
    features, labels = read_split(config, data, "validation")
    rows = len(labels["click"]) // 2 * 2
    batch = tf.data.Dataset.from_tensor_slices((features, labels)).batch(rows, drop_remainder=True)
    with strategy.scope():
        model = build_model(config, data.schema, data.statistics()["train"])
        model.compile(optimizer=keras.optimizers.SGD(0.05), weighted_metrics=[])
    before = model.network.get_weights()
    model.fit(batch.repeat().take(STEPS), verbose=0)
    moves = [(new - old).ravel() for old, new in zip(before, model.network.get_weights())]
    return model.loss_meter.means(0.0), np.concatenate(moves)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in CHAINS])
def test_two_replicas_with_half_the_batch_each_are_one_with_the_whole(name, data):
    losses, moves = steps(name, data, tf.distribute.OneDeviceStrategy("/cpu:0"))
    # Without collectives, which two strategies of one process cannot both use.
    two = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"], tf.distribute.ReductionToOneDevice())
    assert two.num_replicas_in_sync == 2
    losses_of_two, moves_of_two = steps(name, data, two)
    assert np.abs(moves).max() > 1e-3
    assert losses_of_two == pytest.approx(losses, rel=1e-5)
    np.testing.assert_allclose(moves_of_two, moves, rtol=0, atol=1e-6)
