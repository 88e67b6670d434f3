"""Models whose figures are pinned (see tests/pins/README.md), through public names only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from reference_data import load_reference_data

import bayeslmm as blm

Dist = tuple[str, dict[str, float]]
"""Name of a PyMC distribution and its parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A model: a reference data set, a formula, weights, and priors that are stated in full."""

    data: str
    formula: str
    priors: Literal["flat"] | Mapping[str, Dist] | None
    weights: str | None = None
    slow: bool = False

    def frame(self) -> pd.DataFrame:
        return load_reference_data(self.data)

    def model(self) -> blm.LMM:
        priors: Any = self.priors
        if isinstance(priors, Mapping):
            priors = {key: _distribution(*dist) for key, dist in priors.items()}
        return blm.LMM(self.formula, self.frame(), priors=priors, weights=self.weights)

    def description(self) -> dict[str, Any]:
        """What the figures are of, as JSON has it."""
        priors: Any = self.priors
        if isinstance(priors, Mapping):
            priors = {key: _text(*dist) for key, dist in priors.items()}
        return {
            "data": self.data,
            "formula": self.formula,
            "weights": self.weights,
            "priors": priors,
        }


def normal(mu: float, sigma: float) -> Dist:
    return "Normal", {"mu": mu, "sigma": sigma}


def half_normal(sigma: float) -> Dist:
    return "HalfNormal", {"sigma": sigma}


def gamma(alpha: float, beta: float) -> Dist:
    return "Gamma", {"alpha": alpha, "beta": beta}


def student(nu: float, mu: float, sigma: float) -> Dist:
    return "StudentT", {"nu": nu, "mu": mu, "sigma": sigma}


def lkj(n: int, eta: float) -> Dist:
    return "LKJCorr", {"n": n, "eta": eta}


def _distribution(name: str, parameters: dict[str, float]) -> Any:
    import pymc as pm

    return getattr(pm, name).dist(**parameters)


def _text(name: str, parameters: dict[str, float]) -> str:
    return f"{name}({', '.join(f'{k}={v:g}' for k, v in parameters.items())})"


def _scales(intercept: Dist, beta: Dist, sd: Dist, sigma: Dist, **more: Dist) -> dict[str, Dist]:
    return {"Intercept": intercept, "beta": beta, "sd": sd, "sigma": sigma} | more


SLEEP = _scales(normal(250, 100), normal(0, 20), half_normal(40), half_normal(50))
MACHINES = _scales(normal(60, 20), normal(0, 15), half_normal(8), half_normal(4))
OATS = _scales(normal(100, 50), normal(0, 60), gamma(2, 0.1), half_normal(25))
UNIT = _scales(normal(0, 10), normal(0, 5), half_normal(2), half_normal(3))
"""Of the simulated sets, whose response varies by a few units."""

# Flat priors only where each factor has at least nine levels: the standard deviation of a factor of
# J levels has a tail like sd^(1 - J), and Monte Carlo errors of its moments need four of them.
FLAT = {
    "sleepstudy_intercepts_flat": ("sleepstudy", "Reaction ~ Days + (1 | Subject)"),
    "sleepstudy_slopes_flat": ("sleepstudy", "Reaction ~ Days + (Days | Subject)"),
    "sleepstudy_uncorrelated_flat": ("sleepstudy", "Reaction ~ Days + (Days || Subject)"),
    "Pastes_nested_flat": ("Pastes", "strength ~ 1 + (1 | batch / cask)"),
    "Orthodont_slopes_flat": ("Orthodont", "distance ~ age * Sex + (age | Subject)"),
    "cake_factors_flat": ("cake", "angle ~ recipe * temperature + (1 | recipe:replicate)"),
    "ergoStool_sum_flat": ("ergoStool", "effort ~ C(Type, contr.sum) + (1 | Subject)"),
    "BodyWeight_slopes_flat": ("BodyWeight", "weight ~ Time * Diet + (Time | Rat)"),
    "offset_flat": ("sim_offset", "y ~ x + offset(o) + (1 | g)"),
    "no_intercept_flat": ("sim_design", "y ~ 0 + f1 + x + (1 | g)"),
    "missing_flat": ("sim_missing", "y ~ x1 + x2 + f + (1 | g)"),
}

STATED = {
    "sleepstudy_slopes": Pin(
        data="sleepstudy",
        formula="Reaction ~ Days + (Days | Subject)",
        priors=SLEEP | {"sd[Subject, Days]": half_normal(10), "cor": lkj(2, 3)},
    ),
    "sleepstudy_uncorrelated": Pin(
        data="sleepstudy",
        formula="Reaction ~ Days + (Days || Subject)",
        priors=SLEEP | {"sd": gamma(2, 0.1), "sd[Subject, Days]": gamma(2, 0.3)},
    ),
    "sleepstudy_slopes_only": Pin(
        data="sleepstudy", formula="Reaction ~ Days + (0 + Days | Subject)", priors=SLEEP
    ),
    "sleepstudy_student": Pin(
        data="sleepstudy",
        formula="Reaction ~ Days + (Days | Subject)",
        priors=SLEEP | {"Days": student(4, 5, 3), "cor": lkj(2, 1)},
    ),
    "Dyestuff": Pin(
        data="Dyestuff",
        formula="Yield ~ 1 + (1 | Batch)",
        priors={
            "Intercept": normal(1500, 100),
            "sd": half_normal(80),
            "sigma": gamma(3, 0.05),
        },
    ),
    "Dyestuff2": Pin(
        data="Dyestuff2",
        formula="Yield ~ 1 + (1 | Batch)",
        priors={"Intercept": normal(5, 5), "sd": half_normal(3), "sigma": half_normal(6)},
    ),
    "Rail": Pin(
        data="Rail",
        formula="travel ~ 1 + (1 | Rail)",
        priors={"Intercept": student(3, 60, 20), "sd": half_normal(30), "sigma": half_normal(8)},
    ),
    "Pastes_nested": Pin(
        data="Pastes",
        formula="strength ~ 1 + (1 | batch / cask)",
        priors={
            "Intercept": normal(60, 5),
            "sd[batch]": half_normal(2),
            "sd[batch:cask]": gamma(3, 1),
            "sigma": half_normal(1),
        },
    ),
    "Penicillin_crossed": Pin(
        data="Penicillin",
        formula="diameter ~ 1 + (1 | plate) + (1 | sample)",
        priors={
            "Intercept": normal(22, 5),
            "sd[plate]": half_normal(1.5),
            "sd[sample]": half_normal(3),
            "sigma": half_normal(1),
        },
    ),
    "Machines_intercepts": Pin(
        data="Machines", formula="score ~ Machine + (1 | Worker)", priors=MACHINES
    ),
    "Machines_nested": Pin(
        data="Machines", formula="score ~ Machine + (1 | Worker / Machine)", priors=MACHINES
    ),
    "Machines_cells": Pin(
        data="Machines",
        formula="score ~ Machine + (0 + Machine | Worker)",
        priors=MACHINES | {"cor": lkj(3, 2)},
    ),
    "Machines_slopes": Pin(
        data="Machines",
        formula="score ~ Machine + (Machine | Worker)",
        priors=MACHINES | {"cor": lkj(3, 1.5)},
    ),
    "Orthodont_student": Pin(
        data="Orthodont",
        formula="distance ~ age * Sex + (1 | Subject)",
        priors={
            "Intercept": normal(24, 10),
            "beta": student(4, 0, 0.7),
            "sd": half_normal(4),
            "sigma": half_normal(4),
        },
    ),
    "Oats_split": Pin(
        data="Oats", formula="Q('yield') ~ nitro + (1 | Block / Variety)", priors=OATS
    ),
    "Oats_interaction": Pin(
        data="Oats", formula="Q('yield') ~ nitro * Variety + (1 | Block / Variety)", priors=OATS
    ),
    "Pixel": Pin(
        data="Pixel",
        formula="pixel ~ day + I(day**2) + (day | Dog) + (1 | Dog:Side)",
        priors={
            "Intercept": normal(1100, 50),
            "day": normal(0, 10),
            "I(day ** 2)": normal(0, 1),
            "sd": half_normal(30),
            "sd[Dog, day]": half_normal(4),
            "cor[Dog]": lkj(2, 2),
            "sigma": half_normal(15),
        },
    ),
    "cake_polynomial": Pin(
        data="cake",
        formula="angle ~ recipe + poly(temp, 2) + (1 | recipe:replicate)",
        priors=_scales(normal(32, 10), normal(0, 30), half_normal(10), half_normal(8)),
    ),
    "Ovary": Pin(
        data="Ovary",
        formula=("follicles ~ sin(2*pi*Time) + cos(2*pi*Time) + (sin(2*pi*Time) || Mare)"),
        priors=_scales(normal(12, 5), normal(0, 5), half_normal(4), half_normal(5)),
    ),
    "lecture_surgery": Pin(
        data="lecture_surgery",
        formula="y ~ procedure + (1 | team) + (1 | team:procedure)",
        priors=_scales(normal(55, 20), normal(0, 10), gamma(2, 0.2), half_normal(10)),
    ),
    "weights": Pin(data="sim_weights", formula="y ~ x + (1 | g)", priors=UNIT, weights="w"),
    "weights_slopes": Pin(
        data="sim_weights",
        formula="y ~ x + (x | g)",
        priors=UNIT | {"cor": lkj(2, 2)},
        weights="w",
    ),
    "offset": Pin(data="sim_offset", formula="y ~ x + offset(o) + (1 | g)", priors=UNIT),
    "no_intercept": Pin(
        data="sim_design",
        formula="y ~ 0 + f1 + x + (1 | g)",
        priors={"beta": normal(3, 5), "sd": half_normal(3), "sigma": half_normal(3)},
    ),
    "splines_two_terms": Pin(
        data="sim_design", formula="y ~ ns(x, 3) + f2 + (1 | g) + (0 + x | g)", priors=UNIT
    ),
    "four_coefficients": Pin(
        data="sim_design",
        formula="y ~ x * f1 + f2 + (x + f1 | g)",
        priors=UNIT | {"cor": lkj(4, 2)},
        slow=True,
    ),
    "three_factors": Pin(
        data="sim_labels",
        formula="y ~ x + (1 | site / plot) + (1 | pad)",
        priors=UNIT | {"sd[pad]": gamma(2, 2)},
    ),
    "three_crossed": Pin(
        data="sim_cross3",
        formula="y ~ x1 + x2 + (x1 | A) + (1 | B) + (1 | C)",
        priors=UNIT | {"cor": lkj(2, 4)},
        slow=True,
    ),
    "redundant_column": Pin(data="sim_rankdef", formula="y ~ x1 + x2 + x3 + (1 | g)", priors=UNIT),
}

POSTERIORS = STATED | {
    name: Pin(data=data, formula=formula, priors="flat") for name, (data, formula) in FLAT.items()
}

DEFAULTS = {
    name: Pin(data=POSTERIORS[name].data, formula=POSTERIORS[name].formula, priors=None)
    for name in (
        "sleepstudy_slopes",
        "Dyestuff2",
        "Penicillin_crossed",
        "Machines_cells",
        "Orthodont_student",
    )
}
"""Under the package's own priors. Made again whenever these change: not part of the contract."""
