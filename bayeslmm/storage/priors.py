"""Priors as plain values and back: by family and parameters, never from the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import PriorError, StorageError
from bayeslmm.priors import families
from bayeslmm.priors.families import Prior, Record
from bayeslmm.priors.lkj import LKJ
from bayeslmm.priors.pymc_priors import PymcPrior, from_pymc_recipe, pymc_recipe
from bayeslmm.priors.record import Priors
from bayeslmm.storage.values import from_plain, to_plain

Arrays = dict[str, NDArray[Any]]
Description = dict[str, Any]

_MATRICES = ("fixed_map", "beta_mean", "beta_root")
_FAMILIES: dict[str, Any] = {
    "LKJ": LKJ,
    **{name: getattr(families, name) for name in ("Flat", "HalfFlat", "Normal", "HalfNormal")},
    **{name: getattr(families, name) for name in ("HalfStudentT", "HalfCauchy", "Exponential")},
    **{name: getattr(families, name) for name in ("Gamma", "InverseGamma", "LogNormal")},
}

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
    for name in _MATRICES:
        if (values := getattr(priors, name)) is not None:
            arrays[f"prior {name}"] = np.asarray(values)
    for f, mixing in enumerate(priors.mixing):
        arrays[f"prior mixing {f}"] = mixing
    names = iter(priors.records())
    beta = [_record(prior, next(names)) for prior in priors.beta]
    sd = [[_record(prior, next(names)) for prior in row] for row in priors.sd]
    cor = [[None if p is None else _record(p, next(names)) for p in row] for row in priors.cor]
    return {
        "coefs": list(priors.coefs),
        "factors": list(priors.factors),
        "factor_coefs": [list(coefs) for coefs in priors.factor_coefs],
        "blocks": [[list(block) for block in blocks] for blocks in priors.blocks],
        "beta_sampled": priors.beta_sampled,
        "beta": beta,
        "alone": list(priors.alone),
        "sd": sd,
        "cor": cor,
        "sigma": _record(priors.sigma, "sigma"),
        "sources": dict(priors.sources),
        "where": dict(priors.where),
    }


def unpack_priors(description: Description, arrays: Mapping[str, NDArray[Any]]) -> Priors:
    """The priors that :func:`pack_priors` described.

    Raises
    ------
    StorageError
        If a family is unknown, or PyMC no longer makes the prior that was stored.
    """
    d = description
    cor = [[None if item is None else _remade(item) for item in row] for row in d["cor"]]
    matrices = {name: arrays.get(f"prior {name}") for name in _MATRICES}
    return Priors(
        **matrices,  # type: ignore[arg-type]
        coefs=tuple(d["coefs"]),
        beta=tuple(_remade(item) for item in d["beta"]),
        alone=tuple(d["alone"]),
        beta_sampled=d["beta_sampled"],
        factors=tuple(d["factors"]),
        factor_coefs=_tuples(d["factor_coefs"]),
        blocks=tuple(_tuples(blocks) for blocks in d["blocks"]),
        mixing=tuple(np.asarray(arrays[f"prior mixing {f}"]) for f in range(len(d["factors"]))),
        sd=tuple(tuple(_remade(item) for item in row) for row in d["sd"]),
        cor=tuple(tuple(row) for row in cor),
        sigma=_remade(d["sigma"]),
        sources=d["sources"],
        where=d["where"],
    )


def _tuples(rows: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in rows)


def _record(prior: Prior | LKJ, name: str) -> Description:
    if isinstance(prior, PymcPrior):
        return _pymc_record(prior, name)
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
