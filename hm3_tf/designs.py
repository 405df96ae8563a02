"""The designs that a method may name: how its towers are laid out, and what it adds to the losses of its levels."""

from collections.abc import Mapping
from types import MappingProxyType

from hm3_tf.auxiliary import AUXILIARY_HEADS
from hm3_tf.debiased import COUNTERFACTUAL, DOUBLY_ROBUST, INVERSE_PROPENSITY
from hm3_tf.errors import ConfigError, did_you_mean
from hm3_tf.gmcm import MICRO_GRAPH
from hm3_tf.network import CHAIN, Design
from hm3_tf.transfer import TRANSFER

DESIGNS: Mapping[str, Design] = MappingProxyType(
    {
        "chain": CHAIN,
        "inverse_propensity": INVERSE_PROPENSITY,
        "doubly_robust": DOUBLY_ROBUST,
        "counterfactual": COUNTERFACTUAL,
        "transfer": TRANSFER,
        "micro_graph": MICRO_GRAPH,
        "auxiliary_heads": AUXILIARY_HEADS,
    }
)


def get_design(name: str) -> Design:
    """Returns the design with that name.

    Args:
      name: One of `DESIGNS`.

    Returns:
      The design.

    Raises:
      ConfigError: No design has that name.
    """
    if name not in DESIGNS:
        raise ConfigError(
            f"the method's design: expected one of the designs, got {name!r}; {did_you_mean(name, DESIGNS)}"
        )
    return DESIGNS[name]
