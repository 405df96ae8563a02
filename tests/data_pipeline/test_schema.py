"""The schema of a log: its JSON, its checks, and their messages."""

import dataclasses
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.schema import (
    DTYPES,
    ENTITIES,
    FORMAT_VERSION,
    ROLES,
    SCALAR,
    VARIABLE,
    Column,
    Hashing,
    Level,
    Schema,
    from_json,
    to_json,
)
from hm3_tf.errors import ConfigError

properties = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
HASHED = Hashing(100)
USER = Column("user", "int64", hashing=HASHED)
PRICE = Column("price", "float")
LABEL = Column("label", "int64", role="behavior")
CLICK = Level("click", ("label",), gate=True)


def document(**changes):
    """Returns the JSON of a small valid schema, its top-level fields changed."""
    columns = [{"name": "price", "dtype": "float"}, {"name": "label", "dtype": "int64", "role": "behavior"}]
    fields = {"version": 1, "columns": columns, "levels": [{"name": "click", "any_of": ["label"], "gate": True}]}
    return json.dumps(fields | changes)


def column_document(**column):
    return document(columns=[column, {"name": "label", "dtype": "int64", "role": "behavior"}])


@st.composite
def valid_columns(draw, name):
    role, dtype = draw(st.sampled_from(ROLES)), draw(st.sampled_from(DTYPES))
    fixed = st.integers(1, 9).map(lambda n: (n,))
    shape, max_length, hashing = SCALAR, None, None
    if (role, dtype) in (("weight", "string"), ("group", "float")):
        dtype = "int64"
    if dtype != "float" and (role == "feature" or draw(st.booleans())):
        combiner = st.sampled_from(["mean", "sum"])
        hashing = draw(st.builds(Hashing, st.integers(2, 10**9), st.text(max_size=3), st.text(max_size=3), combiner))
    if role in ("feature", "truth", "ignored"):
        choices = fixed if role == "feature" and dtype == "float" else st.one_of(fixed, st.just(VARIABLE))
        shape = draw(st.one_of(st.just(SCALAR), choices))
    if shape == VARIABLE:
        max_length = draw(st.integers(1, 50))
    return Column(name, dtype, role, shape, max_length, hashing, draw(st.sampled_from(ENTITIES)))


@st.composite
def valid_schemas(draw):
    name = st.from_regex(r"[A-Za-z0-9.][A-Za-z0-9_./>-]{0,3}", fullmatch=True)
    names = draw(st.lists(name, unique_by=str.lower, max_size=6).filter(lambda names: "label" not in names))
    columns = [LABEL, *(draw(valid_columns(name)) for name in names)]
    weights = [column for column in columns if column.role == "weight"]
    columns = tuple(column for column in columns if column not in weights[1:])
    labels = st.sampled_from([c.name for c in columns if c.role == "behavior" and c.dtype != "string"])
    level = st.builds(
        Level,
        st.text(max_size=4),
        st.lists(labels, min_size=1, max_size=3).map(tuple),
        st.lists(st.integers(-5, 5), max_size=3).map(tuple),
        st.booleans(),
    )
    return Schema(columns, tuple(draw(st.lists(level, min_size=1, max_size=3, unique_by=lambda v: v.name))))


@properties
@given(valid_schemas())
def test_a_schema_survives_json(schema):
    assert from_json(to_json(schema)) == schema


@properties
@given(valid_schemas())
def test_json_leaves_out_every_field_at_its_default(schema):
    data = json.loads(to_json(schema))
    for column, item in zip(schema.columns, data["columns"]):
        defaults = {f.name for f in dataclasses.fields(Column) if getattr(column, f.name) == f.default}
        assert set(item) == {f.name for f in dataclasses.fields(Column)} - defaults


def test_the_json_of_a_schema_is_what_a_person_would_write():
    schema = Schema((Column("user", "int64", hashing=Hashing(10, table="users")), LABEL), (CLICK,))
    assert json.loads(to_json(schema)) == {
        "version": 1,
        "columns": [
            {"name": "user", "dtype": "int64", "hashing": {"buckets": 10, "table": "users"}},
            {"name": "label", "dtype": "int64", "role": "behavior"},
        ],
        "levels": [{"name": "click", "any_of": ["label"], "gate": True}],
    }


def test_a_schema_written_by_hand_gets_tuples_and_defaults():
    columns = [
        {"name": "tags", "dtype": "string", "shape": [None], "max_length": 5, "hashing": {"buckets": 9}},
        {"name": "label", "dtype": "int64", "role": "behavior"},
    ]
    levels = [{"name": "purchase", "any_of": ["label"], "values": [4, 5]}]
    schema = from_json(document(columns=columns, levels=levels))
    assert schema.columns == (Column("tags", "string", "feature", (None,), 5, Hashing(9, "", "", "mean")), LABEL)
    assert schema.levels == (Level("purchase", ("label",), (4, 5), gate=False),)


@pytest.mark.parametrize(
    "column, message",
    [
        ({"dtype": "int63"}, f"expected a dtype of {DTYPES}, got 'int63'; did you mean 'int64'?"),
        ({"dtype": "bool"}, f"expected a dtype of {DTYPES}, got 'bool'; known: float, int64, string"),
        ({"role": "behaviour"}, f"expected a role of {ROLES}, got 'behaviour'; did you mean 'behavior'?"),
        ({"entity": "users"}, f"expected an entity of {ENTITIES}, got 'users'; did you mean 'user'?"),
        ({"entity": "request"}, f"expected an entity of {ENTITIES}, got 'request'; known: item, user"),
        ({"shape": (2, 3)}, "expected the shape [], [n] or [null], got [2, 3]"),
        ({"shape": (0,)}, "expected the shape [], [n] or [null], got [0]"),
        ({"shape": (-1,)}, "expected the shape [], [n] or [null], got [-1]"),
        ({"role": "behavior", "shape": (2,)}, "expected one value a row for role 'behavior', got the shape [2]"),
        ({"role": "weight", "shape": (None,)}, "expected one value a row for role 'weight', got the shape [None]"),
        ({"role": "group", "shape": (1,)}, "expected one value a row for role 'group', got the shape [1]"),
        ({"role": "group", "dtype": "float"}, "expected ids or text for role 'group', got dtype 'float'"),
        ({"role": "weight", "dtype": "string"}, "expected a number for role 'weight', got dtype 'string'"),
        ({"hashing": HASHED}, "expected no hashing for dtype 'float'; store ids as int64 or string"),
        ({"dtype": "int64"}, 'expected "hashing": {"buckets": n} for a feature of dtype \'int64\', got none'),
        ({"dtype": "string"}, 'expected "hashing": {"buckets": n} for a feature of dtype \'string\', got none'),
        (
            {"dtype": "int64", "shape": VARIABLE, "hashing": HASHED},
            "expected a positive max_length for a variable-length input, got None",
        ),
        (
            {"dtype": "int64", "shape": VARIABLE, "hashing": HASHED, "max_length": 0},
            "expected a positive max_length for a variable-length input, got 0",
        ),
        ({"shape": VARIABLE, "max_length": 3}, "expected a fixed length for a numeric input, got a variable one"),
    ],
)
def test_a_column_that_contradicts_itself_is_rejected_by_name(column, message):
    with pytest.raises(ConfigError, match=re.escape(f"schema: column 'x': {message}")):
        Column(**({"name": "x", "dtype": "float"} | column))


@pytest.mark.parametrize("role", [role for role in ROLES if role not in ("truth", "ignored")])
def test_the_simulators_truth_can_have_no_role_that_is_read_as_an_input_or_a_label(role):
    message = f"schema: column 'truth_pctr': expected the role 'truth' or 'ignored' .* got '{role}'"
    with pytest.raises(ConfigError, match=message):
        Column("truth_pctr", "int64", role, hashing=HASHED)
    for allowed in ("truth", "ignored"):
        assert not Column("truth_pctr", "int64", allowed).is_input


@pytest.mark.parametrize(
    "column",
    [
        {"dtype": "string", "role": "group"},
        {"dtype": "int64", "role": "ignored", "shape": VARIABLE},
        {"dtype": "float", "role": "truth", "shape": VARIABLE},
        {"dtype": "float", "role": "weight"},
        {"dtype": "float", "shape": (7,)},
        {"dtype": "float", "role": "behavior"},
    ],
)
def test_a_column_that_is_no_hashed_input_needs_no_hashing(column):
    assert Column("x", **column).hashing is None


@pytest.mark.parametrize(
    "column, is_input",
    [
        (USER, True),
        (PRICE, True),
        (LABEL, False),
        (Column("g", "int64", "group"), False),
        (Column("g", "int64", "group", hashing=HASHED), True),
        (Column("t", "int64", "truth", hashing=HASHED), False),
        (Column("i", "string", "ignored"), False),
        (Column("w", "float", "weight"), False),
    ],
)
def test_features_and_hashed_groups_are_inputs(column, is_input):
    assert column.is_input is is_input


def test_the_length_of_a_column_is_that_of_its_input():
    assert USER.length is None
    assert Column("x", "float", shape=(3,)).length == 3
    assert Column("x", "int64", shape=VARIABLE, max_length=5, hashing=HASHED).length == 5


def test_a_shape_given_as_a_list_becomes_a_tuple():
    assert Column("x", "float", shape=[3]) == Column("x", "float", shape=(3,))


def test_a_column_that_stands_twice_is_rejected():
    with pytest.raises(ConfigError, match=re.escape("expected columns with names of their own, got twice: ['user']")):
        Schema((USER, LABEL, USER), (CLICK,))


@pytest.mark.parametrize("name", ["Dur (ms)", "prix €", "", " user", "_user"])
def test_an_input_that_no_tensor_can_be_named_after_is_rejected(name):
    with pytest.raises(ConfigError, match=re.escape(f"schema: column {name!r}: expected letters, digits and any of")):
        Column(name, "float")
    assert Column(name, "float", "ignored").name == name


@pytest.mark.parametrize("role", ["feature", "ignored"])
def test_a_name_that_packed_records_use_is_rejected(role):
    with pytest.raises(ConfigError, match="schema: column 'x#lengths': expected a name without '#'"):
        Column("x#lengths", "float", role)


def test_inputs_whose_names_differ_by_case_only_are_rejected():
    with pytest.raises(ConfigError, match=r"names differ by more than case, got \['price', 'Price'\]"):
        Schema((PRICE, Column("Price", "float"), LABEL), (CLICK,))
    assert Schema((PRICE, Column("Price", "float", "ignored"), LABEL), (CLICK,)).inputs == (PRICE,)


def test_a_level_that_stands_twice_is_rejected():
    with pytest.raises(ConfigError, match=re.escape("expected levels with names of their own, got twice: ['click']")):
        Schema((LABEL,), (CLICK, CLICK))


def test_a_schema_without_levels_is_rejected():
    with pytest.raises(ConfigError, match="schema: expected at least one behavior level, got none"):
        Schema((LABEL,), ())


def test_two_weights_are_rejected():
    weights = (Column("w", "float", "weight"), Column("v", "float", "weight"))
    with pytest.raises(ConfigError, match=re.escape("at most one column of role 'weight', got ['w', 'v']")):
        Schema((*weights, LABEL), (CLICK,))


def test_a_level_of_no_columns_is_rejected():
    with pytest.raises(ConfigError, match="schema: level 'click': expected the columns it is any of, got none"):
        Schema((LABEL,), (Level("click", ()),))


@pytest.mark.parametrize(
    "column, got",
    [
        (PRICE, "'price' of role 'feature' and dtype 'float'"),
        (Column("x", "string", "behavior"), "'x' of role 'behavior' and dtype 'string'"),
        (Column("x", "int64", "truth"), "'x' of role 'truth' and dtype 'int64'"),
    ],
)
def test_a_level_over_a_column_that_is_no_numeric_behavior_is_rejected(column, got):
    message = f"schema: level 'click': expected a numeric column of role 'behavior', got {got}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Schema((LABEL, column), (Level("click", ("label", column.name)),))


def test_a_level_over_an_unknown_column_is_named_with_the_closest_one():
    message = "schema: level 'click': expected a column of the schema, got 'lable'; did you mean 'label'?"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Schema((LABEL, USER), (Level("click", ("lable",)),))


def test_columns_are_found_by_name_role_and_use():
    schema = Schema((USER, LABEL, PRICE), (CLICK,))
    assert schema.column("price") is PRICE
    assert schema.with_role("feature") == schema.inputs == (USER, PRICE)
    assert schema.with_role("behavior", "feature") == (USER, LABEL, PRICE)
    assert schema.with_role("weight") == ()


def test_an_unknown_column_is_named_with_where_it_was_asked_for():
    schema = Schema((LABEL, USER), (CLICK,))
    with pytest.raises(
        ConfigError, match=re.escape("schema: expected a column of the schema, got 'usr'; did you mean")
    ):
        schema.column("usr")
    with pytest.raises(
        ConfigError, match="^data.group: expected a column of the schema, got 'zz'; known: label, user$"
    ):
        schema.column("zz", where="data.group")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "expected JSON, got Expecting property name"),
        ("", "expected JSON, got Expecting value"),
        ("[]", 'expected {"version": 1, "columns", "levels"}, got \'list\''),
        ("3", 'expected {"version": 1, "columns", "levels"}, got \'int\''),
        ("{}", 'expected {"version": 1, "columns", "levels"}, got None'),
        (document(version=2), 'expected {"version": 1, "columns", "levels"}, got 2'),
        (document(version="1"), 'expected {"version": 1, "columns", "levels"}, got \'1\''),
        (document(levels=[]), "schema: expected at least one behavior level, got none"),
        (document(columns=[]), "schema: level 'click': expected a column of the schema, got 'label'; known: none"),
        (document(columns=["price"]), "column: expected an object, got 'price'"),
        (document(levels=[3]), "level: expected an object, got 3"),
        (
            column_document(name="x", dtype="float", rol="truth"),
            "column 'x': unknown field 'rol'; did you mean 'role'?",
        ),
        (column_document(name="x"), "column 'x': expected the fields ['dtype'], got ['name']"),
        (column_document(role="truth"), "column: expected the fields ['name', 'dtype'], got ['role']"),
        (document(levels=[{"name": "click"}]), "level 'click': expected the fields ['any_of'], got ['name']"),
        (
            document(levels=[{"name": "click", "any_of": ["label"], "value": [1]}]),
            "level 'click': unknown field 'value'; did you mean 'values'?",
        ),
        (
            column_document(name="x", dtype="int64", hashing={"buckets": 9, "salty": "a"}),
            "unknown field 'salty'; did you mean 'salt'?",
        ),
        (
            column_document(name="x", dtype="int64", hashing={"salt": "a"}),
            "expected the fields ['buckets'], got ['salt']",
        ),
        (column_document(name="x", dtype="int63"), "schema: column 'x': expected a dtype of"),
    ],
)
def test_a_file_that_is_no_schema_is_rejected_with_its_path(text, message):
    with pytest.raises(ConfigError) as caught:
        from_json(text, path="data/schema.json")
    assert str(caught.value).startswith("data/schema.json: ")
    assert message in str(caught.value)


def test_the_path_of_a_schema_without_one_is_its_usual_name():
    with pytest.raises(ConfigError, match="^schema.json: expected JSON"):
        from_json("nonsense")


def test_the_format_has_a_version():
    assert json.loads(to_json(Schema((LABEL,), (CLICK,))))["version"] == FORMAT_VERSION == 1


@pytest.mark.parametrize("value, field", [(USER, "role"), (HASHED, "buckets"), (CLICK, "gate")])
def test_schemas_are_frozen(value, field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)


@pytest.mark.parametrize(
    "text",
    [
        document(columns=None),
        document(levels=3),
        column_document(name="x", dtype="float", shape=3),
        column_document(name="x", dtype=64),
        column_document(name="x", dtype="float", role=None),
        column_document(name="x", dtype="int64", hashing=100),
        column_document(name="x", dtype="int64", hashing={"buckets": "many"}),
        column_document(name="x", dtype="int64", hashing={"buckets": 100, "combiner": "max"}),
        column_document(name="x", dtype="float", shape=[1.5]),
        column_document(name=7, dtype="float"),
        document(levels=[{"name": "click", "any_of": ["label"], "values": ["a"]}]),
    ],
)
def test_a_json_value_of_the_wrong_type_is_a_config_error(text):
    with pytest.raises(ConfigError, match="^schema.json: "):
        from_json(text)
