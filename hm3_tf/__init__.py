"""hm3-tf: conversion-rate models that use micro and macro behaviors (HM3, Wen et al., SIGIR 2021)."""

import os
import sys
from typing import Any

__version__ = "0.1.0"
__all__ = ["build_model", "methods", "__version__"]


def _require_keras_2() -> None:
    """Makes `tf.keras` mean Keras 2 (`tf_keras`), which TensorFlow Recommenders and multi-worker `fit` need.

    Raises:
      ImportError: Keras 3 is already in use as `tf.keras` in this process, or the environment asks for it.
    """
    remedy = "import hm3_tf before anything uses tf.keras, or set TF_USE_LEGACY_KERAS=1 in the environment"
    if os.environ.setdefault("TF_USE_LEGACY_KERAS", "1") not in ("1", "true", "True"):
        raise ImportError(
            f"hm3_tf needs Keras 2 (tf_keras), but TF_USE_LEGACY_KERAS={os.environ['TF_USE_LEGACY_KERAS']!r}; {remedy}"
        )
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and not tensorflow.keras.Model.__module__.startswith("tf_keras"):
        raise ImportError(f"hm3_tf needs Keras 2 (tf_keras), but tf.keras is already Keras 3 in this process; {remedy}")


_require_keras_2()


def __getattr__(name: str) -> Any:
    """Imports TensorFlow only when something that needs it is asked for."""
    if name == "build_model":
        from hm3_tf.model import build_model

        return build_model
    if name == "methods":
        import importlib

        return importlib.import_module("hm3_tf.methods")
    raise AttributeError(f"module 'hm3_tf' has no attribute {name!r}")
