"""Choice of the engine that samples the posterior."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from bayeslmm.data.design import Design, require_marginal
from bayeslmm.data.seeds import RECORDED, known_seed, recorded_seeds
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import SamplingError
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.collapsed import fit_collapsed, fit_laplace

_log = logging.getLogger(__name__)

FitMethod = Literal["auto", "collapsed", "nuts", "laplace"]

COLLAPSED_OPTIONS = frozenset({"store_u", "progressbar"})
SHARED_OPTIONS = frozenset({"progressbar"})

NUTS_OPTIONS = frozenset({"tune", "cores", "target_accept", "nuts_sampler"})
"""Options of NUTS that "auto" takes, for the case that it falls back to it."""

MARGINAL_LEVELS = 2_000
"""Most levels for which NUTS on the marginal model is cheap enough to fall back to."""


def sample_posterior(
    model: Model,
    *,
    method: FitMethod = "auto",
    draws: int = 1000,
    chains: int = 4,
    random_seed: int | np.random.Generator | None = None,
    options: Mapping[str, Any],
) -> xr.DataTree:
    """Draw from the posterior by one of the engines.

    Parameters
    ----------
    model : Model
        Design, priors and what is computed from them once.
    method : {"auto", "collapsed", "nuts", "laplace"}
        The engine; "auto" is "collapsed" with NUTS to fall back to.
    draws, chains : int
        Size of the result.
    random_seed : int or numpy.random.Generator, optional
        Source of randomness.
    options : mapping
        Further arguments of the engine.

    Returns
    -------
    xarray.DataTree
        With the seed among its attributes.

    Raises
    ------
    ValueError
        If the method is unknown, or what is given as a seed is none.
    TypeError
        If the engine has no such option.
    SamplingError
        If the engine fails.
    """
    require_method(method)
    seed = known_seed(random_seed)
    tree = _sampled(model, method, {"draws": draws, "chains": chains, "random_seed": seed}, options)
    tree.attrs[RECORDED] = recorded_seeds(seed)
    return tree


def _sampled(
    model: Model, method: FitMethod, size: Mapping[str, Any], options: Mapping[str, Any]
) -> xr.DataTree:
    if (reason := model.design.spec.conditional) is not None and method != "nuts":
        return _sample_conditional(model, method, reason, size, options)
    if method == "nuts":
        if "store_u" in options:
            raise TypeError("store_u is an option of the collapsed sampler: NUTS stores all draws.")
        return _sample_nuts(model, size, options)
    if method == "auto":
        return _sample_auto(model, size, options)
    known = COLLAPSED_OPTIONS if method == "collapsed" else SHARED_OPTIONS
    if unknown := sorted(set(options) - known):
        raise TypeError(
            f"method={method!r} has no option {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known))}. Options of pymc.sample belong to method='nuts'."
        )
    if method == "collapsed":
        return fit_collapsed(model, **size, **options)
    return fit_laplace(model, **size)


def _sample_conditional(
    model: Model,
    method: FitMethod,
    reason: str,
    size: Mapping[str, Any],
    options: Mapping[str, Any],
) -> xr.DataTree:
    """NUTS where the random effects cannot be integrated out, if "auto" lets it."""
    if method != "auto":
        require_marginal(model.design, f"method={method!r}")
    _log.info("Sampling with NUTS: %s keeps the random effects from being integrated out.", reason)
    return _sample_storing(model, size, options)


def _sample_auto(model: Model, size: Mapping[str, Any], options: Mapping[str, Any]) -> xr.DataTree:
    own = {key: value for key, value in options.items() if key in COLLAPSED_OPTIONS}
    if "form" in options:
        raise TypeError("form= is an option of method='nuts': add method='nuts'.")
    unused = sorted(set(options) - COLLAPSED_OPTIONS)
    if unknown := [name for name in unused if name not in NUTS_OPTIONS]:
        raise TypeError(
            f"fit has no option {', '.join(unknown)}. Options of pymc.sample beyond "
            f"{', '.join(sorted(NUTS_OPTIONS))} belong to method='nuts'."
        )
    if unused:
        _log.warning("Not used by the collapsed sampler, only by NUTS: %s", ", ".join(unused))
    try:
        return fit_collapsed(model, **size, **own)
    except SamplingError as error:
        reason = str(error).split(" Use method=")[0]
    levels = sum(factor.n_levels for factor in model.design.random)
    small = levels <= MARGINAL_LEVELS and not model.priors.beta_sampled
    rows = not isinstance(model.design, SummarisedDesign)
    form = "noncentered" if rows and not small else "marginal"
    _log.warning("Sampling the %s model with NUTS instead: %s", form, reason)
    tree = _sample_storing(model, size, {**options, "form": form})
    tree.attrs["fallback"] = reason
    return tree


def _sample_storing(
    model: Model, size: Mapping[str, Any], options: Mapping[str, Any]
) -> xr.DataTree:
    """NUTS with options of "auto", of which it has all but that of storing random effects."""
    if options.get("store_u") is False:
        _log.warning("NUTS stores draws of all random effects, although store_u=False was asked")
    others = {key: value for key, value in options.items() if key != "store_u"}
    return _sample_nuts(model, size, others)


def _sample_nuts(model: Model, size: Mapping[str, Any], options: Mapping[str, Any]) -> xr.DataTree:
    from bayeslmm.sampling.nuts import sample_nuts

    if isinstance(model.design, SummarisedDesign):  # the one form that needs no rows
        options = {"form": "marginal", **options}
    plan = model.system if options.get("form") == "marginal" else None
    return sample_nuts(model.design, model.priors, system=plan, **size, **options)


# --- the same model fitted to other responses ---


COMPILED = frozenset({"draws", "form", "tune", "chains", "cores", "target_accept"})
"""Options with which NUTS is compiled once for all responses."""


def refit_function(
    design: Design, priors: Priors, method: FitMethod, options: Mapping[str, Any]
) -> Callable[[Design, np.random.Generator], xr.DataTree]:
    """Function that fits a model, with the priors it has, to another response.

    Parameters
    ----------
    design, priors : Design, Priors
        The model; its response is not used.
    method : {"auto", "collapsed", "nuts", "laplace"}
        The engine.
    options : mapping
        ``draws``, ``chains`` and further arguments of the engine.

    Returns
    -------
    callable
        Takes the design with another response and a Generator, returns the draws.
    """
    nuts = method == "nuts" or (method == "auto" and design.spec.conditional is not None)
    compiled = options.keys() <= COMPILED and not isinstance(design, SummarisedDesign)
    if nuts and compiled and options.get("form") != "marginal":
        from bayeslmm.sampling.nuts import compile_nuts

        return compile_nuts(design, priors, **options)
    quiet = {"progressbar": False} if nuts else {}
    others = {**quiet, **options}
    draws, chains = others.pop("draws", 1000), others.pop("chains", 4)
    require_positive(draws=draws, chains=chains)

    def refit(changed: Design, rng: np.random.Generator) -> xr.DataTree:
        size = {"draws": draws, "chains": chains, "random_seed": rng}
        return sample_posterior(Model(changed, priors), method=method, options=others, **size)

    return refit


def require_method(method: Any) -> None:
    """Raise ValueError unless there is such an engine."""
    if method not in get_args(FitMethod):
        allowed = ", ".join(map(repr, get_args(FitMethod)))
        raise ValueError(f"method={method!r}: one of {allowed} is expected")


def require_positive(**counts: Any) -> None:
    """Raise ValueError unless every count is a whole number of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r}: a whole number of at least 1 is expected")
