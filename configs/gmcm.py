"""GMCM, a re-implementation from the abstract (docs/adr/0031-gmcm.md), with the settings of the other methods.

hm3 train --config=configs/gmcm.py --data_dir=D --workdir=W
"""

from hm3_tf.config import Config, ModelConfig


def get_config() -> Config:
    """Returns the config."""
    return Config(model=ModelConfig(method="gmcm"))
