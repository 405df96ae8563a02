"""A SavedModel that serves other than the model predicts is found; one that does not is passed."""

import dataclasses
import itertools
import os
import uuid

import numpy as np
import pytest
import tensorflow as tf

from hm3_tf import export, plain_scoring, skew
from hm3_tf.errors import Hm3Error
from hm3_tf.serving import round_tables
from hm3_tf.signatures import input_columns, read_rows, read_signatures
from hm3_tf.skew import check_skew


@pytest.fixture(scope="module")
def model(trained_run):
    return trained_run.trained_model()


@pytest.fixture(scope="module")
def folder(trained_run, model, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("model"))
    export._save(trained_run, model, folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder, trained_run, data):
    columns = input_columns(read_signatures(folder), data.schema.columns)
    return read_rows(trained_run, data.split("validation"), columns, 600)


@pytest.fixture
def here(monkeypatch):
    """Has the SavedModel answer in this process; returns a list of functions to be applied to {output: array}."""
    changes = []

    def answers(folder, requests):
        served = tf.saved_model.load(folder).signatures
        result = []
        for name, inputs in requests:
            outputs = served[name](**{column: tf.constant(values) for column, values in inputs.items()})
            result.append({output: p.numpy() for output, p in outputs.items()})
            for change in changes:
                change(name, result[-1])
        return result

    monkeypatch.setattr(skew, "_answers", answers)
    return changes


def test_an_own_process_serves_what_the_model_predicts(trained_run, model, folder, rows):
    found = check_skew(trained_run, model, folder, rows)
    assert found["rows"] == 600 and set(found["tolerance"].values()) == {1e-6}
    assert set(found["largest_difference"]) == set(read_signatures(folder))
    assert all(gap <= 1e-6 for gap in found["largest_difference"].values())


def test_a_difference_is_told_with_its_signature_size_and_row(trained_run, model, folder, rows, here):
    requests = itertools.count()

    def shift(name, answer):
        if name == "serving_examples" and next(requests) == 11:  # the last: rows 550 to 599
            answer["pcvr"][[3, 40]] += [0.002, -0.25]

    here.append(shift)
    message = (
        r"from the SavedModel, got 2 rows more than 1e-06 apart through serving_examples, by 0.25 at most, in row "
        rf"{rows.numbers[590]} of the split"
    )
    with pytest.raises(Hm3Error, match=message):
        check_skew(trained_run, model, folder, rows)


def test_an_answer_that_is_no_number_is_infinitely_far():
    expected = {"pctr": np.array([0.5, 0.5]), "pcvr": np.zeros(2)}
    gaps = skew._gaps(expected, {"pctr": np.array([0.25, np.nan]), "pcvr": np.zeros(2)})
    assert gaps.tolist() == [0.25, np.inf]


def test_the_model_of_other_weights_is_not_what_is_served(trained_run, folder, rows, here):
    with pytest.raises(Hm3Error, match="skew check: expected the model's predictions of 600 logged rows"):
        check_skew(trained_run, trained_run.build_model(), folder, rows)


def test_compact_tables_are_compared_with_a_model_whose_tables_are_rounded_alike(trained_run, rows, here, tmp_path):
    model = trained_run.trained_model()
    export._save(trained_run, model, str(tmp_path), "int8")
    with pytest.raises(Hm3Error, match="skew check: expected the model's predictions"):
        check_skew(trained_run, model, str(tmp_path), rows)
    round_tables(model, "int8")
    assert check_skew(trained_run, model, str(tmp_path), rows)["rows"] == 600


def test_bfloat16_products_may_differ_by_the_rounding_of_their_two_parts(trained_run, rows, here, tmp_path):
    config = dataclasses.replace(
        trained_run.config, training=dataclasses.replace(trained_run.config.training, precision="bfloat16")
    )
    run = dataclasses.replace(trained_run, config=config)
    model = run.trained_model()
    export._save(run, model, str(tmp_path))
    found = check_skew(run, model, str(tmp_path), rows)
    assert 1e-6 < found["largest_difference"]["rank"] < found["tolerance"]["rank"] == 2e-3
    assert found["tolerance"]["serving_default"] == 1e-6


def test_a_model_on_a_remote_file_system_is_copied_for_the_process(folder, trained_run, model, rows):
    remote = f"ram://{uuid.uuid4()}/model"
    for path, _, names in os.walk(folder):
        tf.io.gfile.makedirs(path.replace(folder, remote))
        for name in names:
            tf.io.gfile.copy(f"{path}/{name}", f"{path}/{name}".replace(folder, remote))
    assert check_skew(trained_run, model, remote, rows)["rows"] == 600


def test_a_model_that_cannot_be_served_is_told_with_the_reason(monkeypatch, tmp_path):
    (tmp_path / "fails.py").write_text("print(1 / 0)")
    monkeypatch.setattr(plain_scoring, "__file__", str(tmp_path / "fails.py"))
    with pytest.raises(
        Hm3Error, match="that TensorFlow serves in a process of its own, got: ZeroDivisionError: division by"
    ):
        skew._answers("model", [])


def test_the_process_refuses_to_score_beside_hm3_tf(folder, tmp_path):
    (tmp_path / "requests").write_bytes(b"\x80\x04]\x94.")  # an empty list, pickled
    with pytest.raises(SystemExit, match="expected TensorFlow alone, but"):
        plain_scoring.main(folder, str(tmp_path / "requests"), str(tmp_path / "answers"))
