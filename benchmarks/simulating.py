"""Simulated logs: rows a second, and of each world the rates beside their targets, and the AUCs that no model can exceed.

python benchmarks/simulating.py [--rows=5000000] [--profile=paper] [--world=reversed]

Rates and AUCs are expected ones, from the true probabilities: no error of the labels is in them. One thread.
"""

import dataclasses
import time

import numpy as np
from absl import app, flags

from data_pipeline.simulate import SimulatedLog
from data_pipeline.worlds import PROFILES, WORLDS, Profile

_ROWS = flags.DEFINE_integer("rows", 5_000_000, "Impressions of each world.", lower_bound=1)
_PROFILE = flags.DEFINE_enum("profile", "paper", tuple(PROFILES), "Target rates.")
_WORLDS = flags.DEFINE_multi_enum("world", None, tuple(WORLDS), "A world; default all.")
_COLUMNS = ("pctr", "d_mi", "d_ma", "pctcvr", "pcvr_given_click")


def soft_auc(p: np.ndarray, weights: np.ndarray) -> float:
    """Returns the expected AUC of the probabilities p [rows] of labels that they draw, for rows of these weights."""
    order = np.argsort(p)
    positives, negatives = (np.float64(weights * q)[order] for q in (p, 1 - p))
    below = np.cumsum(negatives) - negatives / 2
    return positives @ below / (positives.sum() * negatives.sum())


def simulate(log: SimulatedLog) -> tuple[dict[str, np.ndarray], float]:
    """Returns the true probabilities, {name: float32 [rows]}, and the seconds that all columns took."""
    truths: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
    start = time.perf_counter()
    for batch in log.batches():
        for name in _COLUMNS:
            truths[name].append(batch[f"truth_{name}"])
    return {name: np.concatenate(parts) for name, parts in truths.items()}, time.perf_counter() - start


def rates(truths: dict[str, np.ndarray]) -> list[float]:
    """Returns the rates of clicks, and of d_mi, d_ma and purchase among the clicked."""
    click, *others = (truths[name].mean(dtype=np.float64) for name in ("pctr", "d_mi", "d_ma", "pctcvr"))
    return [click, *(other / click for other in others)]


def targets(profile: Profile) -> list[float]:
    """Returns what `rates` should be."""
    return [profile.click, profile.d_mi, profile.d_ma, profile.purchase]


def main(_: list[str]) -> None:
    """Prints the figures."""
    profile = PROFILES[_PROFILE.value]
    names = ("click", "d_mi", "d_ma", "purchase", "off", "pctr", "pcvr", "pctcvr")
    print(
        f"{_ROWS.value:,} rows, profile {_PROFILE.value}; off: the largest relative error of a rate; AUCs on the right"
    )
    print(f"{'world':<20}{'ready':>8}{'rows/s':>10}" + "".join(f"{name:>10}" for name in names))
    print(f"{'target':<38}" + "".join(f"{rate:>10.4%}" for rate in targets(profile)))
    for world in _WORLDS.value or WORLDS:
        wanted = targets(dataclasses.replace(profile, **WORLDS[world].rates))
        log = SimulatedLog(world, profile, _ROWS.value)
        start = time.perf_counter()
        _ = log.law
        ready = time.perf_counter() - start
        truths, seconds = simulate(log)
        found = rates(truths)
        off = max(abs(rate / target - 1) for rate, target in zip(found, wanted))
        everywhere = np.ones_like(truths["pctr"])
        aucs = [
            soft_auc(truths[name], weights)
            for name, weights in (
                ("pctr", everywhere),
                ("pcvr_given_click", truths["pctr"]),
                ("pctcvr", everywhere),
            )
        ]
        print(
            f"{world:<20}{ready:>7.1f}s{_ROWS.value / seconds:>10,.0f}"
            + "".join(f"{rate:>10.4%}" for rate in found)
            + f"{off:>10.2%}"
            + "".join(f"{auc:>10.4f}" for auc in aucs),
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
