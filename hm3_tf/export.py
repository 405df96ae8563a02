"""A trained model as a SavedModel that takes raw values and needs nothing but TensorFlow."""

import dataclasses
import re
import tempfile

import tensorflow as tf

from data_pipeline import schema as schemas
from data_pipeline import storage
from data_pipeline.folder import SCHEMA_FILE
from hm3_tf import config as configs
from hm3_tf.errors import Hm3Error
from hm3_tf.features import embedding_tables
from hm3_tf.model import ConversionModel, model_features
from hm3_tf.serving import ServingModule
from hm3_tf.workdir import CONFIG_FILE, Workdir

_DRY_RUN_BUCKETS = 16


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
