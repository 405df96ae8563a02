"""What the columns of a log are: `schema.json`.

A schema declares each column's name, dtype, shape, role and default hashing, and the behavior levels that the label
columns make. It is all that training needs to know about a log.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from hm3_tf.checks import check_type
from hm3_tf.errors import ConfigError, did_you_mean
from hm3_tf.features import COMBINERS

DTYPES = ("int64", "string", "float")
ENTITIES = ("user", "item")
ROLES = ("feature", "behavior", "weight", "group", "ignored", "truth")
SCALAR: tuple[int | None, ...] = ()
VARIABLE: tuple[int | None, ...] = (None,)
FORMAT_VERSION = 1
TRUTH_PREFIX = "truth_"

_TENSOR_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_./>-]*")  # what TensorFlow can name an input of a signature


@dataclasses.dataclass(frozen=True)
class Hashing:
    """Default hashing of an id or category column.

    Attributes:
      buckets: Rows of the embedding table, the row for missing values included.
      salt: Seeds the hash; default the table's name.
      table: Name of the embedding table; default the column's. Columns that name one table share it.
      combiner: `mean` or `sum`, for columns of several values.

    Raises:
      ConfigError: A value is out of range.
    """

    buckets: int
    salt: str = ""
    table: str = ""
    combiner: str = "mean"

    def __post_init__(self) -> None:
        if self.buckets < 2:
            raise ConfigError(f"schema: expected at least 2 hash buckets, got {self.buckets}")
        if self.combiner not in COMBINERS:
            raise ConfigError(f"schema: expected a combiner of {COMBINERS}, got {self.combiner!r}")


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the log.

    Attributes:
      name: Its name in the records.
      dtype: `int64`, `string` or `float` (float32).
      role: `feature` (an input), `behavior` (a label), `weight` (of the row, at most one column), `group` (metrics are
        grouped by it; an input too if it declares hashing), `truth` (of a simulator, never an input; no other role but
        `ignored` can have a name that begins with `truth_`) or `ignored`.
      shape: () for one value a row, (n,) for n of them, (None,) for any number.
      max_length: Of a variable-length column: values beyond it are cut off when the column is an input.
      hashing: Default hashing; an int64 or string input needs it.
      entity: Whose it is when the items of one user are ranked: `user` (of the user or the request, as hour or device:
        sent and looked up once) or `item`, which it is if nothing is said.

    Raises:
      ConfigError: The declaration contradicts itself.
    """

    name: str
    dtype: str
    role: str = "feature"
    shape: tuple[int | None, ...] = SCALAR
    max_length: int | None = None
    hashing: Hashing | None = None
    entity: str = "item"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        problem = self._problem()
        if problem:
            raise ConfigError(f"schema: column {self.name!r}: {problem}")

    def _problem(self) -> str:
        if "#" in self.name:
            return "expected a name without '#', which packed records use for themselves; rename the column"
        if self.is_input and not _TENSOR_NAME.fullmatch(self.name):
            return "expected letters, digits and any of _ . - / > in the name of an input; rename the column"
        if self.dtype not in DTYPES:
            return f"expected a dtype of {DTYPES}, got {self.dtype!r}; {did_you_mean(self.dtype, DTYPES)}"
        if self.role not in ROLES:
            return f"expected a role of {ROLES}, got {self.role!r}; {did_you_mean(self.role, ROLES)}"
        if self.entity not in ENTITIES:
            return f"expected an entity of {ENTITIES}, got {self.entity!r}; {did_you_mean(self.entity, ENTITIES)}"
        if self.name.startswith(TRUTH_PREFIX) and self.role not in ("truth", "ignored"):
            return (
                f"expected the role 'truth' or 'ignored' for a name of the simulator's truth, got {self.role!r}; a column of "
                f"one's own needs a name without {TRUTH_PREFIX!r}"
            )
        if len(self.shape) > 1 or any(n is not None and n < 1 for n in self.shape):
            return f"expected the shape [], [n] or [null], got {list(self.shape)}"
        if self.role in ("behavior", "weight", "group") and self.shape != SCALAR:
            return f"expected one value a row for role {self.role!r}, got the shape {list(self.shape)}"
        if self.role == "group" and self.dtype == "float":
            return "expected ids or text for role 'group', got dtype 'float'"
        if self.role == "weight" and self.dtype == "string":
            return "expected a number for role 'weight', got dtype 'string'"
        if self.dtype == "float" and self.hashing is not None:
            return "expected no hashing for dtype 'float'; store ids as int64 or string"
        if self.role == "feature" and self.dtype != "float" and self.hashing is None:
            return f'expected "hashing": {{"buckets": n}} for a feature of dtype {self.dtype!r}, got none'
        if self.shape == VARIABLE and self.is_input and (self.max_length is None or self.max_length < 1):
            return f"expected a positive max_length for a variable-length input, got {self.max_length}"
        if self.shape == VARIABLE and self.is_input and self.dtype == "float":
            return "expected a fixed length for a numeric input, got a variable one"
        return ""

    @property
    def is_input(self) -> bool:
        """Whether the column can be an input of the network."""
        return self.role == "feature" or (self.role == "group" and self.hashing is not None)

    @property
    def length(self) -> int | None:
        """Values a row as an input: None for one, else the fixed length or `max_length`."""
        return None if self.shape == SCALAR else (self.shape[0] or self.max_length)


@dataclasses.dataclass(frozen=True)
class Level:
    """A behavior level as the label columns give it.

    Attributes:
      name: Name of the level, as behavior graphs use it.
      any_of: Behavior columns; the level happened where one of them holds one of `values`, or is positive.
      values: Values that count, for a column that codes several outcomes (`label in {4, 5}` is a purchase).
      gate: Whether no later level can happen unless this one did.
    """

    name: str
    any_of: tuple[str, ...]
    values: tuple[int, ...] = ()
    gate: bool = False


@dataclasses.dataclass(frozen=True)
class Schema:
    """The columns of a log and the levels of its labels.

    Attributes:
      columns: All columns of the records that may be read.
      levels: The levels in the order of their hierarchy.

    Raises:
      ConfigError: A name stands twice, or a level names a column that is not a numeric behavior column.
    """

    columns: tuple[Column, ...]
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        for kind, names in (("columns", [c.name for c in self.columns]), ("levels", [v.name for v in self.levels])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ConfigError(f"schema: expected {kind} with names of their own, got twice: {twice}")
        inputs = [column.name.lower() for column in self.inputs]
        alike = [column.name for column in self.inputs if inputs.count(column.name.lower()) > 1]
        if alike:
            raise ConfigError(f"schema: expected inputs whose names differ by more than case, got {alike}; rename one")
        if not self.levels:
            raise ConfigError("schema: expected at least one behavior level, got none")
        weights = [column.name for column in self.columns if column.role == "weight"]
        if len(weights) > 1:
            raise ConfigError(f"schema: expected at most one column of role 'weight', got {weights}")
        for level in self.levels:
            self._check_level(level)

    def _check_level(self, level: Level) -> None:
        if not level.any_of:
            raise ConfigError(f"schema: level {level.name!r}: expected the columns it is any of, got none")
        for name in level.any_of:
            column = self.column(name, where=f"schema: level {level.name!r}")
            if column.role != "behavior" or column.dtype == "string":
                raise ConfigError(
                    f"schema: level {level.name!r}: expected a numeric column of role 'behavior', got {name!r} of "
                    f"role {column.role!r} and dtype {column.dtype!r}"
                )

    def column(self, name: str, where: str = "schema") -> Column:
        """Returns a column by name.

        Args:
          name: Name of the column.
          where: Where it was asked for, for the error.

        Returns:
          The column.

        Raises:
          ConfigError: There is none of that name.
        """
        for column in self.columns:
            if column.name == name:
                return column
        known = [column.name for column in self.columns]
        raise ConfigError(f"{where}: expected a column of the schema, got {name!r}; {did_you_mean(name, known)}")

    def without_entities(self) -> "Schema":
        """Returns the schema as a network sees it: whose a column is matters when it is served."""
        return dataclasses.replace(self, columns=tuple(dataclasses.replace(c, entity="item") for c in self.columns))

    def with_role(self, *roles: str) -> tuple[Column, ...]:
        """Returns the columns of the given roles, in order."""
        return tuple(column for column in self.columns if column.role in roles)

    def roles(self) -> dict[str, tuple[Column, ...]]:
        """Returns the columns of each role that has any."""
        return {role: columns for role in ROLES if (columns := self.with_role(role))}

    @property
    def inputs(self) -> tuple[Column, ...]:
        """The columns that can be inputs of the network, in order."""
        return tuple(column for column in self.columns if column.is_input)


def to_json(schema: Schema) -> str:
    """Returns `schema.json` of a schema: fields at their default are left out."""
    columns = [_without_defaults(column) for column in schema.columns]
    levels = [_without_defaults(level) for level in schema.levels]
    return json.dumps({"version": FORMAT_VERSION, "columns": columns, "levels": levels}, indent=1)


def _without_defaults(value: Any) -> dict[str, Any]:
    fields = {f.name: (f.default, getattr(value, f.name)) for f in dataclasses.fields(value)}
    present = {name: item for name, (default, item) in fields.items() if item != default}
    return {name: _without_defaults(v) if isinstance(v, Hashing) else v for name, v in present.items()}


def from_json(text: str, path: str = "schema.json") -> Schema:
    """Returns the schema of a `schema.json`.

    Args:
      text: The file's text.
      path: Its path, for errors.

    Returns:
      The checked schema.

    Raises:
      ConfigError: The text is not JSON, a field is missing or unknown, or the schema contradicts itself.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(data, dict) or data.get("version") != FORMAT_VERSION:
        found = data.get("version") if isinstance(data, dict) else type(data).__name__
        raise ConfigError(f'{path}: expected {{"version": {FORMAT_VERSION}, "columns", "levels"}}, got {found!r}')
    try:
        columns = tuple(_column(item) for item in _items(data, "columns"))
        return Schema(columns, tuple(_build(Level, item, "level") for item in _items(data, "levels")))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _items(data: Mapping[str, Any], key: str) -> list[Any]:
    items = data.get(key)
    if not isinstance(items, list):
        raise ConfigError(f"expected a list of {key}, got {items!r}")
    return items


def _column(item: Any) -> Column:
    if isinstance(item, dict) and item.get("hashing") is not None:
        item = {**item, "hashing": _build(Hashing, item["hashing"], f"hashing of column {item.get('name')!r}")}
    return _build(Column, item, "column")


def _build(cls: type, item: Any, kind: str) -> Any:
    if not isinstance(item, dict):
        raise ConfigError(f"{kind}: expected an object, got {item!r}")
    where = f"{kind} {item['name']!r}" if "name" in item else kind
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in item:
        if key not in fields:
            raise ConfigError(f"{where}: unknown field {key!r}; {did_you_mean(key, fields)}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in item]
    if missing:
        raise ConfigError(f"{where}: expected the fields {missing}, got {sorted(item)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in item.items()}
    for key, value in values.items():
        check_type(f"{where}: {key}", value, fields[key].type)
    return cls(**values)
