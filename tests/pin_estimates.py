"""What is pinned of estimates: everything that rests on no draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from pin_models import POSTERIORS, Pin
from pin_tables import SINGULAR, Table, as_table, thin

import bayeslmm as blm

Extra = Callable[[blm.Estimate], pd.DataFrame]
Target = Literal["conditional", "new", "population", "average"]

TARGETS: tuple[Target, ...] = ("conditional", "new", "population", "average")
KINDS: tuple[Literal["epred", "response"], ...] = ("epred", "response")

PLUGIN: dict[str, Any] = {"uncertainty": "plugin", "draws": 2, "random_seed": 1}
"""The covariance parameters held: of what is pinned nothing then rests on the draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatePin:
    """An estimate: how it is made, labels of levels it has not seen, and tables of its own."""

    pin: Pin
    method: Literal["reml", "ml", "map"] = "reml"
    unseen: Mapping[str, str]
    extras: Mapping[str, Extra] = field(default_factory=dict)
    close: float | None = None

    def fit(self) -> blm.Estimate:
        return getattr(self.pin.model(), self.method)()

    def description(self) -> dict[str, Any]:
        return self.pin.description() | {"method": self.method}


def check(fit: Any, name: str) -> Any:
    """A check of a fit by its name: where checks live is decided here alone."""
    return getattr(fit.check, name)


def influence(fit: Any, by: str | None = None) -> pd.DataFrame:
    return check(fit, "influence")(by, progressbar=False).table


def model(data: str, formula: str, weights: str | None = None) -> Pin:
    """A model whose priors do not matter."""
    return Pin(data=data, formula=formula, priors=None, weights=weights)


SLEEP = model("sleepstudy", "Reaction ~ Days + (Days | Subject)")

ESTIMATES = {
    "sleepstudy_slopes": EstimatePin(
        pin=SLEEP,
        unseen={"Subject": "new"},
        extras={
            "icc at": lambda e: e.icc(at={"Days": [0, 4, 9]}),
            "means": lambda e: e.means("Days", at={"Days": [0, 5, 9]}).table(),
            "slopes": lambda e: e.slopes("Days").table(),
            "comparisons": lambda e: e.comparisons("Days", 3).table(),
            "averaged": lambda e: e.average_predictions().table(),
            "hypothesis": lambda e: e.hypothesis(["Days > 5", "Days = 10"]).table(),
            "contest": lambda e: e.contest([[1, 0], [0, 1]]),
            "profile": lambda e: e.confint("profile"),
            "influence of rows": lambda e: thin(influence(e)),
            "influence of levels": lambda e: influence(e, "Subject"),
            "partly observed": lambda e: _partly_observed(e),
        },
    ),
    "sleepstudy_slopes_ml": EstimatePin(pin=SLEEP, method="ml", unseen={"Subject": "new"}),
    "sleepstudy_slopes_map": EstimatePin(
        pin=POSTERIORS["sleepstudy_slopes"], method="map", unseen={"Subject": "new"}
    ),
    "sleepstudy_uncorrelated": EstimatePin(
        pin=model("sleepstudy", "Reaction ~ Days + (Days || Subject)"), unseen={"Subject": "new"}
    ),
    "Dyestuff2_singular": EstimatePin(
        pin=model("Dyestuff2", "Yield ~ 1 + (1 | Batch)"),
        unseen={"Batch": "new"},
        extras={"boundaries": lambda e: check(e, "singularity")().table},
    ),
    "Pastes_nested": EstimatePin(
        pin=model("Pastes", "strength ~ 1 + (1 | batch / cask)"),
        unseen={"batch": "new"},
        extras={"influence of levels": lambda e: influence(e, "batch")},
    ),
    "Penicillin_crossed": EstimatePin(
        pin=model("Penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"),
        unseen={"plate": "new"},
    ),
    "Machines_cells": EstimatePin(
        pin=model("Machines", "score ~ Machine + (0 + Machine | Worker)"),
        unseen={"Worker": "new"},
        extras={
            "means": lambda e: e.means("Machine").table(),
            "pairwise": lambda e: e.contrasts("Machine").table(),
            "reference": lambda e: e.contrasts("Machine", "reference", adjust="holm").table(),
        },
    ),
    "Orthodont_slopes": EstimatePin(
        pin=model("Orthodont", "distance ~ age * Sex + (age | Subject)"),
        unseen={"Subject": "new"},
        extras={
            "means": lambda e: e.means("Sex", by="age", at={"age": [8, 14]}).table(),
            "slopes": lambda e: e.slopes("age", by="Sex").table(),
            "anova 1": lambda e: e.anova(1),
            "anova 2": lambda e: e.anova(2),
        },
    ),
    "Oats_split": EstimatePin(
        pin=model("Oats", "Q('yield') ~ nitro * Variety + (1 | Block / Variety)"),
        unseen={"Block": "new"},
        extras={
            "means": lambda e: e.means("Variety").table(),
            "contrasts": lambda e: e.contrasts("Variety", adjust="sidak").table(),
        },
    ),
    "cake_factors": EstimatePin(
        pin=model("cake", "angle ~ recipe * temperature + (1 | recipe:replicate)"),
        unseen={"replicate": "new"},
        extras={
            "means": lambda e: e.means("temperature").table(),
            "weighted": lambda e: e.means("recipe", weights="proportional").table(),
            "polynomial": lambda e: e.contrasts("temperature", "polynomial").table(),
        },
    ),
    "weights": EstimatePin(pin=model("sim_weights", "y ~ x + (1 | g)", "w"), unseen={"g": "new"}),
    "weights_singular": EstimatePin(
        pin=model("sim_weights", "y ~ x + (x | g)", "w"), unseen={"g": "new"}, close=SINGULAR
    ),
    "offset": EstimatePin(
        pin=model("sim_offset", "y ~ x + offset(o) + (1 | g)"), unseen={"g": "new"}
    ),
    "polynomial": EstimatePin(
        pin=model("sim_design", "y ~ poly(x, 2) + f1 + (1 | g)"),
        unseen={"g": "new"},
        extras={"slopes": lambda e: e.slopes("x", by="x", at={"x": [1, 5, 9]}).table()},
    ),
    "no_intercept": EstimatePin(
        pin=model("sim_design", "y ~ 0 + f1 + x + (1 | g)"), unseen={"g": "new"}
    ),
    "missing": EstimatePin(
        pin=model("sim_missing", "y ~ x1 + x2 + f + (1 | g)"), unseen={"g": "new"}
    ),
    "three_factors": EstimatePin(
        pin=model("sim_labels", "y ~ x + (1 | site / plot) + (1 | pad)"), unseen={"pad": "new"}
    ),
}


def known_rows(pin: Pin) -> pd.DataFrame:
    """Three rows of the data."""
    return thin(pin.frame().dropna(), 3).reset_index(drop=True)


def new_rows(pin: Pin, unseen: Mapping[str, str]) -> pd.DataFrame:
    """The same rows, and again for levels that the model has not seen."""
    known = known_rows(pin).astype(dict.fromkeys(unseen, str))
    return pd.concat([known, known.assign(**unseen)], ignore_index=True)


def record(case: EstimatePin) -> dict[str, Table]:
    """Tables by name."""
    fit = case.fit()
    found = dict(_tables(fit, case)) | {name: make(fit) for name, make in case.extras.items()}
    return {name: as_table(table) for name, table in found.items()}


def _tables(fit: blm.Estimate, case: EstimatePin) -> Iterator[tuple[str, Any]]:
    numbers = ("nobs", "n_parameters", "sigma", "criterion", "loglik", "aic", "bic")
    yield "numbers", {name: getattr(fit, name) for name in numbers}
    yield "flags", {"singular": fit.singular, "converged": fit.converged}
    for name in ("fixef", "varcorr", "confint", "icc", "r2", "variance_partition", "summary"):
        yield name, getattr(fit, name)()
    if case.method != "map":
        yield "anova", fit.anova()
    yield "vcov", fit.vcov
    yield "fixed part", thin(fit.fitted(random_effects=False))
    yield "fitted", thin(fit.fitted())
    yield "residuals", thin(fit.residuals())
    for group, sds in fit.sds.items():
        yield f"sds of {group}", sds
        yield f"corrs of {group}", fit.corrs[group]
        yield f"ranef of {group}", thin(fit.ranef()[group])
        yield f"coef of {group}", thin(fit.coef()[group])
        yield f"ranef_sd of {group}", thin(fit.ranef_sd()[group])
        yield f"ranef_sd of {group} given beta", thin(fit.ranef_sd(given_beta=True)[group])
    yield from _predictions(fit, case)


def _predictions(fit: blm.Estimate, case: EstimatePin) -> Iterator[tuple[str, pd.DataFrame]]:
    """Estimates under every target, standard errors where they are exact."""
    rows = new_rows(case.pin, case.unseen)
    for target in TARGETS:
        new = rows if target != "conditional" else known_rows(case.pin)
        table = fit.predict(new, target=target, **PLUGIN)
        yield f"{target} predictions", table if target == "average" else table[["estimate"]]
    if case.method != "map" and not fit.singular:
        yield (
            "average predictions with t",
            fit.predict(rows, target="average", draws=2, random_seed=1),
        )
    unseen = rows.iloc[len(rows) // 2 :]
    for kind in KINDS:
        table = fit.predict(unseen, target="new", kind=kind, **PLUGIN)
        yield f"{kind} at unseen levels", table


def _partly_observed(fit: blm.Estimate) -> pd.DataFrame:
    """Predictions for a subject of whom three days are known."""
    seen = {"Days": [0, 1, 2], "Subject": ["new"] * 3, "Reaction": [300.0, 310.0, 330.0]}
    new = {"Days": [3, 9, 9], "Subject": ["new", "new", "308"]}
    return fit.predict(new, target="new", observed=seen, **PLUGIN)[["estimate"]]
