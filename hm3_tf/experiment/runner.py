"""Runs a plan: cells two at a time, each in a process of its own; what is done already is not done again."""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess

import numpy as np

from data_pipeline import storage
from data_pipeline.simulate import SimulatedLog
from hm3_tf.config import Config, from_json
from hm3_tf.errors import Hm3Error
from hm3_tf.experiment.cell import Cell, run_cell
from hm3_tf.experiment.plan import Plan, whole
from hm3_tf.experiment.results import Results, write_csv
from hm3_tf.progress import Progress

TUNING_SEEDS = 1_000_000  # where the seeds begin that configs are chosen on: no reported figure has one of them
_LOOK_SECONDS = 5.0
_DATA = "data"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


def run_plan(plan: Plan, workdir: str, processes: int = 2) -> Results:
    """Runs what a plan lacks, and returns the results of all of it.

    Args:
      plan: The plan.
      workdir: Folder for results: `results/<log>/<seed>/<run>.json`, the same of `tuning`, and `results.csv`.
      processes: Cells at a time, each on one thread.

    Returns:
      The results.

    Raises:
      Hm3Error: A cell failed, another experiment runs in the folder, or a result in it is of another config or log.
    """
    with storage.lock(workdir):
        shutil.rmtree(os.path.join(workdir, _DATA), ignore_errors=True)  # what a killed experiment left
        chosen = _tune(plan, workdir, processes) if plan.is_tuned else {}
        runs = {run: configs[chosen.get(run, 0)] for run, configs in plan.runs.items()}
        cells = _cells(plan, workdir, runs)
        _run(list(cells.values()), processes, "experiment")
        results = _read(cells)
        write_csv(results, os.path.join(workdir, "results.csv"))
        return results


def _cells(plan: Plan, workdir: str, runs: Mapping[str, Config]) -> dict[tuple[str, int], Cell]:
    """Returns the cells by (log, seed), all logs of a seed before the next seed."""
    keys = [(log, seed) for seed in range(plan.seeds) for log in plan.logs]
    return {
        (log, seed): Cell(
            source=plan.logs[log].source,
            volumes=plan.logs[log].volumes or whole(plan.logs[log].source),
            seed=seed,
            held_out_rows=plan.test_rows,
            split="test",
            runs={run: runs[run] for run in plan.runs_on(log)},
            folder=os.path.join(workdir, "results", log, str(seed)),
            data_dir=os.path.join(workdir, _DATA, f"{log}-{seed}"),
        )
        for log, seed in keys
    }


def _tune(plan: Plan, workdir: str, processes: int) -> dict[str, int]:
    """Returns which of its configs each run takes, and writes it with the figures to `tuning.json`."""
    log = plan.logs[plan.tuning_log].as_far_as(plan.tuning_volume)
    source, volumes = log.source, log.volumes or whole(log.source)
    first = TUNING_SEEDS if isinstance(source, SimulatedLog) else 0
    candidates = {
        f"{run}.{i}": config
        for run, configs in plan.runs.items()
        for i, config in enumerate(configs)
        if len(configs) > 1
    }
    cells = {
        ("tuning", seed): Cell(
            source=source,
            volumes=volumes,
            seed=seed,
            held_out_rows=plan.test_rows,
            split="validation",
            runs=candidates,
            folder=os.path.join(workdir, "tuning", str(seed)),
            data_dir=os.path.join(workdir, _DATA, f"tuning-{seed}"),
        )
        for seed in range(first, first + plan.tuning_seeds)
    }
    _run(list(cells.values()), processes, "tuning")
    results = _read(cells)
    targets = ("soft_auc.pcvr", "soft_auc.pctr") if isinstance(source, SimulatedLog) else ("pcvr.auc", "pctr.auc")
    names = [f"tuning {volume}".rstrip() for volume in volumes]
    values = {run: float(np.mean([results.mean(run, name, targets) for name in names])) for run in candidates}
    tuned = {run: len(configs) for run, configs in plan.runs.items() if len(configs) > 1}
    chosen = {run: int(np.argmax([values[f"{run}.{i}"] for i in range(count)])) for run, count in tuned.items()}
    storage.write_text(
        os.path.join(workdir, "tuning.json"), json.dumps({"chosen": chosen, "auc_of_cvr_and_ctr": values}, indent=1)
    )
    return chosen


def _run(cells: Sequence[Cell], processes: int, title: str) -> None:
    waiting = [cell for cell in cells if cell.missing()]
    if not waiting:
        return
    total = sum(len(cell.runs) for cell in cells)
    progress = Progress(title, total, "runs", done=_done(cells))
    with progress, _at_most_one_thread(), contextlib.ExitStack() as stack:
        working: dict[BaseProcess, Cell] = {}
        stack.callback(_stop, working)
        while waiting or working:
            while waiting and len(working) < processes:
                cell = waiting.pop(0)
                process: BaseProcess = multiprocessing.get_context("spawn").Process(target=_run_alone, args=(cell,))
                process.start()
                working[process] = cell
            multiprocessing.connection.wait([process.sentinel for process in working], _LOOK_SECONDS)
            progress.reach(_done(cells))
            for process in [process for process in working if process.exitcode is not None]:
                cell = working.pop(process)
                if process.exitcode:
                    raise Hm3Error(
                        f"experiment: expected the process of {cell.folder} to end well, but it ended with status "
                        f"{process.exitcode} (what it said stands above); the same command goes on where it stopped"
                    )


def _run_alone(cell: Cell) -> None:
    """Runs a cell as the whole work of a process, which says in one line what it cannot do."""
    try:
        run_cell(cell)
    except Hm3Error as error:
        raise SystemExit(f"{cell.folder}: {error}") from error


def _done(cells: Sequence[Cell]) -> int:
    return sum(len(cell.runs) - len(cell.missing()) for cell in cells)


def _stop(working: Mapping[BaseProcess, Cell]) -> None:
    for process in working:
        process.terminate()
        process.join()


@contextlib.contextmanager
def _at_most_one_thread() -> Iterator[None]:
    """Has processes that are started within the block compute on one thread each."""
    before = dict(os.environ)
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _read(cells: Mapping[tuple[str, int], Cell]) -> Results:
    measured = {}
    for (log, seed), cell in cells.items():
        for run in cell.runs:
            path = cell.result_file(run)
            result = json.loads(storage.read_text(path, "run the experiment again"))
            if from_json(json.dumps(result["config"]), path) != cell.config(run) or result["log"] != cell.log:
                raise Hm3Error(
                    f"{path}: expected the result of the plan's config and log of run {run!r}, got that of another; use "
                    "another --workdir, or remove the file"
                )
            for volume, measures in result["measures"].items():
                measured[run, f"{log} {volume}".rstrip(), seed] = measures
    return Results(measured)
