"""Both TFRecord codecs: what is written comes back, missing values and cut lists included."""

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import records
from data_pipeline.schema import SCALAR, VARIABLE, Column, Hashing
from tests.data_pipeline.conftest import example, to_batch

properties = settings(deadline=None, max_examples=25)
HASHING = Hashing(100)
MAX_LENGTH = 3
SHAPES = {"scalar": SCALAR, "vector": (2,), "variable": VARIABLE}
DTYPES = ("int64", "string", "float")
COLUMNS = tuple(
    Column(
        f"{dtype}_{name}",
        dtype,
        "ignored" if dtype == "float" and shape == VARIABLE else "feature",
        shape,
        MAX_LENGTH if shape == VARIABLE else None,
        None if dtype == "float" else HASHING,
    )
    for dtype in DTYPES
    for name, shape in SHAPES.items()
)
VALUES = {
    "int64": st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**53 + 1, 2**63 - 1, -(2**53) - 1])),
    "string": st.text(max_size=4).map(str.encode),
    "float": st.floats(width=32, allow_nan=False),
}
MISSING = {"int64": -(2**63), "string": b"", "float": np.nan}
NUMPY = {"int64": np.int64, "string": object, "float": np.float32}


@st.composite
def tables(draw):
    """{column of COLUMNS: list} of one to five rows, with nulls wherever they may stand."""
    rows = draw(st.integers(1, 5))
    result = {}
    for column in COLUMNS:
        value = st.none() | VALUES[column.dtype]
        if column.shape == (2,):
            value = st.lists(value, min_size=2, max_size=2)
        elif column.shape == VARIABLE:
            value = st.none() | st.lists(value, max_size=MAX_LENGTH + 2)
        result[column.name] = draw(st.lists(value, min_size=rows, max_size=rows))
    return result


def expected(column, values):
    """The column as a network reads it: nulls as missing values, lists cut and padded."""
    missing = MISSING[column.dtype]

    def filled(value):
        return missing if value is None else value

    if column.shape == SCALAR:
        cells = [filled(value) for value in values]
    else:
        cells = [[filled(v) for v in (value or [])[: column.length]] for value in values]
        cells = [cell + [missing] * (column.length - len(cell)) for cell in cells]
    return np.array(cells, NUMPY[column.dtype])


def encode(batch, record_format, columns=COLUMNS):
    packed = record_format == "packed"
    return [records.encode_packed(batch, columns)] if packed else records.encode_rows(batch, columns)


def parse(serialized, record_format, columns=COLUMNS):
    parsed = records.PARSERS[record_format](tf.constant(serialized, tf.string), columns)
    return {name: value.numpy() for name, value in parsed.items()}


@pytest.mark.parametrize("record_format", records.RECORD_FORMATS)
@properties
@given(rows=tables())
def test_every_dtype_and_shape_comes_back_as_it_was_written(record_format, rows):
    found = parse(encode(to_batch(rows, COLUMNS), record_format), record_format)
    assert set(found) == set(rows)
    for column in COLUMNS:
        np.testing.assert_array_equal(found[column.name], expected(column, rows[column.name]), err_msg=column.name)


@pytest.mark.parametrize("record_format", records.RECORD_FORMATS)
@properties
@given(first=tables(), second=tables())
def test_rows_of_several_records_follow_each_other(record_format, first, second):
    serialized = [r for rows in (first, second) for r in encode(to_batch(rows, COLUMNS), record_format)]
    found = parse(serialized, record_format)
    for column in COLUMNS:
        both = expected(column, first[column.name] + second[column.name])
        np.testing.assert_array_equal(found[column.name], both, err_msg=column.name)


@pytest.mark.parametrize("record_format", records.RECORD_FORMATS)
def test_a_slice_of_a_batch_is_written_and_nothing_around_it(record_format):
    rows = {
        c.name: [[i, i][: c.length or 1] if c.shape else i for i in range(6)] for c in COLUMNS if c.dtype == "int64"
    }
    columns = [column for column in COLUMNS if column.dtype == "int64"]
    found = parse(encode(to_batch(rows, columns).slice(2, 3), record_format, columns), record_format, columns)
    for column in columns:
        np.testing.assert_array_equal(found[column.name], expected(column, rows[column.name][2:5]))


@pytest.mark.parametrize("record_format", records.RECORD_FORMATS)
def test_values_of_a_null_list_are_not_written(record_format):
    column = Column("tags", "int64", shape=VARIABLE, max_length=MAX_LENGTH, hashing=HASHING)
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4]), pa.array([1, 2, 3, 4]), mask=pa.array([False, True, False])
    )
    batch = pa.RecordBatch.from_pydict({"tags": hidden})
    found = parse(encode(batch, record_format, [column]), record_format, [column])
    np.testing.assert_array_equal(found["tags"], expected(column, [[1], None, [4]]))


@pytest.mark.parametrize("record_format", records.RECORD_FORMATS)
def test_lists_are_cut_at_the_end(record_format):
    column = Column("tags", "int64", shape=VARIABLE, max_length=2, hashing=HASHING)
    found = parse(
        encode(to_batch({"tags": [[1, 2, 3], [4]]}, [column]), record_format, [column]), record_format, [column]
    )
    assert found["tags"].tolist() == [[1, 2], [4, -(2**63)]]


@pytest.mark.parametrize("record_format", records.RECORD_FORMATS)
def test_columns_that_are_not_asked_for_are_not_parsed(record_format):
    rows = {"a": [1, 2], "b": [3, 4]}
    columns = [Column("a", "int64", hashing=HASHING), Column("b", "int64", hashing=HASHING)]
    serialized = encode(to_batch(rows, columns), record_format, columns)
    assert parse(serialized, record_format, columns[1:]).keys() == {"b"}


@pytest.mark.parametrize("record_format", records.RECORD_FORMATS)
def test_parsed_columns_have_their_dtype_and_length_in_a_graph(record_format):
    graph = tf.function(lambda s: records.PARSERS[record_format](s, COLUMNS))
    outputs = graph.get_concrete_function(tf.TensorSpec([None], tf.string)).structured_outputs
    for column in COLUMNS:
        assert outputs[column.name].dtype == records.TF_DTYPES[column.dtype]
        assert outputs[column.name].shape[1:].as_list() == ([] if column.shape == SCALAR else [column.length])


def test_a_column_that_a_row_does_not_have_is_missing_there():
    found = parse([example(other=1)], "row")
    for column in COLUMNS:
        row = [None, None] if column.shape == (2,) else None
        np.testing.assert_array_equal(found[column.name], expected(column, [row]), err_msg=column.name)


@pytest.mark.parametrize(
    "column, record",
    [
        (Column("x", "int64", hashing=HASHING), example(x=1.5)),
        (Column("x", "float"), example(x=b"1.5")),
        (Column("x", "string", hashing=HASHING), example(x=1)),
        (Column("x", "int64", shape=VARIABLE, max_length=2, hashing=HASHING), example(x=[1.5, 2.5])),
        (Column("x", "int64", hashing=HASHING), example(x=[1, 2])),
        (Column("x", "float", shape=(3,)), example(x=[1.5, 2.5])),
    ],
)
def test_a_row_of_another_dtype_or_length_is_an_error_that_names_the_column(column, record):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Key: x"):
        parse([record], "row", [column])


@pytest.mark.parametrize(
    "written, read",
    [
        (Column("x", "float"), Column("x", "float", shape=(2,))),
        (Column("x", "float", shape=(2,)), Column("x", "float")),
        (Column("x", "float", "ignored", shape=VARIABLE), Column("x", "float", shape=(2,))),
    ],
)
def test_a_packed_column_without_its_values_for_each_row_is_an_error_that_names_it(written, read):
    rows = {"x": [[1.0, 2.0, 3.0], [4.0], [5.0]] if written.shape == VARIABLE else [[1.0, 2.0]] * 3}
    rows = {"x": [1.0, 2.0, 3.0]} if written.shape == SCALAR else rows
    with pytest.raises(tf.errors.InvalidArgumentError, match="column 'x' of dtype float does not have its values"):
        parse(encode(to_batch(rows, [written]), "packed", [written]), "packed", [read])


def test_a_packed_column_of_another_dtype_is_an_error_that_names_it():
    written = Column("x", "float")
    serialized = encode(to_batch({"x": [1.0]}, [written]), "packed", [written])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Key: x"):
        parse(serialized, "packed", [Column("x", "int64", hashing=HASHING)])


def test_a_column_that_no_packed_record_has_is_an_error_that_names_it():
    written = Column("y", "float")
    serialized = encode(to_batch({"y": [1.0]}, [written]), "packed", [written])
    with pytest.raises(tf.errors.InvalidArgumentError, match="column 'x' of dtype float does not have its values"):
        parse(serialized, "packed", [Column("x", "float")])


@pytest.mark.parametrize("record_format", records.RECORD_FORMATS)
def test_the_same_rows_give_the_same_bytes(record_format):
    rows = {column.name: [[1.0, 2.0]] for column in COLUMNS if column.dtype == "float" and column.shape == (2,)}
    columns = [column for column in COLUMNS if column.name in rows]
    batch = to_batch(rows, columns)
    assert encode(batch, record_format, columns) == encode(batch, record_format, columns)


def test_a_block_of_rows_takes_less_room_packed_than_row_by_row():
    columns = [Column("user", "int64", hashing=HASHING), Column("price", "float")]
    batch = to_batch({"user": list(range(1_024)), "price": [0.5] * 1_024}, columns)
    packed, rows = (sum(len(r) + 16 for r in encode(batch, f, columns)) for f in ("packed", "row"))
    assert packed * 5 < rows


@pytest.mark.parametrize("lengths", [[5, -1], [2**40, 4 - 2**40], [2**62, 2**62, 2**62, 2**62 + 4]])
def test_lengths_that_add_up_but_are_none_are_refused(lengths):
    """Padding by them ended the process."""
    columns = (Column("tags", "int64", shape=VARIABLE, max_length=3, hashing=Hashing(10)),)
    record = example(**{"#rows": len(lengths), "tags": [1, 2, 3, 4], "tags#lengths": lengths})
    with pytest.raises(tf.errors.InvalidArgumentError, match="column 'tags'"):
        records.parse_packed(tf.constant([record]), columns)
