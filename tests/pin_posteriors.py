"""What is pinned of a posterior, with its Monte Carlo errors, and how it is compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import bayeslmm as blm

FOLDER = Path(__file__).parent / "pins"
DIGITS = 10
"""Significant ones that are stored: far below any Monte Carlo error."""


def read(group: str, name: str) -> dict[str, Any]:
    return json.loads((FOLDER / group / f"{name}.json").read_text(encoding="utf-8"))


def shorten(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def record(post: blm.Posterior) -> dict[str, Any]:
    """Mean and sd of every parameter and of a few random effects, and the evidence."""
    found = dict(_parameters(post)) | dict(_effects(post))
    parameters = {
        name: {statistic: shorten(value) for statistic, value in row.items()}
        for name, row in found.items()
    }
    return {"parameters": parameters, "log_evidence": _evidence(post)}


def _parameters(post: blm.Posterior) -> Iterator[tuple[str, dict[str, float]]]:
    for name, row in post.summary().iterrows():
        columns = ("mean", "mcse_mean", "sd", "mcse_sd")
        yield str(name), {column: float(row[column]) for column in columns}


def _effects(post: blm.Posterior) -> Iterator[tuple[str, dict[str, float]]]:
    """Random effects of the first and the last level of each factor."""
    import arviz as az

    draws = post.data["posterior"].dataset
    for variable in sorted(str(v) for v in draws.data_vars if str(v).startswith("u_")):
        coef_dim, level_dim = draws[variable].dims[2:]
        for coef in draws[coef_dim].to_numpy():
            for level in draws[level_dim].to_numpy()[[0, -1]]:
                values = draws[variable].sel({coef_dim: coef, level_dim: level}).to_numpy()
                yield (
                    f"{variable}[{level}, {coef}]",
                    {
                        "mean": float(values.mean()),
                        "mcse_mean": float(az.mcse(values, method="mean")),
                        "sd": float(values.std(ddof=1)),
                        "mcse_sd": float(az.mcse(values, method="sd")),
                    },
                )


def _evidence(post: blm.Posterior) -> dict[str, float] | None:
    try:
        evidence = post.log_evidence
    except blm.PriorError:  # an improper prior
        return None
    return {"value": shorten(evidence.value), "error": shorten(evidence.error)}


def scores(new: dict[str, Any], old: dict[str, Any]) -> dict[str, float]:
    """Differences of two records in their combined Monte Carlo standard errors."""
    found = {}
    for name, one in new["parameters"].items():
        two = old["parameters"][name]
        for statistic in ("mean", "sd"):
            error = np.hypot(one[f"mcse_{statistic}"], two[f"mcse_{statistic}"])
            found[f"{statistic} of {name}"] = float((one[statistic] - two[statistic]) / error)
    if old["log_evidence"] is not None:
        one, two = new["log_evidence"], old["log_evidence"]
        error = np.hypot(one["error"], two["error"])
        found["log evidence"] = float((one["value"] - two["value"]) / error)
    return found
