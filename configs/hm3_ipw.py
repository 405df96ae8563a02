"""HM3 with the inverse propensity loss of ESCM2 beside its own four, a cross of ours, with the settings of HM3.

hm3 train --config=configs/hm3_ipw.py --data_dir=D --workdir=W
"""

from hm3_tf.config import Config, ModelConfig


def get_config() -> Config:
    """Returns the config."""
    return Config(model=ModelConfig(method="hm3_ipw"))
