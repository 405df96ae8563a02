"""ESMM with the paper's settings.

hm3 train --config=configs/esmm.py --data_dir=D --workdir=W
"""

from hm3_tf.config import Config, ModelConfig


def get_config() -> Config:
    """Returns the config."""
    return Config(model=ModelConfig(method="esmm"))
