"""Users' PyMC distributions as priors: recognised where closed forms exist, wrapped otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bayeslmm.exceptions import PriorError
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
    Prior,
    format_number,
)

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

_PROBES = np.concatenate([-np.logspace(8, -8, 65), np.logspace(-8, 8, 65)])


@dataclass(frozen=True, slots=True, eq=False)
class PymcPrior:
    """A scalar PyMC distribution without a closed form here.

    Attributes
    ----------
    rv : pytensor.tensor.TensorVariable
        The unnamed random variable, as ``pm.Gamma.dist(2, 0.1)`` returns it.
    text : str
        How the prior is shown.
    positive : bool
        Whether the density vanishes below zero.
    proper : bool
        Always true: a distribution that can be drawn from.
    """

    rv: Any
    text: str
    positive: bool
    _logp: Function = field(repr=False)
    _dlogp: Function = field(repr=False)
    proper: bool = True

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[Any, ...]:
        return as_prior, (self.rv, self.text)  # functions of PyTensor do not pickle

    def logpdf(self, x: ArrayLike) -> Array:
        """Return the log density at `x`, ``-inf`` outside the support."""
        x = np.asarray(x, dtype=float)
        return np.asarray(self._logp(np.ravel(x)), dtype=float).reshape(x.shape)

    def dlogpdf(self, x: ArrayLike) -> Array:
        """Return the derivative of the log density at `x`, zero outside the support."""
        x = np.asarray(x, dtype=float)
        slope = np.asarray(self._dlogp(np.ravel(x)), dtype=float).reshape(x.shape)
        return np.where(np.isfinite(self.logpdf(x)), slope, 0.0)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""
        import pymc as pm
        from pymc.distributions.shape_utils import change_dist_size
        from pytensor.tensor.random.op import RandomVariable

        how: Any = {"random_seed": int(rng.integers(2**31)), "mode": _uncompiled()}
        if isinstance(self.rv.owner.op, RandomVariable):
            draws = pm.draw(change_dist_size(self.rv, (size,)), **how)
        else:  # resizing a graph of several operations takes longer than drawing one by one
            draws = pm.draw(self.rv, draws=size, **how)
        return np.asarray(draws, dtype=float).reshape(size)

    def dist(self) -> Any:
        """Return a copy of the distribution with random generators of its own."""
        return _independent_copy(self.rv)


def as_prior(value: Any, name: str) -> Prior | LKJ:
    """Turn what a user gave into a record.

    Parameters
    ----------
    value : object
        A record of this package, a PyMC distribution made with ``.dist``, or an object that makes
        one: with a method ``to_pymc()`` or ``create_variable(name)``.
    name : str
        The key of the prior, for error messages.

    Returns
    -------
    Prior or LKJ
        A closed-form record for the families that have one, else a :class:`PymcPrior`.

    Raises
    ------
    PriorError
        For anything else: numbers, discrete or non-scalar distributions, hierarchical priors.
    """
    if isinstance(value, LKJ | Prior):
        return value
    rv = _random_variable(value, name)
    family = _family_name(rv)
    if family in ("LKJCorr", "_lkjcholeskycov", "LKJCholeskyCov"):
        return _lkj(rv, family, name)
    if rv.ndim != 0:
        raise PriorError(
            f"The prior for {name!r} has shape {tuple(rv.type.shape)}: give a scalar distribution, "
            "or one prior per parameter under its own key."
        )
    if not str(rv.dtype).startswith("float") or family == "DiracDelta":
        raise PriorError(f"The prior for {name!r} is discrete ({family}): give a continuous one.")
    return _closed_form(rv, family) or _wrap(rv, family, name)


def pymc_recipe(prior: PymcPrior) -> tuple[str, list[np.generic]] | None:
    """Family of PyMC and parameters, in PyMC's own parametrisation, from which a prior is remade.

    Returns
    -------
    tuple of (str, list of numpy scalar), or None
        Their types matter for the last digits of the density. None for what is not a family of
        PyMC with numbers for parameters: ``CustomDist``, a mixture, or a truncated distribution
        without a class of its own.
    """
    import pymc as pm

    family = _family_name(prior.rv)
    kind = getattr(getattr(pm, family, None), "rv_type", None)
    if kind is None or type(prior.rv.owner.op) is not kind:
        return None
    values = _typed_constants(prior.rv)
    known = [value for value in values if value is not None]
    return (family, known) if len(known) == len(values) else None


def from_pymc_recipe(family: str, values: Sequence[np.generic], name: str) -> Prior | LKJ:
    """The prior of :func:`pymc_recipe`.

    Raises
    ------
    PriorError
        If this version of PyMC has no such family.
    """
    import pymc as pm

    kind = getattr(pm, family, None)
    if not isinstance(kind, type) or not issubclass(kind, pm.Distribution):
        raise PriorError(f"The prior for {name!r} is {family}, which PyMC {pm.__version__} lacks.")
    try:
        make = pm.Distribution.dist.__func__  # the classes' own take other parametrisations
        return as_prior(make(kind, [np.asarray(value) for value in values]), name)
    except (TypeError, ValueError) as error:
        shown = ", ".join(map(str, values))
        raise PriorError(
            f"The prior for {name!r}, {family}({shown}), cannot be made by PyMC {pm.__version__}: "
            f"{error}"
        ) from error


def correlation_size(value: Any) -> int | None:
    """Number of coefficients a user's PyMC LKJ distribution is for; None where it does not say."""
    if getattr(value, "owner", None) is None or _family_name(value) != "LKJCorr":
        return None
    size = _constants(value)[0]
    return None if size is None else int(size)


def _random_variable(value: Any, name: str) -> Any:
    if hasattr(value, "to_pymc"):
        value = value.to_pymc()
    elif hasattr(value, "create_variable"):
        import pymc as pm

        with pm.Model() as scratch:
            value.create_variable("prior")
        value = scratch["prior"]
    owner = getattr(value, "owner", None)
    if owner is None or not hasattr(owner.op, "_print_name"):
        raise PriorError(
            f"The prior for {name!r} is not a distribution but of type {type(value).__name__}: "
            "give a PyMC distribution made with .dist, such as pm.Gamma.dist(2, 0.1), or a text "
            "such as 'gamma(2, 0.1)'."
        )
    return value


def _family_name(rv: Any) -> str:
    printed = rv.owner.op._print_name
    return str(printed[0]) if printed else str(rv.owner.op.name)


def _constants(rv: Any) -> list[float | None]:
    """Values of the parameters of a random variable; None for one that is not a constant."""
    return [None if value is None else float(value) for value in _typed_constants(rv)]


def _typed_constants(rv: Any) -> list[np.generic | None]:
    """As :func:`_constants`, in the types that the parameters have in PyMC's graph."""
    from pymc.pytensorf import constant_fold

    try:
        parameters = rv.owner.op.dist_params(rv.owner)
    except ValueError:  # PyMC's truncated distributions do not tell theirs
        return [None]
    folded = constant_fold(parameters, raise_not_constant=False)
    return [_scalar(value) for value in folded]


def _scalar(value: Any) -> np.generic | None:
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        return value.dtype.type(value.item())
    return None


def _closed_form(rv: Any, family: str) -> Prior | None:
    if family in ("Flat", "HalfFlat"):
        return Flat() if family == "Flat" else HalfFlat()
    if family not in _CLOSED_FORMS:
        return None
    values = _constants(rv)
    known = [value for value in values if value is not None]
    return _CLOSED_FORMS[family](*known) if len(known) == len(values) else None


def _half_normal(loc: float, sigma: float) -> Prior | None:
    return HalfNormal(sigma) if loc == 0 else None


_CLOSED_FORMS: dict[str, Callable[..., Prior | None]] = {
    "Normal": Normal,
    "HalfNormal": _half_normal,
    "HalfStudentT": HalfStudentT,
    "HalfCauchy": HalfCauchy,
    "Exponential": lambda scale: Exponential(1.0 / scale),
    "Gamma": lambda alpha, scale: Gamma(alpha, 1.0 / scale),
    "InverseGamma": InverseGamma,
    "LogNormal": LogNormal,
}


def _lkj(rv: Any, family: str, name: str) -> LKJ:
    if family != "LKJCorr":
        raise PriorError(
            f"The prior for {name!r} is a covariance distribution: give pm.LKJCorr.dist(n, eta) "
            "for the correlations and separate priors for the standard deviations."
        )
    eta = _constants(rv)[1]
    if eta is None:
        raise PriorError(f"The prior for {name!r} needs a number for eta.")
    return LKJ(eta)


def _wrap(rv: Any, family: str, name: str) -> PymcPrior:
    logp, dlogp = _log_density(rv, name)
    try:
        values = np.asarray(logp(_PROBES), dtype=float)
    except Exception as error:
        raise PriorError(f"The prior for {name!r} has invalid parameters: {error}") from error
    positive = not np.any(values[_PROBES < 0] > -np.inf)
    return PymcPrior(rv, _text(rv, family), positive, logp, dlogp)


def _text(rv: Any, family: str) -> str:
    values = _constants(rv)
    known = [format_number(value) for value in values if value is not None]
    return f"{family}({', '.join(known)})" if known and len(known) == len(values) else family


def _log_density(rv: Any, name: str) -> tuple[Function, Function]:
    """Log density and derivative of a scalar random variable, vectorised and uncompiled."""
    import pymc as pm
    import pytensor
    import pytensor.tensor as pt
    from pymc.pytensorf import rvs_in_graph
    from pytensor.graph.replace import vectorize_graph

    point, points = pt.dscalar("x"), pt.dvector("xs")
    try:
        density = pm.logp(rv, point)
    except (NotImplementedError, TypeError) as error:
        raise PriorError(f"PyMC has no log density for the prior of {name!r}: {error}") from error
    if rvs_in_graph(density):
        raise PriorError(
            f"The prior for {name!r} has random parameters: they must be numbers, because a "
            "hierarchical prior would add parameters to the model."
        )
    values = vectorize_graph(density, {point: points})
    compiled = pytensor.function([points], values, mode=_uncompiled(), on_unused_input="ignore")
    try:
        slopes = pytensor.grad(values.sum(), points, disconnected_inputs="ignore")
        gradient = pytensor.function([points], slopes, mode=_uncompiled(), on_unused_input="ignore")
    except NotImplementedError:
        return _quiet(compiled), _central_difference(_quiet(compiled))
    return _quiet(compiled), _quiet(gradient)


def _quiet(function: Callable[[Array], Array]) -> Function:
    """Evaluate without floating-point warnings: points outside the support are expected."""

    def evaluate(x: Array) -> Array:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(function(x))

    return evaluate


def _central_difference(logp: Function) -> Function:
    def slope(x: Array) -> Array:
        step = 1e-6 * np.maximum(np.abs(x), 1e-6)
        with np.errstate(invalid="ignore"):
            return (logp(x + step) - logp(x - step)) / (2 * step)

    return slope


def _uncompiled() -> Any:
    """PyTensor mode that runs each operation in Python: nothing to compile."""
    from pytensor.compile.mode import Mode

    return Mode(linker="py", optimizer=None)  # type: ignore[arg-type]


def _independent_copy(rv: Any) -> Any:
    """Copy a random variable so that its draws are independent of the original's."""
    import pytensor
    from pytensor.graph.replace import clone_replace
    from pytensor.graph.traversal import graph_inputs
    from pytensor.tensor.random.type import RandomType

    generators = [v for v in graph_inputs([rv]) if isinstance(v.type, RandomType)]
    fresh = {
        generator: pytensor.shared(np.random.default_rng(), borrow=True) for generator in generators
    }
    return clone_replace(rv, replace=fresh)
