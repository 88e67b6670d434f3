"""What is pinned of uses of draws: tables whose figures have a Monte Carlo error each.

Their errors are measured, not derived: the same fit and the same tables from several seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pin_estimates import TARGETS, Target, check, known_rows, new_rows
from pin_models import POSTERIORS, Pin
from pin_posteriors import shorten
from pin_tables import Table, as_table, thin
from scipy.stats import t as student_t

import bayeslmm as blm

SIZE: dict[str, Any] = {"draws": 1000, "chains": 4}
PROB = 0.9
CHANCE = 1e-6
"""That a figure of a right program is called different; 1,350 are compared."""

EXACT = 1e-9
"""Relative difference of figures that do not vary between seeds."""

Extra = Callable[[blm.Posterior, int], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsePin:
    """A posterior: labels of levels it has not seen, and tables of its own."""

    pin: Pin
    unseen: Mapping[str, str]
    extras: Mapping[str, Extra] = field(default_factory=dict)


def leave_out(post: blm.Posterior, by: str | None = None) -> dict[str, float]:
    found = post.loo(by, progressbar=False)
    return {"elpd": float(found.elpd), "se": float(found.se), "p": float(found.p)}


def judged(post: blm.Posterior, expressions: list[str]) -> pd.DataFrame:
    table = post.hypothesis(expressions).table()
    return table[["mean", "sd", "median", "probability"]]


def predictions_of_estimate(pin: Pin, unseen: Mapping[str, str], seed: int) -> pd.DataFrame:
    """Standard errors and limits that come from draws of the covariance parameters."""
    reml, rows = pin.model().reml(), new_rows(pin, unseen)
    targets: tuple[Target, ...] = ("new", "population")
    tables = {t: reml.predict(rows, target=t, draws=2000, random_seed=seed) for t in targets}
    return pd.concat(tables)[["std_error", "conf_low", "conf_high"]]


SLEEP = POSTERIORS["sleepstudy_slopes"]

USES = {
    "sleepstudy_slopes": UsePin(
        pin=SLEEP,
        unseen={"Subject": "new"},
        extras={
            "loo by rows": lambda p, _: leave_out(p),
            "loo by subjects": lambda p, _: leave_out(p, "Subject"),
            "icc at": lambda p, _: p.icc(PROB, at={"Days": [0, 9]}),
            "hypotheses": lambda p, _: judged(p, ["Days > 9", "Intercept < 245"]),
            "means": lambda p, _: p.means("Days", at={"Days": [0, 9]}).table(),
            "slopes": lambda p, _: p.slopes("Days").table(),
            "estimate": lambda p, seed: predictions_of_estimate(SLEEP, {"Subject": "new"}, seed),
            "partly observed": lambda p, seed: partly_observed(p, seed),
            "sensitivity": lambda p, _: check(p, "sensitivity")().table,
        },
    ),
    "Penicillin_crossed": UsePin(
        pin=POSTERIORS["Penicillin_crossed"],
        unseen={"plate": "new"},
        extras={
            "loo by rows": lambda p, _: leave_out(p),
            "loo by plates": lambda p, _: leave_out(p, "plate"),
        },
    ),
    "Machines_cells": UsePin(
        pin=POSTERIORS["Machines_cells"],
        unseen={"Worker": "new"},
        extras={
            "means": lambda p, _: p.means("Machine").table(),
            "contrasts": lambda p, _: p.contrasts("Machine").table(),
        },
    ),
    "Oats_interaction": UsePin(
        pin=POSTERIORS["Oats_interaction"],
        unseen={"Block": "new"},
        extras={"means": lambda p, _: p.means("Variety").table()},
    ),
    "Orthodont_student": UsePin(
        pin=POSTERIORS["Orthodont_student"],
        unseen={"Subject": "new"},
        extras={
            "slopes": lambda p, _: p.slopes("age", by="Sex").table(),
        },
    ),
    "weights": UsePin(
        pin=POSTERIORS["weights"],
        unseen={"g": "new"},
        extras={"loo by g": lambda p, _: leave_out(p, "g")},
    ),
}


def partly_observed(post: blm.Posterior, seed: int) -> pd.DataFrame:
    """Predictions for a subject of whom three days are known."""
    seen = {"Days": [0, 1, 2], "Subject": ["new"] * 3, "Reaction": [300.0, 310.0, 330.0]}
    new = {"Days": [3, 9], "Subject": ["new", "new"]}
    return post.predict(new, target="new", observed=seen, prob=PROB, random_seed=seed)


def record(case: UsePin, seed: int) -> dict[str, Table]:
    """Tables by name, of a fit from this seed."""
    post = case.pin.model().fit(**SIZE, random_seed=seed)
    found = dict(_tables(post, case, seed))
    found |= {name: make(post, seed) for name, make in case.extras.items()}
    return {name: as_table(_numbers(table)) for name, table in found.items()}


def _tables(post: blm.Posterior, case: UsePin, seed: int) -> Iterator[tuple[str, Any]]:
    for name in ("fixef", "varcorr", "icc", "r2"):
        yield name, getattr(post, name)(prob=PROB)
    yield "fitted", thin(post.fitted(), 5)
    for group in post.sds:
        yield f"ranef_sd of {group}", thin(post.ranef_sd()[group], 3)
    rows = new_rows(case.pin, case.unseen)
    for target in TARGETS:
        new = rows if target != "conditional" else known_rows(case.pin)
        yield target, post.predict(new, target=target, prob=PROB, random_seed=seed)
    yield "responses", post.predict(rows, target="new", kind="response", random_seed=seed)


def _numbers(table: Any) -> Any:
    return table.select_dtypes("number") if isinstance(table, pd.DataFrame) else table


def spread(records: list[dict[str, Table]]) -> dict[str, Table]:
    """Tables of [mean, standard deviation] over seeds."""
    first = records[0]
    return {
        name: {
            "index": table["index"],
            "columns": {
                c: _spread([r[name]["columns"][c] for r in records]) for c in table["columns"]
            },
        }
        for name, table in first.items()
    }


def _spread(columns: list[list[float | None]]) -> list[list[float] | None]:
    values = np.array(columns, dtype=float)
    moments = zip(values.mean(axis=0), values.std(axis=0, ddof=1), strict=True)
    return [None if np.isnan(m) else [shorten(float(m)), shorten(float(s))] for m, s in moments]


def differences(new: dict[str, Table], old: dict[str, Table], seeds: int) -> list[str]:
    """What is missing, and figures outside the prediction interval of `seeds` others."""
    return [
        line for name, table in old.items() for line in _differ(name, new.get(name), table, seeds)
    ]


def _differ(name: str, new: Table | None, old: Table, seeds: int) -> Iterator[str]:
    if new is None or new["index"] != old["index"]:
        yield f"{name}: missing, or other rows"
        return
    reach = student_t.isf(CHANCE / 2, seeds - 1) * np.sqrt(1 + 1 / seeds)
    for column, values in old["columns"].items():
        if column not in new["columns"]:
            yield f"{name}: no column {column}"
            continue
        for label, one, two in zip(old["index"], new["columns"][column], values, strict=True):
            if (one is None) != (two is None):
                yield f"{name}[{label}, {column}]: {one}, not {two}"
            elif two is not None and abs(one - two[0]) > reach * two[1] + EXACT * abs(two[0]):
                z = (one - two[0]) / max(two[1], EXACT * abs(two[0]))
                yield f"{name}[{label}, {column}]: {one}, not {two[0]} (off by {z:.1f} sds)"
