"""Values against the annotations of dataclass fields, for what people write by hand: configs and schemas."""

import types
import typing
from typing import Any

from hm3_tf.errors import ConfigError


def check_type(name: str, value: Any, annotation: Any) -> None:
    """Checks a value against a type annotation.

    Args:
      name: What the value is, for the error.
      value: The value.
      annotation: A class, a union of classes, `tuple[x, ...]` or `dict[str, x]`; an int passes for a float.

    Raises:
      ConfigError: The value, or an item of it, is of another type.
    """
    if not _fits_any(value, annotation):
        raise ConfigError(f"{name}: expected {getattr(annotation, '__name__', annotation)}, got {value!r}")


def _fits(value: Any, choice: Any) -> bool:
    items, origin = typing.get_args(choice), typing.get_origin(choice) or choice
    if isinstance(value, bool):
        return origin is bool
    if origin is float:
        return isinstance(value, (int, float))
    if not isinstance(value, origin):
        return False
    if origin is tuple and items:
        return all(_fits_any(item, items[0]) for item in value)
    if origin is dict and items:
        return all(_fits_any(item, items[1]) for item in value.values())
    return True


def _fits_any(value: Any, annotation: Any) -> bool:
    choices = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return any(_fits(value, choice) for choice in choices)
