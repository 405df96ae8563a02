"""Every method goes through the whole way: build, step, checkpoint, export, serve. So does a funnel of one's own."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from data_pipeline.sources.base import SourceBatch
from data_pipeline.split_rules import FractionRule
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.config import Config, ModelConfig, TrainingConfig, from_json, to_json
from hm3_tf.export import export_run
from hm3_tf.methods import METHODS
from hm3_tf.model import ConversionModel, probabilities
from hm3_tf.workdir import Workdir
from tests.conftest import read_split, save_best, tiny_config, written_run

LOANS = BehaviorGraph((Behavior("click", gate=True), Behavior("apply", gate=True), Behavior("approve")))
LOANS_SCHEMA = Schema(
    (
        Column("user", "int64", "group", hashing=Hashing(50), entity="user"),
        Column("channel", "string", hashing=Hashing(20)),
        Column("tags", "string", shape=VARIABLE, max_length=3, hashing=Hashing(20, combiner="sum"), entity="user"),
        Column("codes", "int64", shape=(2,), hashing=Hashing(20)),
        Column("amount", "float"),
        Column("ratings", "float", shape=(2,), entity="user"),
        Column("importance", "float", "weight"),
        Column("click", "int64", "behavior"),
        Column("status", "int64", "behavior"),
    ),
    (
        Level("click", ("click",), gate=True),
        Level("apply", ("status",), values=(1, 2), gate=True),
        Level("approve", ("status",), values=(2,)),
    ),
)


@dataclasses.dataclass(frozen=True)
class Loans:
    """Loan offers: a click, then an application (status 1), then its approval (status 2)."""

    rows: int = 1_000
    schema: Schema = LOANS_SCHEMA
    inferred: frozenset[str] = frozenset()

    @property
    def origin(self):
        return repr(self)

    def parts(self):
        return [self]

    def count_rows(self, bad=None):
        return self.rows

    def batches(self, bad=None):
        generator, rows = np.random.default_rng(7), self.rows
        clicked, applied, approved = (generator.random(rows) < p for p in (0.5, 0.5, 0.5))
        tags = [[f"tag {tag}" for tag in generator.integers(0, 9, n)] for n in generator.integers(0, 6, rows)]
        columns = {
            "user": pa.array(2**53 + generator.integers(0, 40, rows)),
            "channel": pa.array(generator.choice(["app", "web", None], rows), pa.string()),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "codes": pa.array(generator.integers(0, 9, (rows, 2)).tolist(), pa.list_(pa.int64())),
            "amount": pa.array(generator.lognormal(3, 1, rows), mask=generator.random(rows) < 0.1),
            "ratings": pa.array(generator.normal(0, 1, (rows, 2)).tolist(), pa.list_(pa.float64())),
            "importance": pa.array(generator.uniform(0.5, 2, rows)),
            "click": pa.array(clicked.astype(np.int64)),
            "status": pa.array((clicked & applied) * (1 + approved.astype(np.int64))),
        }
        yield SourceBatch("loans", 0, pa.RecordBatch.from_pydict(columns))


@pytest.fixture(scope="module")
def loans(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("loans") / "data")
    convert(Loans(), path, FractionRule((0.8, 0.2, 0.0), seed=0))
    return DataFolder.open(path)


def loans_config() -> Config:
    model = ModelConfig("loans", LOANS, tower_units=(8, 4), dropout=0.0, embedding_dim=4, cross_layers=1)
    return Config(model=model, training=TrainingConfig(global_batch_size=128, learning_rate=0.01))


@dataclasses.dataclass(frozen=True)
class Case:
    """What became of one method.

    Attributes:
      config: Its config.
      run: Its run, with a checkpoint.
      model: Its model, one step trained.
      losses: Loss of the batch before and after the step.
      moved: How far each weight moved in the step.
      features, labels, raw: The batch; as the network reads it, and as a client has it.
      served: Its export, loaded.
    """

    config: Config
    run: Workdir
    model: ConversionModel
    losses: list[float]
    moved: list[float]
    features: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    raw: dict[str, np.ndarray]
    served: Any

    @property
    def levels(self) -> tuple[str, ...]:
        return self.config.method.levels

    def predict(self, model: ConversionModel) -> dict[str, np.ndarray]:
        return {name: p.numpy() for name, p in probabilities(model.network(self.features), self.levels).items()}


def take_a_step(model: ConversionModel, features: dict, labels: dict) -> tuple[list[float], list[float]]:
    """Returns the loss of a batch before and after a step on it, and how far each weight moved."""
    batch = features, {level: tf.constant(label) for level, label in labels.items()}
    weights, before = model.network.get_weights(), float(model.compute_loss(batch))
    model.train_on_batch(features, labels)
    moved = [float(np.abs(new - old).max()) for old, new in zip(weights, model.network.get_weights())]
    return [before, float(model.compute_loss(batch))], moved


@pytest.fixture(scope="module", params=[*METHODS, "a funnel of one's own"])
def case(request, data, loans, tmp_path_factory):
    name, folder = request.param, tmp_path_factory.mktemp("case")
    config, log = (tiny_config(name), data) if name in METHODS else (loans_config(), loans)
    run = written_run(str(folder / "run"), config, log)
    model = run.build_model()
    names = config.model.features or tuple(column.name for column in log.schema.inputs)
    features, labels, raw = read_split(config, log, "validation", carry=names)
    losses, moved = take_a_step(model, features, labels)
    save_best(run, model)
    served = tf.saved_model.load(export_run(run, str(folder / "export"), warm_up=()))
    return Case(config, run, model, losses, moved, features, labels, raw, served)


def test_a_step_lowers_the_loss_of_its_batch(case):
    before, after = case.losses
    assert np.isfinite([before, after]).all()
    assert 0 < after < before


def test_a_step_moves_every_weight(case):
    assert len(case.moved) == len(case.model.network.weights)
    assert min(case.moved) > 0


def test_there_is_a_tower_for_every_edge_of_the_graphs(case):
    edges = case.model.network(case.features)["edge_logits"]
    graphs = {edge for graph in case.config.method.graphs for edge in graph.edges}
    assert set(edges) == graphs if case.config.method.design == "chain" else set(edges) >= graphs


def test_labels_come_for_every_level(case):
    assert set(case.levels) <= set(case.labels)
    assert all(0 < case.labels[level].mean() < 1 for level in case.levels)


def test_the_loss_meter_names_every_loss(case):
    assert list(case.model.loss_meter.means(0.0)) == ["loss", *case.config.method.losses]


def test_each_loss_of_a_row_is_a_number(case):
    labels = {level: tf.constant(label) for level, label in case.labels.items()}
    losses = case.model.task.row_losses(labels, case.model.network(case.features))
    assert tuple(losses) == case.config.method.losses
    for name, loss in losses.items():
        assert loss.shape == case.labels["click"].shape and np.isfinite(loss).all(), name


def test_predictions_are_probabilities(case):
    for name, p in case.predict(case.model).items():
        assert p.dtype == np.float32 and np.isfinite(p).all(), name
        assert p.min() >= 0, name
        assert p.max() <= 1, name
        assert p.std() > 0, name


def test_a_conversion_is_a_click_and_a_conversion_given_the_click(case):
    p = case.predict(case.model)
    assert (p["pctcvr"] <= p["pctr"]).all()
    np.testing.assert_allclose(p["pctcvr"], p["pctr"] * p["pcvr"], rtol=0, atol=1e-6)


def test_every_level_between_has_a_probability_below_that_of_the_click(case):
    p = case.predict(case.model)
    assert list(p) == ["pctr", "pcvr", "pctcvr", *(f"p_{level}" for level in case.levels[1:-1])]
    for level in case.levels[1:-1]:
        assert (p[f"p_{level}"] <= p["pctr"] + 1e-6).all()


def test_a_restored_model_predicts_the_same(case):
    restored, mine = case.predict(case.run.trained_model()), case.predict(case.model)
    for name, p in mine.items():
        np.testing.assert_array_equal(restored[name], p)


def raw_tensors(raw: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in raw.items()}


def example(values: dict[str, np.ndarray]) -> bytes:
    """Returns a row as other systems write it: missing values are left out."""
    features = {}
    for name, value in values.items():
        items = np.atleast_1d(value)
        if items.dtype.kind == "f":
            list_ = {"float_list": tf.train.FloatList(value=items)} if not np.isnan(items).all() else {}
        elif items.dtype.kind == "i":
            list_ = {"int64_list": tf.train.Int64List(value=items[items != np.iinfo(np.int64).min])}
        else:
            list_ = {"bytes_list": tf.train.BytesList(value=[item for item in items if item])}
        if any(len(part.value) for part in list_.values()):
            features[name] = tf.train.Feature(**list_)
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def assert_served(served: dict[str, tf.Tensor], expected: dict[str, np.ndarray]) -> None:
    assert set(served) == set(expected)
    for name, p in expected.items():
        np.testing.assert_allclose(served[name], p, rtol=0, atol=1e-6, err_msg=name)


def test_the_served_model_is_the_model_on_named_columns(case):
    serve = case.served.signatures["serving_default"]
    assert set(serve.structured_input_signature[1]) == set(case.raw)
    assert_served(serve(**raw_tensors(case.raw)), case.predict(case.model))


def test_the_served_model_is_the_model_on_examples(case):
    rows = range(0, len(next(iter(case.raw.values()))), 7)
    examples = [example({name: values[row] for name, values in case.raw.items()}) for row in rows]
    served = case.served.signatures["serving_examples"](examples=tf.constant(examples))
    assert_served(served, {name: p[list(rows)] for name, p in case.predict(case.model).items()})


def test_items_of_one_user_are_ranked_by_the_probabilities_of_rows_that_repeat_the_user(case):
    serve, rank = (case.served.signatures[name] for name in ("serving_default", "rank"))
    of_user = {column.name for column in case.run.schema.inputs if column.entity == "user"} & set(case.raw)
    rows = 9
    repeated = {
        name: np.repeat(values[:1], rows, axis=0) if name in of_user else values[:rows]
        for name, values in case.raw.items()
    }
    once = {name: values[:1] if name in of_user else values for name, values in repeated.items()}
    assert 0 < len(of_user) < len(case.raw)
    assert_served(rank(**raw_tensors(once)), {name: p.numpy() for name, p in serve(**raw_tensors(repeated)).items()})


def test_the_config_survives_json(case):
    again = from_json(to_json(case.config))
    assert again == case.config and again.method == case.config.method
