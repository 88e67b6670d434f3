"""Several models of the same data: side by side, by likelihood-ratio tests, and whether nested."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import chdtrc

from bayeslmm.comparison.sums import differing_sums, of_sums, on_common_rows
from bayeslmm.covariance.kinds import is_within, structure_of
from bayeslmm.data.design import Design
from bayeslmm.data.random_factors import RandomFactor
from bayeslmm.estimation.executor import Executor, require_executor
from bayeslmm.exceptions import DataError, PriorError, SamplingError, listed
from bayeslmm.priors.defaults import labels_of
from bayeslmm.priors.fixed import fixed_by_slot
from bayeslmm.priors.keys import slot_names
from bayeslmm.priors.record import Priors
from bayeslmm.summaries import EstimateLike, PosteriorLike, is_estimate, is_posterior

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]
Weights = Literal["stacking", "BB-pseudo-BMA", "pseudo-BMA"]
WEIGHTS: tuple[Weights, ...] = ("stacking", "BB-pseudo-BMA", "pseudo-BMA")

NO_WEIGHT = 1e-10
"""Stacking weights below this are what the optimiser leaves of zero."""


def compare(
    fits: Mapping[str, Any],
    *,
    by: str | None = None,
    weights: Weights = "stacking",
    executor: Executor | None = None,
    progressbar: bool = True,
) -> pd.DataFrame:
    """Compare models of the same data: posteriors, their scores, or REML or ML estimates.

    Parameters
    ----------
    fits : mapping of str to Posterior, Estimate or ELPDData
        Two or more fits by name, all posteriors or all estimates; or what :meth:`Posterior.kfold`
        or :meth:`Posterior.loo` gave for each.
    by : str, optional
        For posteriors: grouping factor whose levels are left out one at a time; single rows by
        default.
    weights : {"stacking", "BB-pseudo-BMA", "pseudo-BMA"}
        For posteriors: how model weights are computed.
    executor : concurrent.futures.Executor or the like, optional
        For posteriors, as in :meth:`Posterior.loo`.
    progressbar : bool
        Whether to show one for each cross-validation.

    Returns
    -------
    pandas.DataFrame
        One row per model. For posteriors, the best first: rank, elpd (integrated leave-one-out or
        leave-one-group-out), p, elpd_diff and its standard error dse, se, weight, worst_k (largest
        Pareto k), log_evidence, its error, and model_prob (posterior probability under equal prior
        probabilities; missing where a model has no evidence). For scores the columns up to weight.
        For estimates, by increasing number
        of parameters: formula, n_parameters, loglik, aic, bic, aic_weight, and chisq, df, p_value
        of the likelihood-ratio test against the row above where all are nested (attribute
        ``lrt`` says why not otherwise).

    Raises
    ------
    TypeError
        If something else than fits is given, posteriors and estimates together, or an executor
        that has no ``submit``.
    ValueError
        If there are fewer than two fits, the data differ, or the estimates are REML fits with
        different fixed effects, or maximise different criteria.

    References
    ----------
    Yao, Vehtari, Simpson, Gelman (2018), doi:10.1214/17-BA1091, for stacking.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> sleep = blm.load_dataset("sleepstudy")
    >>> slopes = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
    >>> intercepts = blm.LMM("Reaction ~ Days + (1 | Subject)", sleep)
    >>> fits = {"slopes": slopes.fit(random_seed=1), "intercepts": intercepts.fit(random_seed=1)}
    >>> blm.compare(fits, by="Subject").index.tolist()
    ['slopes', 'intercepts']
    >>> blm.compare({"slopes": slopes.ml(), "intercepts": intercepts.ml()})["df"].tolist()
    [<NA>, 2]
    """
    require_executor(executor)
    if not isinstance(fits, Mapping) or len(fits) < 2:
        raise ValueError("Two or more fits by name are expected: compare({'a': fit, 'b': other}).")
    if weights not in WEIGHTS:
        allowed = ", ".join(map(repr, WEIGHTS))
        raise ValueError(f"weights={weights!r}: one of {allowed} is expected.")
    if all(map(_is_scores, fits.values())):
        return _compare_scores(fits, by, weights)
    _check_kinds(fits)
    for (_, first), (_, second) in pairwise(fits.items()):
        check_same_data(first.design, second.design)
    if all(map(is_estimate, fits.values())):
        if by is not None:
            raise ValueError(
                f"by={by!r} needs posteriors: estimates are compared by their likelihood, which "
                "leaves nothing out."
            )
        return _compare_estimates(fits)
    return _compare_posteriors(fits, by, weights, executor, progressbar)


def _is_scores(value: Any) -> bool:
    return hasattr(value, "elpd_i") and hasattr(value, "elpd")


def _compare_scores(fits: Mapping[str, Any], by: str | None, weights: Weights) -> pd.DataFrame:
    """Compare models by scores that are there."""
    if by is not None:
        raise ValueError(f"by={by!r} is for posteriors: scores were made with or without it.")
    for (one, first), (other, second) in pairwise(fits.items()):
        _check_same_scores(f"{one!r} and {other!r}", first, second)
    return _ranked(fits, weights)


def _check_same_scores(names: str, first: Any, second: Any) -> None:
    kinds = [(getattr(s, "kind", None), hasattr(s, "folds")) for s in (first, second)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{names} were scored in different ways, by kfold() and by loo(): use one for all."
        )
    for scores in (first, second):
        if scores.elpd_i is None:
            raise ValueError(f"{names}: scores are compared row by row, and these have no elpd_i.")
    a, b = first.elpd_i, second.elpd_i
    if a.dims != b.dims or not np.array_equal(a[a.dims[0]], b[b.dims[0]]):
        raise ValueError(f"{names} score different rows or levels: use the same data and options.")
    if hasattr(first, "folds") and not np.array_equal(first.folds, second.folds):
        raise ValueError(
            f"{names} have different folds: give kfold() the same random_seed, or folds= of one to "
            "the other."
        )


def _ranked(scores: Mapping[str, Any], weights: Weights) -> pd.DataFrame:
    """ArviZ's comparison of scores, the best first."""
    from arviz_stats import compare as arviz_compare

    table = pd.DataFrame(arviz_compare(scores, method=weights, round_to="none"))
    if weights == "stacking":
        table["weight"] = table["weight"].where(table["weight"] > NO_WEIGHT, 0.0)
    table.index.name = "model"
    return table


def _check_kinds(fits: Mapping[str, Any]) -> None:
    for name, fit in fits.items():
        if not (is_posterior(fit) or is_estimate(fit)):
            raise TypeError(
                f"{name!r} is {type(fit).__name__}; posteriors (model.fit()) or estimates "
                "(model.ml()) are expected."
            )
    if len({is_estimate(fit) for fit in fits.values()}) > 1:
        raise TypeError(
            "Posteriors and estimates have no criterion in common: compare posteriors with each "
            "other and estimates with each other; compare_reml() puts one beside the other."
        )


def _compare_posteriors(
    fits: Mapping[str, Any],
    by: str | None,
    weights: Weights,
    executor: Executor | None,
    progressbar: bool,
) -> pd.DataFrame:
    scores = {
        name: fit.loo(by, executor=executor, progressbar=progressbar) for name, fit in fits.items()
    }
    table = _ranked(scores, weights)
    table["worst_k"] = [float(scores[name].pareto_k.max()) for name in table.index]
    evidence = pd.DataFrame(
        [_evidence(fits[name]) for name in table.index],
        index=table.index,
        columns=["log_evidence", "evidence_error"],
    )
    table = table.join(evidence)
    relative = np.exp(table["log_evidence"] - table["log_evidence"].max())
    known = table["log_evidence"].notna().all()
    table["model_prob"] = relative / relative.sum() if known else np.nan
    table.attrs = {"by": by}
    return table


def _evidence(fit: PosteriorLike) -> tuple[float, float]:
    """Log evidence and its error; NaN where the priors or the engine give none."""
    try:
        found = log_evidence(fit.data.attrs, fit.priors)
    except (PriorError, SamplingError):
        return np.nan, np.nan
    return found.value, found.error


def _compare_estimates(fits: Mapping[str, EstimateLike]) -> pd.DataFrame:
    methods = {fit.method for fit in fits.values()}
    if len(methods) > 1 or "MAP" in methods:
        raise ValueError(
            f"Fits by {' and '.join(sorted(methods))} cannot be compared: refit all with ml()."
        )
    ordered = dict(sorted(fits.items(), key=lambda item: item[1].n_parameters))
    if methods == {"REML"}:
        for first, second in pairwise(ordered.values()):
            check_same_fixed(first.design, second.design)
    aic = np.array([fit.aic for fit in ordered.values()])
    relative = np.exp(-0.5 * (aic - aic.min()))
    table = pd.DataFrame(
        {
            "formula": [fit.design.formula.source for fit in ordered.values()],
            "n_parameters": [fit.n_parameters for fit in ordered.values()],
            "loglik": [fit.loglik for fit in ordered.values()],
            "aic": aic,
            "bic": [fit.bic for fit in ordered.values()],
            "aic_weight": relative / relative.sum(),
        },
        index=pd.Index(list(ordered), name="model"),
    )
    return _with_tests(table, ordered, methods.pop())


def _with_tests(table: pd.DataFrame, fits: Mapping[str, EstimateLike], method: str) -> pd.DataFrame:
    columns = ["chisq", "df", "p_value"]
    try:
        tests = lrt(*fits.values())[columns].set_axis(table.index)
        said = "Each row is tested against the row above."
    except ValueError as error:
        tests = pd.DataFrame(np.nan, index=table.index, columns=columns)
        tests["df"] = pd.array([pd.NA] * len(tests), dtype="Int64")
        said = str(error)
    table = table.join(tests)
    table.attrs = {"method": method, "lrt": said}
    return table


# --- likelihood-ratio tests ------------------------------------------------------------

LOSS = 1e-4
"""Deviance by which a larger model may be worse: what optimisers leave."""


def lrt(*estimates: EstimateLike) -> pd.DataFrame:
    """Compare nested models by likelihood-ratio tests.

    Parameters
    ----------
    *estimates : Estimate
        Two or more fits of the same data, each a special case of the next larger one: ML fits, or
        REML fits with the same fixed effects, which differ in their random effects only.

    Returns
    -------
    pandas.DataFrame
        One row per model, by increasing number of parameters, with its formula as the index.
        Columns n_parameters, aic, bic and loglik; chisq, df and p_value test the model against the
        row above. ``attrs["method"]`` is "ML" or "REML".

    Raises
    ------
    TypeError
        If something else than an estimate is given.
    ValueError
        If the likelihoods cannot be compared: posterior modes, REML beside ML, REML with different
        fixed effects, different data, models that are not nested.

    Notes
    -----
    Where the smaller model sets a variance to zero, it is on the boundary of the larger one and
    the chi-squared distribution is too wide: the p-value is conservative, for a single variance
    about twice too large [1]_. The posterior of the standard deviation has no such difficulty.

    References
    ----------
    .. [1] Self, Liang (1987), Asymptotic properties of maximum likelihood estimators and likelihood
       ratio tests under nonstandard conditions, doi:10.1080/01621459.1987.10478472.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> sleep = blm.load_dataset("sleepstudy")
    >>> formulas = ["Reaction ~ Days + (1 | Subject)", "Reaction ~ Days + (Days | Subject)"]
    >>> table = blm.lrt(*(blm.LMM(formula, sleep).ml() for formula in formulas))
    >>> table["chisq"].round(2).tolist()
    [nan, 42.14]
    """
    ordered = _ordered(estimates)
    for small, large in pairwise(ordered):
        check_same_data(small.design, large.design)
        if small.method == "REML":
            check_same_fixed(small.design, large.design)
        check_nested(small.design, large.design)
    counts = np.array([estimate.n_parameters for estimate in ordered])
    loglik = np.array([estimate.loglik for estimate in ordered])
    df = np.diff(counts)
    chisq = _statistics(loglik, ordered)
    table = pd.DataFrame(
        {
            "n_parameters": counts,
            "aic": [estimate.aic for estimate in ordered],
            "bic": [estimate.bic for estimate in ordered],
            "loglik": loglik,
            "chisq": np.append(np.nan, chisq),
            "df": pd.array([pd.NA, *df], dtype="Int64"),
            "p_value": np.append(np.nan, chdtrc(df, chisq)),
        },
        index=pd.Index([e.design.formula.source for e in ordered], name="formula"),
    )
    table.attrs = {"method": ordered[0].method, "nobs": ordered[0].design.n}
    return table


def _ordered(estimates: tuple[EstimateLike, ...]) -> list[EstimateLike]:
    """By increasing number of parameters, if all were fitted by the same likelihood."""
    for estimate in estimates:
        if not is_estimate(estimate):
            raise TypeError(
                f"Estimates are expected, got {type(estimate).__name__}: lrt(small.ml(), "
                "large.ml())."
            )
    if len(estimates) < 2:
        raise ValueError("Two or more estimates are expected: lrt(small.ml(), large.ml()).")
    methods = sorted({estimate.method for estimate in estimates})
    if "MAP" in methods:
        raise ValueError("Posterior modes have no likelihood-ratio test: refit with ml().")
    if len(methods) > 1:
        raise ValueError("REML and ML fits have different likelihoods: refit all with ml().")
    ordered = sorted(estimates, key=lambda estimate: estimate.n_parameters)
    for small, large in pairwise(ordered):
        if small.n_parameters == large.n_parameters:
            raise ValueError(
                f"`{small.design.formula.source}` and `{large.design.formula.source}` have the "
                f"same number of parameters ({small.n_parameters}), so neither is a special case "
                "of the other: compare their AIC or BIC."
            )
    return ordered


def _statistics(loglik: Array, ordered: list[EstimateLike]) -> Array:
    """Twice the gains in log likelihood; a larger model can lose only by failing to converge."""
    for estimate in ordered:
        if not estimate.fit.optimum.converged:
            _log.warning("`%s` did not converge.", estimate.design.formula.source)
    gains = 2.0 * np.diff(loglik)
    for gain, large in zip(gains, ordered[1:], strict=True):
        if gain < -LOSS:
            _log.warning(
                "`%s` has a lower likelihood than the smaller model: it is not at its maximum.",
                large.design.formula.source,
            )
    return np.maximum(gains, 0.0)


# --- whether the likelihoods of two models can be compared, and whether one contains the other ---

TOLERANCE = 1e-7
"""Share of a column's or matrix's norm that may lie outside the span of the larger model's."""

MAX_ROWS = 300
"""Rows on which covariance structures are compared."""


def check_same_data(first: Design, second: Design) -> None:
    """Refuse models of different data.

    Parameters
    ----------
    first, second : Design
        The designs of two models.

    Raises
    ------
    ValueError
        If the number of rows, the response or the weights differ.
    """
    if first.n != second.n:
        raise ValueError(
            f"The models use different data: {_rows(first)}, {_rows(second)}. Drop the rows that "
            "are incomplete in any of the variables first, then fit all models to the rest."
        )
    if of_sums(first, second):
        if what := differing_sums(first, second):
            raise ValueError(
                f"The models use different data, or different offsets: sums over the rows of "
                f"{_quoted(first)} and {_quoted(second)} differ ({what})."
            )
        return
    if not np.allclose(first.y, second.y, rtol=1e-12, atol=0.0):
        raise ValueError(
            f"The models have different responses: {first.response} in {_quoted(first)} and "
            f"{second.response} in {_quoted(second)}, or their rows are in another order."
        )
    if not np.allclose(first.row_weights, second.row_weights, rtol=1e-12, atol=0.0):
        raise ValueError(f"{_quoted(first)} and {_quoted(second)} have different weights.")


def check_same_fixed(first: Design, second: Design) -> None:
    """Refuse models with different X, whose restricted likelihoods are those of different data.

    Raises
    ------
    ValueError
        If the columns are not the same.
    """
    same = set(first.coefs) == set(second.coefs)
    if same and not of_sums(first, second):
        order = [second.coefs.index(coef) for coef in first.coefs]
        same = np.allclose(first.X, second.X[:, order], rtol=1e-12, atol=0.0)
    if not same:
        raise ValueError(
            "Restricted likelihoods of models with different fixed effects cannot be compared: "
            f"{', '.join(first.coefs)} in {_quoted(first)} and {', '.join(second.coefs)} in "
            f"{_quoted(second)}. Refit both with ml() in place of reml()."
        )


def check_nested(small: Design, large: Design) -> None:
    """Refuse a pair of models of which the first is no special case of the second.

    Covariance structures of more than `MAX_ROWS` rows are compared on some of them, so that a
    difference which shows nowhere else can be missed, but nested models never refused. Where no
    rows are kept, the models are compared on made-up ones.

    Parameters
    ----------
    small, large : Design
        Designs of the same data.

    Raises
    ------
    ValueError
        Saying which part is not nested.
    """
    small, large = on_common_rows(small, large)
    shift = (small.offset - large.offset)[:, None]
    if not _in_span(np.hstack([small.X, shift]), large.X):
        raise ValueError(_message("fixed", small, large))
    if small.spec.residual is not None and _residual(small) != _residual(large):
        raise ValueError(
            f"Whether residual={_residual(small)!r} is a special case of "
            f"residual={_residual(large)!r} is not known: compare them by AIC or evidence."
        )
    held, wanted = _known(small), _known(large)
    if free := [name for name in wanted if held.get(name) != wanted[name]]:
        raise ValueError(
            f"{_quoted(small)} is no special case of {_quoted(large)}, in which {listed(free)} is "
            "fixed and which does not have that value in the former: compare them by evidence."
        )
    rows = _some_rows([small, large])
    inner, outer = (np.column_stack(list(_directions(d, rows))) for d in (small, large))
    if not _in_span(inner, outer) or not all(
        _pattern_holds(factor, small) for factor in large.random
    ):
        raise ValueError(_message("random", small, large))


def _residual(design: Design) -> str | None:
    return None if design.spec.residual is None else design.spec.residual.formula.source


def _known(design: Design) -> dict[str, tuple[float, ...]]:
    """Coordinates of the covariance parameters that are held, by name."""
    labels = labels_of(design.spec)
    names = slot_names(labels)
    return {names[slot]: one.z for slot, one in fixed_by_slot(labels, design.spec).items()}


def _pattern_holds(factor: RandomFactor, small: Design) -> bool:
    """Whether the patterns of a factor of the larger model allow those of the smaller one."""
    own = next((own for own in small.random if own.spec.identity == factor.spec.identity), None)
    if own is None:
        return True
    found = [
        ({own.coefs[i] for i in block}, part)
        for block, part in zip(own.blocks, structure_of(own).parts, strict=True)
    ]
    labels = factor.coefs if own.spec.divided else factor.spec.plain_coefs
    for block, part in zip(factor.blocks, structure_of(factor).parts, strict=True):
        coefs = {labels[i] for i in block}
        met = [(names, own) for names, own in found if names & coefs]
        if part.mixes or not met:
            continue
        alone = len(met) == len(coefs) and all(len(names) == 1 for names, _ in met)
        if not (alone and not part.homogeneous) and not (
            len(met) == 1 and met[0][0] == coefs and is_within(met[0][1], part)
        ):
            return False
    return True


def _in_span(columns: Array, basis: Array) -> bool:
    basis = basis / np.maximum(np.linalg.norm(basis, axis=0), np.finfo(float).tiny)
    size = np.linalg.norm(columns, axis=0)
    solution = np.linalg.lstsq(basis, columns, rcond=None)[0]
    outside = np.linalg.norm(columns - basis @ solution, axis=0)
    return bool(np.all(outside <= TOLERANCE * size))


def _directions(design: Design, rows: NDArray[np.intp]) -> Iterator[Array]:
    """Upper triangles of the matrices whose combinations are the covariances of the response."""
    upper = np.triu_indices(len(rows))
    yield np.diag(1.0 / design.row_weights[rows])[upper]
    for factor in design.random:
        Z = factor.Z[rows]
        same = factor.similarity(rows[upper[0]], rows[upper[1]])
        for block, part in zip(factor.blocks, structure_of(factor).parts, strict=True):
            for i, a in enumerate(block):
                for b in block[: i + 1] if part.n_cors else (a,):
                    product = Z[upper[0], a] * Z[upper[1], b] + Z[upper[0], b] * Z[upper[1], a]
                    yield product * same


def _some_rows(designs: Sequence[Design]) -> NDArray[np.intp]:
    """Rows of whole levels of every grouping factor, as many as fit."""
    n = designs[0].n
    if n <= MAX_ROWS:
        return np.arange(n)
    factors = {factor.name: factor for design in designs for factor in design.random}
    rng = np.random.default_rng(0)
    chosen = [
        np.argsort(rng.permutation(factor.n_levels)[factor.members[0].codes], kind="stable")[
            : MAX_ROWS // len(factors)
        ]
        for factor in factors.values()
    ]
    return np.unique(np.concatenate(chosen))


def _rows(design: Design) -> str:
    dropped = design.n_dropped
    note = f" ({dropped} incomplete rows dropped)" if dropped else ""
    return f"{_quoted(design)} has {design.n} rows{note}"


def _quoted(design: Design) -> str:
    return f"`{design.formula.source}`"


def _message(part: str, small: Design, large: Design) -> str:
    return (
        f"The models are not nested: the {part} effects of {_quoted(small)} are no special case of "
        f"those of {_quoted(large)}, so there is no likelihood-ratio test between them. Compare "
        "their AIC or BIC, or their posteriors by cross-validation."
    )


# --- the log evidence of a model and Bayes factors ----------------------------------------


@dataclass(frozen=True, slots=True)
class LogEvidence:
    """Log marginal likelihood log p(y) of a model, all constants kept.

    Attributes
    ----------
    value : float
        Estimate.
    error : float
        Its Monte Carlo standard error.
    """

    value: float
    error: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.3f} (Monte Carlo error {self.error:.2g})"


@dataclass(frozen=True, slots=True)
class BayesFactor:
    """Ratio of the evidence of two models of the same data.

    Attributes
    ----------
    log : float
        Natural logarithm of the ratio; positive favours the first model.
    error : float
        Its Monte Carlo standard error.
    """

    log: float
    error: float

    @property
    def value(self) -> float:
        """The ratio itself."""
        return float(np.exp(self.log))

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.3g} (log {self.log:.3f}, Monte Carlo error {self.error:.2g})"


def log_evidence(attrs: Mapping[Any, Any], priors: Priors) -> LogEvidence:
    """Log evidence of draws by the collapsed sampler.

    Raises
    ------
    PriorError
        If a prior is improper: the evidence then has no meaning.
    SamplingError
        If another method made the draws.
    """
    if improper := priors.improper():
        raise PriorError(
            f"Under improper priors there is no evidence: {', '.join(improper)} "
            f"{'is' if len(improper) == 1 else 'are'} flat. Give proper priors."
        )
    if "log_evidence" not in attrs and priors.scale_labels is not None:
        raise SamplingError(
            "The evidence is not there for models with Student-t residuals or predictors of sigma: "
            "only the collapsed sampler estimates it. Compare them by loo(conditional=True)."
        )
    if "log_evidence" not in attrs:
        raise SamplingError(
            f"The method {attrs.get('method')!r} does not estimate the evidence: use "
            "fit(method='collapsed')."
        )
    return LogEvidence(float(attrs["log_evidence"]), float(attrs["log_evidence_error"]))


def bayes_factor(first: Any, second: Any) -> BayesFactor:
    """Compare two models of the same data by the ratio of their evidence.

    Bayes factors depend on the priors, whatever the amount of data: compare models only under
    priors that you mean.

    Parameters
    ----------
    first, second : Posterior
        Posteriors by the collapsed sampler.

    Returns
    -------
    BayesFactor
        In favour of the first model.

    Raises
    ------
    TypeError
        If something else than posteriors is given.
    DataError
        If the models have not the same response.
    PriorError
        If a prior is improper.
    SamplingError
        If another method made the draws.

    References
    ----------
    Kass, Raftery (1995), doi:10.1080/01621459.1995.10476572.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> data = blm.load_dataset("sleepstudy")
    >>> slopes = blm.LMM("Reaction ~ Days + (Days | Subject)", data).fit(random_seed=1)
    >>> intercepts = blm.LMM("Reaction ~ Days + (1 | Subject)", data).fit(random_seed=1)
    >>> round(blm.bayes_factor(slopes, intercepts).log, 1)
    17.3
    """
    for fit in (first, second):
        if not is_posterior(fit):
            raise TypeError(
                f"{type(fit).__name__} has no evidence: posteriors are expected, from model.fit()."
            )
    a, b = first.design, second.design
    if not _same_response(a, b):
        what = f"{a.n} and {b.n} rows of {a.response!r} and {b.response!r}"
        if a.n == b.n:
            what += ", with different values"
        raise DataError(
            f"A Bayes factor compares models of the same rows and response; these have {what}. "
            "Fit both to the same complete rows."
        )
    one, two = first.log_evidence, second.log_evidence
    return BayesFactor(one.value - two.value, float(np.hypot(one.error, two.error)))


def _same_response(first: Design, second: Design) -> bool:
    if of_sums(first, second):
        return first.n == second.n and not differing_sums(first, second)
    return np.array_equal(first.y, second.y)
