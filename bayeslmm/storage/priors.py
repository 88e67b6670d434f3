"""Priors as plain values and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import PriorError, StorageError
from bayeslmm.priors import families
from bayeslmm.priors.families import LKJ, Prior, Record
from bayeslmm.priors.pymc_priors import PymcPrior, from_pymc_recipe, pymc_recipe
from bayeslmm.priors.record import Labels, Priors
from bayeslmm.priors.residual import ResidualPriors
from bayeslmm.priors.scale import ScalePriors
from bayeslmm.storage.frames import Arrays, Description
from bayeslmm.storage.layout import from_plain, to_plain

_FAMILIES: dict[str, Any] = {
    "LKJ": LKJ,
    **{name: getattr(families, name) for name in ("Flat", "HalfFlat", "Normal", "HalfNormal")},
    **{name: getattr(families, name) for name in ("HalfStudentT", "HalfCauchy", "Exponential")},
    **{name: getattr(families, name) for name in ("Gamma", "InverseGamma", "LogNormal", "Uniform")},
}

RESIDUAL_PRIORS = ("sd", "power", "cor")

DERIVED = ("residual", "scale_labels", "held")
"""Fields of priors that follow from the model."""

PROBES = np.concatenate([-np.logspace(4, -4, 9), np.logspace(-4, 4, 9)])
"""Points at which the density of a prior remade by PyMC must be what it was."""

DENSITY_TOLERANCE = 1e-9
"""Relative difference of log densities that other versions of the libraries may cause."""


def pack_priors(priors: Priors, arrays: Arrays) -> Description:
    """Describe the priors of a model.

    Parameters
    ----------
    priors : Priors
        The priors.
    arrays : dict
        Where the matrices go.

    Returns
    -------
    dict
        What :func:`unpack_priors` needs besides the arrays; fit for JSON.

    Raises
    ------
    StorageError
        If a prior is more than a family with numbers for parameters.
    """
    names = iter(priors.records())

    def packed(value: Any, name: str) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, np.ndarray):
            arrays[f"prior {name}"] = value
            return {"array": name}
        if isinstance(value, tuple):
            return [packed(item, f"{name} {i}") for i, item in enumerate(value)]
        if isinstance(value, Mapping):
            return {"mapping": dict(value)}
        if isinstance(value, ScalePriors):
            return {"scale": [packed(part, f"{name} {i}") for i, part in enumerate(_parts(value))]}
        if isinstance(value, ResidualPriors):
            return [packed(getattr(value, kind), f"{name} {kind}") for kind in RESIDUAL_PRIORS]
        return _record(value, next(names))

    stored = [field.name for field in fields(Priors) if field.name not in DERIVED]
    return {name: packed(getattr(priors, name), name) for name in stored}


def unpack_priors(
    description: Description,
    arrays: Mapping[str, NDArray[Any]],
    labels: Labels,
    held: tuple[tuple[int, float], ...] = (),
) -> Priors:
    """The priors that :func:`pack_priors` described, of a model with these names.

    `held` are the known coordinates of the model.

    Raises
    ------
    StorageError
        If a family is unknown, or PyMC no longer makes the prior that was stored.
    """

    def unpacked(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(unpacked, value))
        if not isinstance(value, dict):
            return value
        if "array" in value:
            return arrays[f"prior {value['array']}"]
        if "scale" in value:
            names = (field.name for field in fields(ScalePriors))
            return ScalePriors(**dict(zip(names, unpacked(value["scale"]), strict=True)))
        return value["mapping"] if "mapping" in value else _remade(value)

    names = [field.name for field in fields(Priors) if field.name not in DERIVED]
    older = {"strata"} - description.keys()  # files of models without by=
    values = {name: unpacked(description[name]) for name in names if name not in older}
    own = dict(zip(RESIDUAL_PRIORS, values.pop("residuals"), strict=True))
    residuals = ResidualPriors(structure=labels.residual, **own)
    return Priors(
        **values,
        residual=labels.residual,
        scale_labels=labels.scale_labels,
        residuals=residuals,
        held=held,
    )


def _parts(priors: ScalePriors) -> list[Any]:
    return [getattr(priors, field.name) for field in fields(ScalePriors)]


def _record(prior: Prior | LKJ, name: str) -> Description:
    if isinstance(prior, PymcPrior):
        return _pymc_record(prior, name)
    if isinstance(prior, families.Fixed):
        known = {key: value for key, value in prior.parameters().items() if np.isfinite(value)}
        return {"name": name, "family": "Fixed", "parameters": known}
    family = type(prior).__name__
    if not isinstance(prior, Record) or type(prior) is not _FAMILIES.get(family):
        raise StorageError(
            f"The prior for {name!r} is of type {family}, which is not one of this package or of "
            "PyMC, so it cannot be stored. Give a PyMC distribution with numbers for parameters, "
            "such as pm.Gamma.dist(2, 0.1), or save post.data, the draws, alone."
        )
    parameters = {key: float(value) for key, value in prior.parameters().items()}
    return {"name": name, "family": family, "parameters": parameters}


def _pymc_record(prior: PymcPrior, name: str) -> Description:
    recipe = pymc_recipe(prior)
    if recipe is None:
        raise StorageError(
            f"The prior for {name!r}, {prior}, cannot be stored: a file has the families of PyMC "
            "with numbers for parameters, not code, mixtures or truncations in general. Give such "
            "a family, or save post.data, the draws, alone."
        )
    family, values = recipe
    typed = [to_plain(value, f"The prior for {name!r}") for value in values]
    density = [float(value) for value in prior.logpdf(PROBES)]
    return {"name": name, "pymc": family, "values": typed, "density": density}


def _remade(item: Description) -> Any:
    name = item["name"]
    if "pymc" in item:
        return _remade_by_pymc(item, name)
    if item["family"] == "Fixed":
        return families.Fixed.of(item["parameters"])
    if item["family"] not in _FAMILIES:
        raise StorageError(f"The prior for {name!r} is of the unknown family {item['family']!r}.")
    return _FAMILIES[item["family"]](**item["parameters"])


def _remade_by_pymc(item: Description, name: str) -> Any:
    values = [from_plain(value) for value in item["values"]]
    try:
        prior = from_pymc_recipe(item["pymc"], values, name)
    except PriorError as error:
        raise StorageError(str(error)) from error
    density = np.array(item["density"])
    found = prior.logpdf(PROBES)
    if not np.allclose(found, density, rtol=DENSITY_TOLERANCE, atol=0.0, equal_nan=True):
        raise StorageError(
            f"The prior for {name!r}, {prior}, has another density than when it was saved: the "
            f"installed PyMC takes the parameters of {item['pymc']} otherwise."
        )
    return prior
