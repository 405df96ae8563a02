"""The compiled model: what Keras can do with it, what its meter reports, one replica and two, and that it learns."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from sklearn.metrics import log_loss

import hm3_tf
from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.read import Reader
from data_pipeline.schema import Column, Hashing, Level, Schema
from data_pipeline.simulate import SimulatedLog
from data_pipeline.sources.simulated import SimulatedSource, day_split
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.config import Config, ModelConfig, TrainingConfig
from hm3_tf.errors import ConfigError
from hm3_tf.model import ConversionModel, LossMeter, build_model, model_features, probabilities
from hm3_tf.optimizers import LazyAdam
from tests.conftest import read_split, tiny_config
from tests.reference import auc


def build(data, config=None):
    return build_model(config or tiny_config(), data.schema, data.statistics()["train"])


def reader_of(data, config, split="train"):
    features = model_features(config, data.schema, data.statistics()["train"])
    return Reader(data.split(split), data.schema, features, config.method.merged_levels)


def total_loss(model, features, labels):
    """Returns the mean loss of each row [rows], from the network's predictions."""
    predictions = model.network(features)
    losses = model.task.level_losses({k: tf.constant(v) for k, v in labels.items()}, predictions)
    return np.sum([losses[level].numpy() for level in model.task.levels], axis=0)


@pytest.fixture(scope="module")
def arrays(data):
    """(features, labels) of the validation split, {name: array of 857 rows}."""
    return read_split(tiny_config(), data, "validation")


@pytest.fixture(scope="module")
def model(data):
    """An untrained HM3; not to be trained."""
    return build(data)


@pytest.mark.parametrize("method", ["hm3", "esm2_mi"])
def test_a_gate_that_stands_after_a_level_it_gates_is_refused(data, method):
    click, d_mi, *rest = data.schema.levels
    schema = dataclasses.replace(data.schema, levels=(d_mi, click, *rest))
    with pytest.raises(
        ConfigError, match=r"expected the gate 'click' before the levels it gates .*\['d_mi'\] stand before"
    ):
        build_model(tiny_config(method), schema)


def test_columns_may_have_the_names_of_layers():
    names = ("inputs", "embeddings", "numeric", "towers", "cross_0", "probability_graph", "log_probs")
    columns = (*(Column(name, "int64", hashing=Hashing(10)) for name in names[:-1]), Column(names[-1], "float"))
    labels = (Column("click", "int64", "behavior"), Column("buy", "int64", "behavior"))
    schema = Schema((*columns, *labels), (Level("click", ("click",), gate=True), Level("buy", ("buy",))))
    graph = BehaviorGraph((Behavior("click", gate=True), Behavior("buy")))
    config = Config(model=ModelConfig(method="own", graph=graph, tower_units=(4,), cross_layers=1))
    assert set(build_model(config, schema).network.input_names) == set(names)


def test_the_package_offers_build_model():
    assert hm3_tf.build_model is build_model
    assert hm3_tf.methods.HM3.name == "hm3"
    with pytest.raises(AttributeError, match="module 'hm3_tf' has no attribute 'bild_model'"):
        hm3_tf.bild_model  # noqa: B018


def test_fit_evaluate_and_predict_take_what_the_reader_yields(data):
    config = tiny_config()
    model, reader = build(data, config), reader_of(data, config)
    before = model.network.get_weights()
    history = model.fit(reader.training_dataset(512, seed=0, epoch=0), verbose=0).history
    assert list(history) == ["loss"] and np.isfinite(history["loss"]).all()
    assert all((old != new).any() for old, new in zip(before, model.network.get_weights()))
    ordered = reader.ordered_dataset(2048)
    after = model.evaluate(ordered, verbose=0, return_dict=True)
    assert after["loss"] < history["loss"][0]
    predictions = model.predict(ordered, verbose=0)
    assert predictions["log_probs"]["impression"]["purchase"].shape == (3 * 2048, 2), "4,286 rows and filling ones"


def test_fit_evaluate_and_predict_take_arrays(data, arrays):
    features, labels = arrays
    model = build(data)
    history = model.fit(features, labels, batch_size=128, epochs=2, verbose=0).history["loss"]
    assert history[1] < history[0]
    assert model.evaluate(features, labels, batch_size=100, verbose=0, return_dict=True)["loss"] < history[0]
    predicted = model.predict(features, batch_size=500, verbose=0)["edge_logits"]["click"]
    np.testing.assert_allclose(predicted, model.network(features)["edge_logits"]["click"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [857, 256, 100])
def test_the_loss_of_a_split_is_the_mean_over_its_rows_whatever_the_batches(model, arrays, batch_size):
    features, labels = arrays
    loss = model.evaluate(features, labels, batch_size=batch_size, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(total_loss(model, features, labels).mean(), rel=1e-5)


def test_fit_reports_the_figures_of_validation_data(data, arrays):
    features, labels = arrays
    model = build(data)
    validation = reader_of(data, tiny_config(), "validation").ordered_dataset(500)
    history = model.fit(features, labels, batch_size=512, validation_data=validation, verbose=0).history
    predictions = {name: p.numpy() for name, p in probabilities(model(features), model.task.levels).items()}
    clicked = labels["click"] > 0
    for name, level, among in (("pctr", "click", ...), ("pcvr", "purchase", clicked), ("pctcvr", "purchase", ...)):
        happened, p = labels[level][among] > 0, predictions[name][among].astype(np.float64)
        assert history[f"val_{name}_auc"][0] == pytest.approx(auc(happened, p), abs=0.01), name
        assert history[f"val_{name}_log_loss"][0] == pytest.approx(log_loss(happened, p), rel=1e-4), name
        assert history[f"val_{name}_pcoc"][0] == pytest.approx(p.mean() / happened.mean(), rel=1e-4), name


def test_filling_rows_do_not_count_in_the_loss_of_a_split(model, data, arrays):
    batches = reader_of(data, tiny_config(), "validation").ordered_dataset(500)
    loss = model.evaluate(batches, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(total_loss(model, *arrays).mean(), rel=1e-5)


def test_sample_weights_weigh_the_loss_of_a_split(model, arrays):
    features, labels = arrays
    weights = np.random.default_rng(0).uniform(0, 2, len(labels["click"])).astype(np.float32)
    loss = model.evaluate(features, labels, sample_weight=weights, batch_size=300, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(np.average(total_loss(model, features, labels), weights=weights), rel=1e-5)


def test_the_meter_has_the_means_of_any_stretch_of_batches():
    meter = LossMeter(("click", "purchase"))
    # Sums over the rows of a batch, and its rows: 2, 3 and 5 of them.
    batches = [(2.0, (1.0, 1.0), 2.0), (6.0, (3.0, 3.0), 3.0), (5.0, (4.5, 0.5), 5.0)]
    marks = [meter.sums.read_value()]
    for loss, levels, rows in batches:
        meter.update_state(tf.constant(loss), [tf.constant(v) for v in levels], tf.constant(rows))
        marks.append(meter.sums.read_value())
    assert meter.means(marks[0]) == pytest.approx({"loss": 1.3, "click": 0.85, "purchase": 0.45})  # 13, 8.5, 4.5 of 10
    assert meter.means(marks[1]) == pytest.approx({"loss": 11 / 8, "click": 7.5 / 8, "purchase": 3.5 / 8})
    assert meter.means(marks[2]) == pytest.approx({"loss": 1.0, "click": 0.9, "purchase": 0.1})
    assert float(meter.result()) == pytest.approx(1.3)
    meter.reset_state()
    assert float(meter.result()) == 0


def test_the_meter_does_not_lose_small_losses_in_large_sums():
    meter = LossMeter(("click",))
    for _ in range(3):
        meter.update_state(tf.constant(2.0**25), [tf.constant(2.0**25)], tf.constant(1.0))
    before = meter.sums.read_value()
    meter.update_state(tf.constant(1.0), [tf.constant(0.5)], tf.constant(1.0))
    assert meter.means(before) == {"loss": 1.0, "click": 0.5}


def test_the_meter_of_a_model_has_each_level_without_its_weight(data, arrays):
    features, labels = arrays
    model = build(data, tiny_config(loss_weights={"purchase": 3.0, "click": 0.0}))
    since = tf.zeros_like(model.loss_meter.sums)
    model.evaluate(features, labels, batch_size=300, verbose=0)
    means = model.loss_meter.means(since)
    losses = model.task.level_losses({k: tf.constant(v) for k, v in labels.items()}, model.network(features))
    for level, loss in losses.items():
        assert means[level] == pytest.approx(float(tf.reduce_mean(loss)), rel=1e-5), level
    assert means["loss"] == pytest.approx(means["d_mi"] + means["d_ma"] + 3 * means["purchase"], rel=1e-5)


@pytest.mark.parametrize("name", ["base", "hm3"])
def test_gradients_reach_every_variable(data, name):
    config = tiny_config(name)
    config.model.cross_layers = 1
    model, (features, labels) = build(data, config), read_split(config, data, "train")
    with tf.GradientTape() as tape:
        loss = model.compute_loss((features, {k: tf.constant(v) for k, v in labels.items()}), training=True)
    for variable, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables)):
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 0, variable.name
    assert len(model.trainable_variables) == len(model.network.variables)


def test_probabilities_are_those_of_the_click_and_the_conversion_and_the_levels_between(model, arrays):
    predictions = model.network(arrays[0])
    result = probabilities(predictions, ("click", "d_mi", "d_ma", "purchase"))
    assert list(result) == ["pctr", "pcvr", "pctcvr", "p_d_mi", "p_d_ma"]
    log_probs = predictions["log_probs"]
    np.testing.assert_array_equal(result["pctr"], tf.exp(log_probs["impression"]["click"][:, 0]))
    np.testing.assert_array_equal(result["pcvr"], tf.exp(log_probs["click"]["purchase"][:, 0]))
    np.testing.assert_array_equal(result["p_d_ma"], tf.exp(log_probs["impression"]["d_ma"][:, 0]))
    np.testing.assert_allclose(result["pctcvr"], result["pctr"] * result["pcvr"], rtol=1e-5)


def test_an_untrained_model_predicts_about_the_rates_of_its_log(model, data, arrays):
    result = probabilities(model.network(arrays[0]), ("click", "d_mi", "d_ma", "purchase"))
    rates = data.statistics()["train"].rates()
    for name, level in (("pctr", "click"), ("p_d_mi", "d_mi"), ("p_d_ma", "d_ma"), ("pctcvr", "purchase")):
        assert result[name].numpy().mean() == pytest.approx(rates[level], rel=0.3), name


def test_without_statistics_numbers_are_taken_as_standardized_and_towers_start_at_one_half(data, arrays):
    model = build_model(tiny_config(), data.schema)
    numbers = [f for f in model_features(tiny_config(), data.schema, data.statistics()["train"]) if f.name == "price"]
    assert numbers[0].mean != (0.0,)
    inputs = {**arrays[0], "price": np.zeros_like(arrays[0]["price"])}
    for edge, logit in model.network(inputs)["edge_logits"].items():
        assert np.abs(logit).max() < 1, edge


def test_a_model_without_the_levels_of_its_method_is_refused(data):
    levels = tuple(level for level in data.schema.levels if level.name != "d_mi")
    schema = type(data.schema)(data.schema.columns, levels)
    with pytest.raises(ConfigError, match=r"expected levels of the log, got 'd_mi'.*use a method whose levels"):
        build_model(tiny_config(), schema)


def test_a_feature_or_table_that_is_not_there_is_refused_with_a_hint(data):
    config = tiny_config()
    config.model.features = ("user_id", "pric")
    with pytest.raises(ConfigError, match=r"model\.features: .*'pric'; did you mean 'price'"):
        build(data, config)
    config = tiny_config()
    config.model.hash_buckets["usr_id"] = 7
    with pytest.raises(ConfigError, match=r"model\.hash_buckets: .*'usr_id'; did you mean 'user_id'"):
        build(data, config)


# One replica and two, on the two logical devices of conftest.py.

STEPS, ROWS = 4, 256


class Undivided(ConversionModel):
    """The mistake that the division by the number of replicas avoids."""

    def compute_loss(self, inputs, training=False):
        return super().compute_loss(inputs, training) * tf.distribute.get_strategy().num_replicas_in_sync


class LossOfEachStep(keras.callbacks.Callback):
    """Collects the loss of each step from the model's meter."""

    def __init__(self):
        super().__init__()
        self.losses, self._since = [], 0.0

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(self.model.loss_meter.means(self._since)["loss"])
        self._since = self.model.loss_meter.sums.read_value()


def losses_and_moves(data, arrays, strategy, optimizer, model_class=ConversionModel):
    """Returns the loss of every step, and how far the weights moved, of training under a strategy."""
    weights = np.random.default_rng(0).uniform(0.5, 1.5, len(arrays[1]["click"])).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices((*arrays, weights)).batch(ROWS, drop_remainder=True)
    with strategy.scope():
        model = build(data, tiny_config(loss_weights={"purchase": 2.0}))
        model = model_class(model.network, model.task)
        model.compile(optimizer=optimizer(), weighted_metrics=[])
    before, steps = model.network.get_weights(), LossOfEachStep()
    model.fit(batches.repeat().take(STEPS), callbacks=[steps], verbose=0)
    moves = [(new - old).ravel() for old, new in zip(before, model.network.get_weights())]
    return np.array(steps.losses), np.concatenate(moves)


def two_replicas():
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


OPTIMIZERS = {"sgd": lambda: keras.optimizers.SGD(0.1), "lazy_adam": lambda: LazyAdam(0.001)}


@pytest.fixture(scope="module")
def one_replica(data, arrays):
    """{optimizer: (losses, moves)} on one replica."""
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    return {name: losses_and_moves(data, arrays, strategy, optimizer) for name, optimizer in OPTIMIZERS.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_replicas_with_half_the_batch_each_are_one_with_the_whole(data, arrays, one_replica, name):
    losses, moves = one_replica[name]
    assert len(set(losses)) == STEPS and np.abs(moves).max() > 1e-3
    strategy = two_replicas()
    assert strategy.num_replicas_in_sync == 2
    losses_of_two, moves_of_two = losses_and_moves(data, arrays, strategy, OPTIMIZERS[name])
    np.testing.assert_allclose(losses_of_two, losses, rtol=0, atol=1e-6)
    np.testing.assert_allclose(moves_of_two, moves, rtol=0, atol=1e-6)


def test_a_loss_that_is_not_divided_by_the_replicas_takes_twice_the_step(data, arrays, one_replica):
    _, moves = one_replica["sgd"]
    _, doubled = losses_and_moves(data, arrays, two_replicas(), OPTIMIZERS["sgd"], Undivided)
    assert np.abs(doubled - moves).max() > 1e-3
    assert np.dot(doubled, moves) / np.dot(moves, moves) == pytest.approx(2, rel=0.1)


# Learning: a log of its own, large enough for purchases.

LEARNING = Config(
    model=ModelConfig(
        "hm3",
        tower_units=(16, 8),
        dropout=0.0,
        embedding_dim=8,
        features=("position", "user_id", "item_id", "category", "power", "price", "history"),
    ),
    training=TrainingConfig(learning_rate=0.003),
)


@pytest.fixture(scope="module")
def larger_log(tmp_path_factory):
    """{split: (features, labels)} of 60,000 rows, the last two days held out."""
    log, path = SimulatedLog(rows=60_000), str(tmp_path_factory.mktemp("larger") / "data")
    convert(SimulatedSource(log), path, day_split())
    data = DataFolder.open(path)
    splits = {name: read_split(LEARNING, data, name) for name in ("train", "validation", "test")}
    parts = [splits.pop("validation"), splits.pop("test")]
    held_out = tuple({k: np.concatenate([part[i][k] for part in parts]) for k in parts[0][i]} for i in (0, 1))
    return data, {**splits, "held_out": held_out}


def held_out_aucs(data, train, held_out):
    """Returns the AUCs of a model trained on `train`, on `held_out`."""
    keras.utils.set_random_seed(0)
    model = build(data, LEARNING)
    model.fit(*train, batch_size=512, epochs=2, verbose=0)
    log_probs = model.predict(held_out[0], batch_size=8192, verbose=0)["log_probs"]["impression"]
    return {level: auc(label > 0, log_probs[level][:, 0]) for level, label in held_out[1].items()}


def shuffled(split, seed):
    """Returns a split whose rows have the labels of other rows."""
    features, labels = split
    order = np.random.default_rng(seed).permutation(len(labels["click"]))
    return features, {level: label[order] for level, label in labels.items()}


def test_hm3_ranks_impressions_of_days_that_it_has_not_seen(larger_log):
    data, splits = larger_log
    aucs = held_out_aucs(data, splits["train"], splits["held_out"])
    assert aucs["click"] > 0.64
    assert aucs["purchase"] > 0.7
    assert aucs["d_mi"] > 0.6 and aucs["d_ma"] > 0.6


def test_on_shuffled_labels_there_is_nothing_to_learn(larger_log):
    data, splits = larger_log
    aucs = held_out_aucs(data, shuffled(splits["train"], 1), shuffled(splits["held_out"], 2))
    for level, value in aucs.items():
        positives = splits["held_out"][1][level].sum()
        # Without a relation the AUC has the variance (n + 1) / (12 positives * negatives), about 1 / (12 positives).
        assert abs(value - 0.5) < 3.5 / np.sqrt(12 * positives), level
    assert aucs["click"] == pytest.approx(0.5, abs=0.03)
