"""A trained model as a SavedModel that takes raw values and needs nothing but TensorFlow."""

import dataclasses
import re
import tempfile

import tensorflow as tf

from data_pipeline import schema as schemas
from data_pipeline import storage
from data_pipeline.folder import SCHEMA_FILE
from data_pipeline.hashing import network_inputs
from data_pipeline.records import MISSING, TF_DTYPES, parse_rows
from data_pipeline.schema import SCALAR, VARIABLE, Column
from hm3_tf import config as configs
from hm3_tf.errors import Hm3Error
from hm3_tf.features import embedding_tables
from hm3_tf.model import ConversionModel, model_features, probabilities
from hm3_tf.workdir import CONFIG_FILE, Workdir

_DRY_RUN_BUCKETS = 16


def _raw_spec(column: Column) -> tf.TensorSpec:
    tail = [] if column.shape == SCALAR else [None if column.shape == VARIABLE else column.length]
    return tf.TensorSpec([None, *tail], TF_DTYPES[column.dtype], name=column.name)


def _fit_length(values: tf.Tensor, column: Column) -> tf.Tensor:
    """Cuts and pads a variable-length column [batch, any length] to the length the network reads."""
    if column.shape != VARIABLE:
        return values
    missing = tf.fill([tf.shape(values)[0], column.length], tf.constant(MISSING[column.dtype], values.dtype))
    return tf.ensure_shape(tf.concat([values, missing], axis=1)[:, : column.length], [None, column.length])


class ServingModule(tf.Module):
    """The functions of a served model: raw columns, or serialized tf.Examples, to probabilities.

    Args:
      run: The run whose model it is.
      model: The model.
    """

    def __init__(self, run: Workdir, model: ConversionModel) -> None:
        super().__init__()
        self._weights = model.network.variables
        features = model_features(run.config, run.schema, run.train)
        columns = [run.schema.column(feature.name) for feature in features]
        levels = run.config.method.levels
        parse_examples = tf.autograph.experimental.do_not_convert(parse_rows)

        @tf.autograph.experimental.do_not_convert
        def predict(raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            inputs = network_inputs(
                {column.name: _fit_length(raw[column.name], column) for column in columns}, features
            )
            return probabilities(model.network(inputs, training=False), levels)

        @tf.function(input_signature=[{column.name: _raw_spec(column) for column in columns}])
        def serve(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return predict(inputs)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def serve_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return predict(parse_examples(examples, columns))

        self.signatures_to_save = {"serving_default": serve, "serving_examples": serve_examples}


def _save(run: Workdir, model: ConversionModel, folder: str) -> None:
    module = ServingModule(run, model)
    tf.saved_model.save(module, folder, signatures=module.signatures_to_save)


def export_run(run: Workdir, export_dir: str) -> str:
    """Writes a trained run as the next version of a served model; it appears under its number only when complete.

    Args:
      run: The run; its best weights are exported.
      export_dir: Folder of versions, as TensorFlow Serving watches it: `export_dir/1`, `export_dir/2`, ...

    Returns:
      The folder of the new version: a SavedModel with the signatures `serving_default` (a named tensor a raw column) and
      `serving_examples` (`examples`: serialized tf.Example, a row each), and `assets.extra/schema.json` and `config.json`.

    Raises:
      Hm3Error: The run has no checkpoint, or the folder cannot be written.
    """
    storage.open_file_system(export_dir)
    model = run.trained_model()
    storage.make_folder(export_dir)
    numbers = [int(name.rstrip("/")) for name in tf.io.gfile.listdir(export_dir) if name.rstrip("/").isdigit()]
    version = storage.join(export_dir, str(max(numbers, default=0) + 1))
    with storage.staged_folder(version) as folder:
        _save(run, model, folder)
        storage.write_text(storage.join(folder, "assets.extra", SCHEMA_FILE), schemas.to_json(run.schema))
        storage.write_text(storage.join(folder, "assets.extra", CONFIG_FILE), configs.to_json(run.config))
    return version


def check_export(run: Workdir) -> None:
    """Exports the run's network with small tables, loads it and serves a row.

    It is for before the training: a model that cannot be exported should fail in seconds, not after hours.

    Args:
      run: The run.

    Raises:
      Hm3Error: The model cannot be exported or served.
    """
    tables = [table.name for table in embedding_tables(model_features(run.config, run.schema, run.train))]
    small = dataclasses.replace(run.config.model, hash_buckets=dict.fromkeys(tables, _DRY_RUN_BUCKETS))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, model=small))
    with tempfile.TemporaryDirectory() as folder:
        try:
            _save(run, run.build_model(), folder)
            served = tf.saved_model.load(folder).signatures["serving_examples"]
            served(examples=tf.constant([tf.train.Example().SerializeToString()]))
        except Hm3Error:
            raise
        except Exception as error:
            kind = type(error).__name__
            inner = re.search(rf"^\s*{kind}: (.*)", str(error), re.MULTILINE)  # where AutoGraph has wrapped it
            reason = inner[1] if inner else str(error).partition("\n")[0]
            raise Hm3Error(
                f"expected a model that can be exported, but a trial export of {run.config.method.name} failed: "
                f"{kind}: {reason}; run with --traceback to see where"
            ) from error
