"""The whole way of a log at size: convert, validate, train and evaluate, each with its rows a second and its peak memory.

python benchmarks/ten_million.py [--rows=10000000] [--columns=20] [--embedding_dim=8]

The log is that of mixed_log.py, in Parquet parts of 250,000 rows. The model is HM3 with small towers; its tables are of
100,000 rows each. Memory is that of all processes together. A training has a table's values and two moments of each:
they are told apart from the rest.
"""

import pathlib
import shutil
import tempfile

import mixed_log
import timing
import workload
from absl import app, flags

_ROWS = flags.DEFINE_integer("rows", 10_000_000, "Rows of the log.", lower_bound=100_000)
_COLUMNS = flags.DEFINE_integer("columns", 20, "Its columns.", lower_bound=10)
_EMBEDDING_DIM = flags.DEFINE_integer("embedding_dim", 8, "Values of a row of the tables.", lower_bound=1)
_FOLDER = flags.DEFINE_string("folder", None, "Where the log goes; default a temporary folder.")


def stages(folder: pathlib.Path) -> dict[str, list[str]]:
    """Returns the commands in turn, {verb: command}."""
    config = pathlib.Path(__file__).parent.parent / "configs" / "hm3.py"
    data, workdir = f"--data_dir={folder}/data", f"--workdir={folder}/run"
    model = f"--config.model.embedding_dim={_EMBEDDING_DIM.value}", "--config.model.tower_units=64,32"
    fields = [*model, "--config.training.epochs=1", f"--config.training.global_batch_size={workload.BATCH}"]
    hm3 = str(workload.HM3)
    return {
        "convert": mixed_log.convert_command(folder),
        "validate": [hm3, "validate", data],
        "train": [hm3, "train", f"--config={config}", data, workdir, *fields],
        "evaluate": [hm3, "evaluate", workdir, data],
    }


def main(_: list[str]) -> None:
    """Prints the figures."""
    schema = mixed_log.schema_of(_COLUMNS.value)
    hashed = sum(column.hashing.buckets for column in schema.inputs if column.hashing)
    tables = 3 * 4 * hashed * _EMBEDDING_DIM.value
    rows = _ROWS.value
    read = {"convert": rows, "validate": rows, "train": 8 * rows // mixed_log.DAYS, "evaluate": rows // mixed_log.DAYS}
    folder = pathlib.Path(tempfile.mkdtemp(dir=_FOLDER.value))
    try:
        mixed_log.write_parts(folder, schema, rows)
        print(f"{rows:,} rows of {_COLUMNS.value} columns; tables and their moments take {tables / 2**30:.2f} GiB")
        for verb, command in stages(folder).items():
            seconds, peak = timing.run_watched(command)
            print(
                f"{verb:<10}{seconds:>8.1f} s{read[verb] / seconds:>12,.0f} rows/s{peak / 2**30:>8.2f} GiB", flush=True
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    app.run(main)
