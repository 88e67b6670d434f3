"""Priors: families, defaults that do not depend on units, and a user's changes."""

from bayeslmm.priors.defaults import default_priors, flat_priors, resolve_priors
from bayeslmm.priors.families import (
    LKJ,
    Exponential,
    Flat,
    Gamma,
    HalfCauchy,
    HalfFlat,
    HalfNormal,
    HalfStudentT,
    InverseGamma,
    LogNormal,
    Normal,
)
from bayeslmm.priors.pymc_priors import PymcPrior
from bayeslmm.priors.record import Priors

__all__ = [
    "LKJ",
    "Exponential",
    "Flat",
    "Gamma",
    "HalfCauchy",
    "HalfFlat",
    "HalfNormal",
    "HalfStudentT",
    "InverseGamma",
    "LogNormal",
    "Normal",
    "Priors",
    "PymcPrior",
    "default_priors",
    "flat_priors",
    "resolve_priors",
]
