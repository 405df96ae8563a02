"""What the network reads: hashed and numeric features, and the embedding tables they share.

Standard library only. A feature is a column of the log after the config has had its say; the reader, the network and the
export all work from the same features, so that serving cannot hash differently from training.
"""

import dataclasses
from collections.abc import Iterable

from hm3_tf.errors import ConfigError

COMBINERS = ("mean", "sum")
MISSING_BUCKET = 0


@dataclasses.dataclass(frozen=True)
class HashedFeature:
    """An id or category, hashed into the rows of an embedding table.

    Attributes:
      name: Name of the column.
      dtype: `int64` or `string`.
      buckets: Rows of the table; row 0 stands for a missing value, so the hash has `buckets - 1` values.
      salt: Seeds the hash; features with different salts collide differently.
      table: Name of the embedding table. Features of one table agree in buckets, salt and dim.
      dim: Width of the embedding.
      length: None for one value a row, else the number of values a row is padded or cut to.
      combiner: How the embeddings of several values become one: `mean` or `sum` over the values present.

    Raises:
      ConfigError: A value is out of range.
    """

    name: str
    dtype: str
    buckets: int
    salt: str
    table: str
    dim: int
    length: int | None = None
    combiner: str = "mean"

    def __post_init__(self) -> None:
        if self.dtype not in ("int64", "string"):
            raise ConfigError(f"column {self.name!r}: expected int64 or string to hash, got {self.dtype!r}")
        if self.buckets < 2:
            raise ConfigError(f"column {self.name!r}: expected at least 2 hash buckets, got {self.buckets}")
        if self.dim < 1:
            raise ConfigError(f"column {self.name!r}: expected an embedding width of at least 1, got {self.dim}")
        if self.combiner not in COMBINERS:
            raise ConfigError(f"column {self.name!r}: expected a combiner of {COMBINERS}, got {self.combiner!r}")


@dataclasses.dataclass(frozen=True)
class NumericFeature:
    """A number, or a vector of them, fed as tanh((x - mean) / std) (ESM2, Section 4.3.3); a missing one is the mean.

    Attributes:
      name: Name of the column.
      mean: Mean of each element over the training rows.
      std: Standard deviation of each element; 0 for a constant, which is fed as 0.
      length: None for one number a row, else the width of the vector.

    Raises:
      ConfigError: `mean` and `std` do not have one element for each of `length`.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    length: int | None = None

    def __post_init__(self) -> None:
        width = 1 if self.length is None else self.length
        if not len(self.mean) == len(self.std) == width:
            raise ConfigError(
                f"column {self.name!r}: expected {width} means and deviations, got {len(self.mean)} and {len(self.std)}"
            )


Feature = HashedFeature | NumericFeature


@dataclasses.dataclass(frozen=True)
class Table:
    """An embedding table: `rows` x `dim`, read by one or more hashed features."""

    name: str
    rows: int
    dim: int


def embedding_tables(features: Iterable[Feature]) -> tuple[Table, ...]:
    """Returns the embedding tables of hashed features, in order of first use.

    Args:
      features: Features; numeric ones have no table.

    Returns:
      One table a name.

    Raises:
      ConfigError: Two features of one table differ in buckets, salt or width.
    """
    owners: dict[str, HashedFeature] = {}
    for feature in features:
        if isinstance(feature, NumericFeature):
            continue
        owner = owners.setdefault(feature.table, feature)
        mine, theirs = (feature.buckets, feature.salt, feature.dim), (owner.buckets, owner.salt, owner.dim)
        if mine != theirs:
            raise ConfigError(
                f"table {feature.table!r}: columns {owner.name!r} and {feature.name!r} share it, so expected the same "
                f"(buckets, salt, dim), got {theirs} and {mine}"
            )
    return tuple(Table(name, owner.buckets, owner.dim) for name, owner in owners.items())
