"""The signatures of a served model: `rank`, the score, compact tables; what clients know, and the operations they need."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from hm3_tf.errors import ConfigError
from hm3_tf.serving import RankingScore, ServingModule
from tests.conftest import FEATURES, LOG, read_split, tiny_config

GOLDEN = Path(__file__).with_name("serving_signatures.json")
USER, ITEM = ("user_id", "history"), ("position", "item_id", "brand", "price")
MISSING_INT64 = -(2**63)


@pytest.fixture(scope="module")
def model(trained_run):
    return trained_run.trained_model()


@pytest.fixture(scope="module")
def signatures(trained_run, model):
    """The functions, as they are before they are saved."""
    return ServingModule(trained_run, model, score=RankingScore("price", 0.5)).signatures_to_save


@pytest.fixture(scope="module")
def log(trained_run, data):
    """The columns of the test split as a client has them, and the labels."""
    _, labels, raw = read_split(trained_run.config, data, "test", carry=FEATURES)
    return raw, labels


@pytest.fixture(scope="module")
def exported(trained_run, model, tmp_path_factory):
    """Folder of a SavedModel with int8 tables and a score."""
    module = ServingModule(trained_run, model, tables="int8", score=RankingScore("price"))
    folder = tmp_path_factory.mktemp("serving") / "1"
    tf.saved_model.save(module, str(folder), signatures=module.signatures_to_save)
    return folder


def call(function, raw):
    return {name: p.numpy() for name, p in function({k: tf.constant(v) for k, v in raw.items()}).items()}


def one_user(raw, rows=8):
    """Returns a user and the first items as `rank` takes them, and the same as rows."""
    once = {name: values[:1] if name in USER else values[:rows] for name, values in raw.items()}
    return once, {name: np.repeat(values, rows, axis=0) if name in USER else values for name, values in once.items()}


def assert_ranked(signatures, once, rows, atol=1e-6):
    ranked, expected = call(signatures["rank"], once), call(signatures["serving_default"], rows)
    assert list(ranked) == list(expected)
    for name, p in expected.items():
        np.testing.assert_allclose(ranked[name], p, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("history", [0, 3, 15])
def test_a_user_with_a_history_of_any_length_is_ranked(signatures, log, history):
    once, rows = one_user(log[0])
    once["history"] = np.resize(once["history"], (1, history))
    assert_ranked(signatures, once, rows | {"history": np.repeat(once["history"], 8, axis=0)})


def test_an_unknown_user_without_history_and_items_with_missing_values_are_ranked(signatures, log):
    once, _ = one_user(log[0], rows=3)
    once |= {"user_id": np.array([MISSING_INT64]), "history": np.full((1, 2), MISSING_INT64)}
    once |= {"brand": np.array([b"", b"brand_1", b"?"]), "price": np.array([np.nan, 3.0, -1.0], np.float32)}
    assert_ranked(signatures, once, {n: np.repeat(v, 3, axis=0) if n in USER else v for n, v in once.items()})


def test_a_user_without_items_has_no_scores(signatures, log):
    once, _ = one_user(log[0], rows=0)
    assert {name: p.shape for name, p in call(signatures["rank"], once).items()}["score"] == (0,)


def test_two_users_in_one_request_are_refused(signatures, log):
    once, _ = one_user(log[0])
    with pytest.raises(TypeError, match="user_id"):
        call(signatures["rank"], once | {"user_id": log[0]["user_id"][:2]})


def products(function):
    """Returns the number of matrix products in the graph of a signature and of the functions it calls."""
    graph = function.get_concrete_function().graph.as_graph_def()
    return sum(node.op == "MatMul" for f in graph.library.function for node in f.node_def)


def test_the_user_part_of_the_first_layer_is_a_product_of_its_own_in_each_tower(signatures):
    assert products(signatures["serving_default"]) == 6 * 3
    assert products(signatures["rank"]) == 6 * 3 + 6


@pytest.mark.parametrize("case", ["two towers' widths of gmcm", "cross layers", "no towers' widths", "bfloat16"])
def test_every_shape_of_network_ranks_as_it_predicts(trained_run, log, case):
    config = tiny_config(
        "gmcm" if "gmcm" in case else "base", precision="bfloat16" if case == "bfloat16" else "float32"
    )
    if case == "cross layers":
        config.model.cross_layers = 2
    if case == "no towers' widths":
        config.model.tower_units = ()
    run = dataclasses.replace(trained_run, config=config)
    signatures = ServingModule(run, run.build_model()).signatures_to_save
    # In bfloat16 the parts of a sum are rounded to eight bits each, as is the sum itself in the rows: logits of 3 by 0.01.
    assert_ranked(signatures, *one_user(log[0]), atol=2e-3 if case == "bfloat16" else 1e-6)


def with_entities(run, **entities):
    columns = (dataclasses.replace(c, entity=entities.get(c.name, c.entity)) for c in run.schema.columns)
    return dataclasses.replace(run, schema=dataclasses.replace(run.schema, columns=tuple(columns)))


@pytest.mark.parametrize("entities", [dict.fromkeys(USER, "item"), dict.fromkeys(ITEM, "user")])
def test_a_model_that_reads_columns_of_one_entity_has_no_rank(trained_run, model, entities):
    signatures = ServingModule(with_entities(trained_run, **entities), model).signatures_to_save
    assert list(signatures) == ["serving_default", "serving_examples"]


def test_a_user_of_numbers_alone_is_ranked(trained_run, model, log):
    run = with_entities(trained_run, **dict.fromkeys(USER, "item"), price="user")
    raw = {name: values[:1] if name == "price" else values[:8] for name, values in log[0].items()}
    rows = raw | {"price": np.repeat(raw["price"], 8)}
    assert_ranked(ServingModule(run, model).signatures_to_save, raw, rows)


PRICES = np.array([4.0, 9.0, 0.0, -1.0, np.nan, np.inf], np.float32)


def test_the_score_is_the_probability_times_a_power_of_the_price_and_zero_without_a_price(signatures, log):
    once, rows = one_user(log[0], rows=len(PRICES))
    for name, raw in (("rank", once), ("serving_default", rows)):
        served = call(signatures[name], raw | {"price": PRICES})
        np.testing.assert_allclose(served["score"][:2], served["pctcvr"][:2] * [2, 3], rtol=1e-6)
        np.testing.assert_array_equal(served["score"][2:], 0)


@pytest.mark.parametrize("exponent", [-1.0, 0.0])
def test_without_a_price_the_score_is_zero_under_every_exponent(exponent):
    scores = RankingScore("price", exponent)(tf.fill([6], 0.5), tf.constant(PRICES)).numpy()
    np.testing.assert_allclose(scores[:2], 0.5 * PRICES[:2] ** exponent)
    np.testing.assert_array_equal(scores[2:], 0)


def test_a_missing_price_in_whole_cents_is_no_price():
    np.testing.assert_array_equal(RankingScore("cents")(tf.fill([2], 0.5), tf.constant([MISSING_INT64, 200])), [0, 100])


def test_a_price_that_the_model_does_not_read_is_one_more_column_of_every_signature(trained_run, model, log):
    signatures = ServingModule(trained_run, model, score=RankingScore("gmv")).signatures_to_save
    once, rows = one_user(log[0], rows=2)
    prices = {"gmv": np.array([10, 20], np.float32)}
    for name, raw in (("rank", once), ("serving_default", rows)):
        served = call(signatures[name], raw | prices)
        np.testing.assert_allclose(served["score"], served["pctcvr"] * prices["gmv"], rtol=1e-6)
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=[10]))
    example = tf.train.Example(features=tf.train.Features(feature={"gmv": feature})).SerializeToString()
    served = signatures["serving_examples"](tf.constant([example, b""]))
    np.testing.assert_allclose(served["score"], served["pctcvr"] * [10, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("price", "found"),
    [
        ("brand", "'brand' of dtype 'string', shape [] and role 'feature'"),
        ("history", "'history' of dtype 'int64', shape [None] and role 'feature'"),
        ("purchase", "'purchase' of dtype 'int64', shape [] and role 'behavior'"),
        ("truth_pcvr", "'truth_pcvr' of dtype 'float', shape [] and role 'truth'"),
    ],
)
def test_a_price_that_is_no_number_or_not_known_when_serving_is_refused(trained_run, model, price, found):
    with pytest.raises(ConfigError) as error:
        ServingModule(trained_run, model, score=RankingScore(price))
    assert str(error.value) == (
        f"the ranking score: expected a number a row of role 'feature' or 'ignored' as the price, got {found}"
    )


def test_a_price_that_is_no_column_is_refused_with_the_nearest(trained_run, model):
    with pytest.raises(ConfigError, match=r"the ranking score: expected a column .* got 'pricy'; did you mean 'price'"):
        ServingModule(trained_run, model, score=RankingScore("pricy"))


@pytest.fixture(scope="module")
def wide_run(trained_run):
    """The run with tables as wide as the sizes are stated for."""
    config = tiny_config()
    config.model.embedding_dim = 16
    return dataclasses.replace(trained_run, config=config)


@pytest.fixture(scope="module")
def wide_model(wide_run, data):
    model = wide_run.build_model()
    model.fit(*read_split(wide_run.config, data, "train"), batch_size=512, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def long_log():
    """A chunk of a longer log of the same users and items."""
    columns = next(dataclasses.replace(LOG, rows=60_000).batches())
    history = tf.RaggedTensor.from_row_lengths(*columns["history"]).to_tensor(MISSING_INT64)
    return columns, {name: history if name == "history" else columns[name] for name in FEATURES}


@pytest.mark.parametrize(("storage", "share"), [("bfloat16", 0.5), ("int8", 0.3)])
def test_compact_tables_lose_no_auc_and_most_of_the_bytes(wide_run, wide_model, long_log, storage, share):
    exact, compact = (ServingModule(wide_run, wide_model, tables=tables) for tables in ("float32", storage))
    sizes = [sum(np.prod(v.shape) * v.dtype.size for v in module.variables) for module in (compact, exact)]
    assert sizes[0] <= share * sizes[1]
    labels, raw = long_log
    predicted, expected = (call(module.signatures_to_save["serving_default"], raw) for module in (compact, exact))
    assert np.abs(predicted["pctcvr"] / expected["pctcvr"] - 1).max() > 1e-6
    for target, level in (("pctr", "click"), ("pctcvr", "purchase")):
        before, after = (roc_auc_score(labels[level], p[target]) for p in (expected, predicted))
        assert before > 0.55
        assert before - after <= 1e-4


def test_padding_and_missing_values_are_as_in_the_trained_tables(trained_run, model, log):
    raw = {name: values[:6] for name, values in log[0].items()}
    history = np.full((6, 10), MISSING_INT64)
    for row in range(6):
        history[row, :row] = raw["history"][row, :row]
    raw |= {"history": history, "brand": np.full(6, b"", dtype="S1"), "user_id": np.full(6, MISSING_INT64)}
    exact, compact = (
        call(ServingModule(trained_run, model, tables=t).signatures_to_save["serving_default"], raw)
        for t in ("float32", "int8")
    )
    for name, p in exact.items():
        np.testing.assert_allclose(compact[name], p, rtol=0.01)


def test_only_the_compact_tables_are_variables(exported, model):
    rows, dim = next(w.shape for w in model.network.weights if "embeddings" in w.name)
    stored = [s for s in tf.train.list_variables(str(exported / "variables" / "variables")) if s[1]]
    assert [shape for _, shape in stored] == [[rows, dim + 2]]


def described(specs):
    return {name: [spec.dtype.name, spec.shape.as_list()] for name, spec in sorted(specs.items())}


def test_names_types_and_shapes_of_the_signatures_are_those_that_clients_know(exported):
    """They are what clients send and read: change the file only with a line in the changelog."""
    found = {
        name: {
            "inputs": described(function.structured_input_signature[1]),
            "outputs": described(function.structured_outputs),
        }
        for name, function in tf.saved_model.load(str(exported)).signatures.items()
    }
    assert found == json.loads(GOLDEN.read_text())


STOCK_OPERATIONS = """
import sys
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import kernels

graph = saved_model_pb2.SavedModel.FromString(open(sys.argv[1], "rb").read()).meta_graphs[0].graph_def
used = {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}
used -= {function.signature.name for function in graph.library.function}
assert not {"hm3_tf", "tensorflow_io"} & set(sys.modules)
print(len(used), sorted(op for op in used if not any(
    kernel.device_type in ("CPU", "DEFAULT") for kernel in kernels.get_registered_kernels_for_op(op).kernel)))
"""


def test_every_operation_has_a_kernel_of_tensorflow_itself(exported):
    command = [sys.executable, "-I", "-c", STOCK_OPERATIONS, str(exported / "saved_model.pb")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    number, others = process.stdout.split(maxsplit=1)
    assert int(number) > 20
    assert others.strip() == "[]"
