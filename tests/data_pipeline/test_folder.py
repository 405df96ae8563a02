"""Data folders: logs of other systems read in place, and what is wrong with a log said in one line."""

import json
import os
import re

import numpy as np
import pytest

from data_pipeline import index as index_module
from data_pipeline.folder import DataFolder, check_records, explained_read_errors
from data_pipeline.inputs import select_features
from data_pipeline.read import Reader
from data_pipeline.records import BLOCK_ROWS
from data_pipeline.schema import Column, Hashing, Level, Schema
from hm3_tf.errors import ConfigError, DataError
from tests.data_pipeline.conftest import (
    COLUMNS,
    SCHEMA,
    convert_rows,
    example,
    flip_byte,
    make_rows,
    write_index,
    write_records,
)

FOREIGN_SCHEMA = {
    "version": 1,
    "columns": [
        {"name": "item", "dtype": "int64", "shape": [None], "max_length": 2, "hashing": {"buckets": 100}},
        {"name": "image", "dtype": "float", "shape": [3]},
        {"name": "label", "dtype": "int64", "role": "behavior"},
    ],
    "levels": [
        {"name": "click", "any_of": ["label"], "values": [1, 2, 3, 4, 5], "gate": True},
        {"name": "purchase", "any_of": ["label"], "values": [4, 5]},
    ],
}
FOREIGN_ROWS = 2_500


def foreign_row(i):
    """Returns row i as another system writes it: a column more than the schema has, and a list that may be absent."""
    values = {"image": [float(i), float(i % 2), 0.5], "label": i % 7, "other": b"not in the schema"}
    return example(**values, **({"item": list(range(i, i + i % 4))} if i % 4 else {}))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A folder of row Examples in two shards beside a schema.json written by hand, without index or statistics."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "schema.json").write_text(json.dumps(FOREIGN_SCHEMA))
    for name, rows in (("part-0.tfrecord", range(1_500)), ("part-1.tfrecord", range(1_500, FOREIGN_ROWS))):
        write_records(str(folder / "train" / name), [foreign_row(i) for i in rows])
    return DataFolder.open(str(folder))


@pytest.fixture(scope="module")
def foreign_statistics(foreign):
    return foreign.statistics()


NARROW = Schema(
    tuple(column for column in COLUMNS if column.name in ("click", "pay")),
    (Level("click", ("click",), gate=True), Level("purchase", ("pay",))),
)


def drain(index, schema=NARROW, **options):
    """Reads a whole split as a training does; 61 is prime, so that there is one lane and little to trace."""
    with explained_read_errors(index):
        for _ in Reader(index, schema, (), **options).training_dataset(61, seed=0, epoch=0):
            pass


def error_of(*args, **options):
    with pytest.raises(DataError) as caught:
        drain(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def check(folder, schema):
    """Checks the training split of a folder for all columns of a schema that can be read."""
    names = tuple(column.name for column in schema.columns if column.role != "ignored")
    check_records(Reader(DataFolder(str(folder), schema).split("train"), schema, (), carry=names))


def check_error(serialized, schema, folder):
    """Returns the message of the check of a row log against a schema."""
    write_records(f"{folder}/train/a.tfrecord", serialized)
    with pytest.raises(DataError) as caught:
        check(folder, schema)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Foreign logs


def test_statistics_of_a_foreign_log_are_counted_from_its_training_shards(foreign_statistics):
    train = foreign_statistics["train"]
    assert list(foreign_statistics) == ["train"]
    assert train.rows == FOREIGN_ROWS
    labels = np.arange(FOREIGN_ROWS) % 7
    assert train.rates() == {
        "click": np.mean((labels >= 1) & (labels <= 5)),
        "purchase": np.mean((labels == 4) | (labels == 5)),
    }
    assert train.violations == {"purchase without click": 0}
    image = train.columns["image"]
    assert image["count"] == 3 * FOREIGN_ROWS
    assert image["mean"] == [pytest.approx((FOREIGN_ROWS - 1) / 2), pytest.approx(0.5), pytest.approx(0.5)]
    assert image["std"] == [pytest.approx(np.std(np.arange(FOREIGN_ROWS))), pytest.approx(0.5), 0.0]
    items = [value for i in range(FOREIGN_ROWS) for value in range(i, i + min(i % 4, 2))]
    assert train.columns["item"]["count"] == len(items)
    assert train.columns["item"]["cardinality"] == pytest.approx(len(set(items)), rel=0.02)


def test_a_foreign_log_is_read_in_place(foreign, foreign_statistics):
    features = select_features(foreign.schema, foreign_statistics["train"])
    reader = Reader(foreign.split("train"), foreign.schema, features, carry=("item", "label"))
    batches = list(reader.ordered_dataset(1_000).as_numpy_iterator())
    image = np.concatenate([inputs["image"] for inputs, *_ in batches])[:FOREIGN_ROWS]
    np.testing.assert_array_equal(image[:, 0], np.arange(FOREIGN_ROWS))
    labels = np.arange(FOREIGN_ROWS) % 7
    purchase = np.concatenate([labels["purchase"] for _, labels, *_ in batches])[:FOREIGN_ROWS]
    np.testing.assert_array_equal(purchase, (labels == 4) | (labels == 5))
    item = np.concatenate([carried["item"] for *_, carried in batches])[:FOREIGN_ROWS]
    assert item[5].tolist() == [5, -(2**63)]  # one value
    assert item[7].tolist() == [7, 8]  # three values, cut
    assert item[8].tolist() == [-(2**63)] * 2  # absent


def test_a_foreign_folder_is_not_written_into(foreign, foreign_statistics):
    assert sorted(os.listdir(foreign.path)) == ["schema.json", "train"]
    assert sorted(os.listdir(f"{foreign.path}/train")) == ["part-0.tfrecord", "part-1.tfrecord"]


def test_labels_against_the_hierarchy_are_counted_in_a_foreign_log(tmp_path):
    levels = (Level("click", ("label",), values=(1,), gate=True), Level("purchase", ("label",), values=(2,)))
    schema = Schema((Column("label", "int64", "behavior"),), levels)
    write_records(f"{tmp_path}/train/a.tfrecord", [example(label=label) for label in (0, 1, 2, 2)])
    train = DataFolder(str(tmp_path), schema).statistics()["train"]
    assert train.violations == {"purchase without click": 2}
    assert train.rates() == {"click": 0.25, "purchase": 0}


# Opening


def test_statistics_of_a_converted_log_are_those_of_its_file(converted):
    rows, path = converted
    folder = DataFolder.open(str(path))
    assert folder.schema == SCHEMA
    assert folder.statistics()["train"].rows == len(rows["click"])
    figures = json.loads((path / "statistics.json").read_text())
    figures["train"]["label_patterns"] = {"0000": 7}
    (path / "statistics.json").write_text(json.dumps(figures))
    assert folder.statistics()["train"].rows == 7


def test_counted_statistics_are_those_that_the_converter_wrote(converted):
    path = converted[1]
    folder = DataFolder.open(str(path))
    written = folder.statistics()["train"]
    os.remove(path / "statistics.json")
    counted = folder.statistics()["train"]
    assert counted.label_patterns == written.label_patterns
    assert counted.columns.keys() == written.columns.keys()
    for name, figures in written.columns.items():
        if name != "tags":  # the converter counts values beyond max_length too
            assert counted.columns[name].keys() == figures.keys()
            for figure, value in figures.items():
                np.testing.assert_allclose(counted.columns[name][figure], value, err_msg=f"{name} {figure}")


def test_a_split_is_there_when_it_has_shards(foreign, converted):
    assert foreign.has_split("train")
    assert not foreign.has_split("test")
    assert not DataFolder.open(str(converted[1])).has_split("test"), "an index without shards is an empty split"


def test_a_folder_without_schema_says_how_to_get_one(tmp_path):
    message = f"{tmp_path}/schema.json: expected a file, found none; make the folder with hm3 convert or hm3 simulate"
    with pytest.raises(DataError, match=re.escape(message)):
        DataFolder.open(str(tmp_path))


def test_a_schema_that_cannot_be_used_is_named_by_its_path(tmp_path):
    (tmp_path / "schema.json").write_text("{}")
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/schema.json: ")):
        DataFolder.open(str(tmp_path))


def test_statistics_that_cannot_be_used_are_named_by_their_path(converted):
    (converted[1] / "statistics.json").write_text("[]")
    with pytest.raises(DataError, match=re.escape(f"{converted[1]}/statistics.json: ")):
        DataFolder.open(str(converted[1])).statistics()


# Checks of the first records


def test_a_log_that_holds_what_its_schema_says_passes(small_log):
    check_records(Reader(small_log[1], SCHEMA, (), carry=tuple(column.name for column in COLUMNS)))


def test_columns_that_are_not_read_need_not_be_there(tmp_path):
    columns = (Column("label", "int64", "behavior"), Column("note", "string", "ignored"), Column("p", "float", "truth"))
    schema = Schema(columns, (Level("click", ("label",)),))
    write_records(f"{tmp_path}/train/a.tfrecord", [example(label=1)])
    check_records(Reader(DataFolder(str(tmp_path), schema).split("train"), schema, ()))


def test_without_labels_their_columns_are_not_read(tmp_path):
    schema = Schema((Column("price", "float"), Column("label", "int64", "behavior")), (Level("click", ("label",)),))
    write_records(f"{tmp_path}/train/a.tfrecord", [example(price=1.5), example(price=2.5)])
    reader = Reader(DataFolder(str(tmp_path), schema).split("train"), schema, (), labels=False, carry=("price",))
    check_records(reader)
    ((inputs, labels, weights, carried),) = reader.ordered_dataset(2)
    assert inputs == labels == {} and weights.numpy().tolist() == [1, 1]
    assert carried["price"].numpy().tolist() == [1.5, 2.5]


def test_a_column_that_only_a_later_block_has_passes(tmp_path):
    schema = Schema((Column("rare", "float"), Column("label", "int64", "behavior")), (Level("click", ("label",)),))
    write_records(f"{tmp_path}/train/a.tfrecord", [example(label=0)] * BLOCK_ROWS + [example(label=1, rare=0.5)])
    check(tmp_path, schema)


def test_a_column_that_some_records_lack_passes(tmp_path):
    schema = Schema((Column("price", "float"), Column("label", "int64", "behavior")), (Level("click", ("label",)),))
    write_records(f"{tmp_path}/train/a.tfrecord", [example(label=1), example(label=0, price=1.5)])
    check(tmp_path, schema)


def test_a_column_that_no_record_has_is_named_with_a_hint(tmp_path):
    schema = Schema((Column("price", "float"), Column("label", "int64", "behavior")), (Level("click", ("label",)),))
    message = check_error([example(label=1, prise=1.5)] * 3, schema, tmp_path)
    assert message.startswith(
        f"{tmp_path}/train: expected the column 'price' of the schema, found none in the blocks looked at; "
        "did you mean 'prise'?"
    )


@pytest.mark.parametrize(
    "column, value, found",
    [
        (Column("x", "float"), 1, "expected float as the schema says, found int64"),
        (Column("x", "int64", hashing=Hashing(5)), b"1", "expected int64 as the schema says, found string"),
        (Column("x", "string", hashing=Hashing(5)), 1.5, "expected string as the schema says, found float"),
        (
            Column("x", "int64", shape=(None,), max_length=2, hashing=Hashing(5)),
            [1.5],
            "expected int64 as the schema says, found float",
        ),
    ],
)
def test_a_column_of_another_dtype_is_named(tmp_path, column, value, found):
    schema = Schema((column, Column("label", "int64", "behavior")), (Level("click", ("label",)),))
    message = check_error([example(label=1), example(label=1, x=value)], schema, tmp_path)
    assert message == f"{tmp_path}/train/a.tfrecord: column 'x': {found}; mend the schema"


def test_a_packed_log_is_checked_too(small_log):
    columns = tuple(c if c.name != "price" else Column("price", "int64", hashing=Hashing(5)) for c in COLUMNS)
    with pytest.raises(DataError, match="column 'price': expected int64 as the schema says, found float"):
        check_records(Reader(small_log[1], Schema(columns, SCHEMA.levels), (), carry=("price",)))


# Errors while reading


@pytest.mark.parametrize(
    "bad, reason",
    [
        ({"vector": [1.0]}, "Key: vector.*Number of float values != expected"),
        ({"tags": [0.5]}, "Key: tags.*Data types don't match"),
        ({"user": b"seven"}, "Key: user.*Data types don't match"),
        ({"click": [1, 0]}, "Key: click.*Number of int64 values != expected"),
    ],
)
def test_a_record_deep_in_the_log_that_is_not_as_the_schema_says_is_one_line(tmp_path, bad, reason):
    good = {"user": 1, "tags": [1], "vector": [0.5, 0.5], "click": 1}
    schema = Schema(tuple(column for column in COLUMNS if column.name in good), SCHEMA.levels[:1])
    write_records(
        f"{tmp_path}/train/a.tfrecord", [example(**good)] * 1_100 + [example(**(good | bad))] + [example(**good)] * 9
    )
    index = DataFolder(str(tmp_path), schema).split("train")  # its first 1,024 records are sound
    message = error_of(index, schema, carry=tuple(good))
    assert message.startswith(f"{tmp_path}/train: expected records as the schema says, but ")
    assert re.search(reason, message)
    assert message.endswith("mend the schema or the log")


@pytest.mark.parametrize(
    "record",
    [
        b"no Example",
        b"\xff\xff\x01",
    ],
)
def test_a_record_deep_in_the_log_that_is_no_example_is_one_line(tmp_path, record):
    levels = (Level("click", ("label",)),)
    write_records(f"{tmp_path}/a.tfrecord", [example(label=1)] * 1_100 + [record])
    message = error_of(index_module.load_index(str(tmp_path)), Schema((Column("label", "int64", "behavior"),), levels))
    assert message.startswith(f"{tmp_path}: ")


def test_a_packed_column_without_its_values_for_each_row_is_one_line(small_log):
    columns = (*NARROW.columns, Column("vector", "float", shape=(3,)))
    message = error_of(small_log[1], Schema(columns, NARROW.levels), carry=("vector",))
    assert "column 'vector' of dtype float does not have its values for each row" in message


def test_labels_against_the_hierarchy_under_the_policy_error_are_one_line(small_log):
    message = error_of(small_log[1], nesting="error")
    assert "data.nesting is 'error'" in message and "purchase without click" in message


@pytest.mark.parametrize("record_format", ["packed", "row"])
def test_a_record_that_became_corrupt_is_named_by_file_and_offset(tmp_path, record_format):
    convert_rows(tmp_path / "data", make_rows(1_500), record_format=record_format)
    index = DataFolder.open(str(tmp_path / "data")).split("train")
    start = int(index.blocks[1, 1])
    size = int(np.fromfile(index.files[0], np.uint8, count=8, offset=start).view(np.int64)[0])
    flip_byte(index.files[0], start + 12 + size // 2)
    assert DataFolder.open(str(tmp_path / "data")).split("train").rows == 1_500, "the size is as the index says"
    message = error_of(index)
    assert message.startswith(
        f"{index.files[0]}: expected TFRecord data, found a corrupt or cut-off record at byte offset"
    )
    assert start <= int(re.search(r"offset (\d+)", message).group(1)) < start + size


def test_a_shard_that_went_away_is_one_line(tmp_path):
    index = write_index(str(tmp_path), make_rows(100), files=2)
    os.remove(index.files[1])
    assert index.files[1] in error_of(index)


def test_errors_that_are_not_of_the_log_are_let_through(small_log):
    with pytest.raises(ZeroDivisionError), explained_read_errors(small_log[1]):
        raise ZeroDivisionError
