"""A model's priors in the words and columns of ``brms::default_prior`` (``get_prior``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from bayeslmm.priors.families import LKJ, Fixed, Flat, Prior, Record

COLUMNS = ("prior", "class", "coef", "group", "resp", "dpar", "lb", "ub", "source", "where")

STAN = {
    "Normal": "normal",
    "Exponential": "exponential",
    "Gamma": "gamma",
    "InverseGamma": "inv_gamma",
    "LogNormal": "lognormal",
    "Uniform": "uniform",
    "StudentT": "student_t",
    "Cauchy": "cauchy",
    "Laplace": "double_exponential",
    "Logistic": "logistic",
    "SkewNormal": "skew_normal",
    "Gumbel": "gumbel",
    "Weibull": "weibull",
    "Beta": "beta",
    "LKJ": "lkj",
}
"""Stan's names of distributions that have the same numbers, in the same order, there and here."""

HALVES = {
    "HalfNormal": "normal(0, {0})",
    "HalfCauchy": "cauchy(0, {0})",
    "HalfStudentT": "student_t({0}, 0, {1})",
}

BOUNDS = {"sd": (0.0, np.nan), "sigma": (0.0, np.nan), "nu": (0.0, np.nan)}

_TEXT = re.compile(r"(\w+)\((.*)\)")


def brms_table(
    records: Mapping[str, Prior | LKJ],
    coefs: Sequence[str],
    factors: Sequence[str],
    where: Mapping[str, str],
    sources: Mapping[str, str],
    response: str = "",
) -> pd.DataFrame:
    """Priors with brms's columns.

    Parameters
    ----------
    records : mapping of str to Prior or LKJ
        The priors by name, those of the p coefficients first.
    coefs : sequence of str
        Labels of the coefficients.
    factors : sequence of str
        Names of the grouping factors.
    where, sources : mapping of str to str
        Columns of the table, by name.
    response : str
        Name of the response, empty as in brms where there is one response.

    Returns
    -------
    pandas.DataFrame
    """
    rows = []
    for number, (name, record) in enumerate(records.items()):
        if number < len(coefs):
            coef = coefs[number]
            alone = coef == "Intercept"
            kind, place = ("Intercept", "") if alone else ("b", coef)
            group, dpar = "", ""
        else:
            kind, group, place, dpar = _address(name, factors)
        text, low, high = words_of(record)
        least, most = BOUNDS.get(kind, (np.nan, np.nan))
        low, high = (least if np.isnan(low) else low), (most if np.isnan(high) else high)
        source, at = sources[name], where.get(name, "")
        rows.append((text, kind, place, group, response, dpar, low, high, source, at))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _address(name: str, factors: Sequence[str]) -> tuple[str, str, str, str]:
    """Class, group, coefficient and distributional parameter of a name such as ``sd[g, x]``."""
    kind, _, inside = name.partition("[")
    inside = inside.removesuffix("]")
    kind, dpar = (kind.removesuffix("_sigma"), "sigma") if kind.endswith("_sigma") else (kind, "")
    kind = "b" if kind == "beta" else kind
    for group in sorted(factors, key=len, reverse=True):
        if inside == group or inside.startswith(f"{group}, "):
            return kind, group, inside[len(group) :].removeprefix(", "), dpar
    return kind, "", inside, dpar


def words_of(record: Prior | LKJ) -> tuple[str, float, float]:
    """A prior in Stan's words, and the bounds that it is truncated to; NaN for none."""
    none = (np.nan, np.nan)
    if isinstance(record, Flat):
        return "(flat)", *none
    if isinstance(record, Fixed):
        return f"constant({record.value:.6g})", *none
    family, numbers = _recognised(record)
    if family in HALVES:
        return HALVES[family].format(*numbers), *none
    if family == "TruncatedNormal" and len(numbers) == 4:
        low, high = (float(value) for value in numbers[2:])
        bounds = (low if np.isfinite(low) else np.nan, high if np.isfinite(high) else np.nan)
        return f"normal({', '.join(numbers[:2])})", *bounds
    if family in STAN:
        return f"{STAN[family]}({', '.join(numbers)})", *none
    return str(record), *none


def _recognised(record: Prior | LKJ) -> tuple[str, list[str]]:
    """Family and numbers of a prior; those of PyMC's are in its text."""
    if isinstance(record, Record):
        values = record.parameters().values()
        return type(record).__name__, [f"{value:.6g}" for value in values]
    found = _TEXT.fullmatch(str(record))
    return (found[1], found[2].split(", ")) if found else (str(record), [])
