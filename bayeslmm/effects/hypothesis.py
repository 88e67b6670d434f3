"""Hypotheses about parameters: probabilities, odds and evidence ratios, or t tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logsumexp
from scipy.stats import norm

from bayeslmm.checks.resampled import Resampler
from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design
from bayeslmm.effects.equivalence import Bounds, checked_region
from bayeslmm.effects.expressions import (
    Comparison,
    Hypothesis,
    LinearForm,
    NotLinearError,
    OrderConstraint,
    Symbols,
    evaluate_node,
    labels_in,
    parse_hypothesis,
    symbols_of,
)
from bayeslmm.effects.multiplicity import SIDE_OF, tail_of
from bayeslmm.effects.random_labels import (
    SCOPES,
    Scope,
    coefficients_of,
    effect_at,
    effect_values,
    level_names,
    prior_values,
)
from bayeslmm.effects.sources import (
    LEVEL,
    Combinations,
    EstimateSource,
    fit_notes,
    one_level,
    refuse_level,
    summarise_known,
)
from bayeslmm.estimation.inference import Inference
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import FormulaError, SamplingError, check_choice
from bayeslmm.likelihood.batch import reduce_equations
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import beta_prior, fixed_cholesky, fixed_effects_at
from bayeslmm.prediction.rows import require_memory
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.importance import MAX_PARETO_K
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.pareto import smooth_weights
from bayeslmm.summaries.parameters import Parameter, joint_parameter, probability
from bayeslmm.summaries.posterior_tables import locate_levels
from bayeslmm.summaries.text import frame_text, html_page

Array = NDArray[np.float64]

HEADING = "Hypotheses (left side less right side)"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Hypotheses:
    """Hypotheses with what the data say about them; prints as a table.

    Attributes
    ----------
    columns : pandas.DataFrame
        One row per hypothesis, without intervals and summaries of draws.
    draws : ndarray (S, m) or None
        Posterior draws of left side less right side.
    level : float
        Coverage of the intervals of an estimate where `table` is given none.
    notes : tuple of str
        What a reader should know, such as why a figure is missing.
    """

    columns: pd.DataFrame
    draws: Array | None = None
    level: float = LEVEL
    notes: tuple[str, ...] = ()

    def table(self, prob: float | None = None, *, level: float | None = None) -> pd.DataFrame:
        """One row per hypothesis, about its left side less its right side.

        Parameters
        ----------
        prob : float, optional
            Coverage of the intervals; ArviZ's rcParams for a posterior by default, and what
            ``hypothesis()`` was given (0.95) for an estimate.
        level : float, optional
            For an estimate, another name of `prob`, as in its other methods.

        Returns
        -------
        pandas.DataFrame
            As ``fit.hypothesis()`` explains.

        Raises
        ------
        ValueError
            If the coverage is not between 0 and 1.
        """
        if self.draws is None:
            return self._tests(one_level(prob, level, self.level))
        refuse_level(level)
        summary = summarise_known(self.draws, self.columns.index, prob)
        return pd.concat([summary, self.columns], axis=1)

    def _tests(self, level: float) -> pd.DataFrame:
        value, error, df = (self.columns[name] for name in ("estimate", "std_error", "df"))
        margin = stats.t.ppf(0.5 + level / 2.0, df) * error
        return self.columns.assign(conf_low=value - margin, conf_high=value + margin)

    def __repr__(self) -> str:
        return "\n".join([HEADING, frame_text(self._shown()), *self.notes])

    def _repr_html_(self) -> str:
        return html_page(HEADING, self._shown(), self.notes)

    def _shown(self) -> pd.DataFrame:
        """The table with bounds written before the odds they belong to."""
        table = self.table()
        if "bound" not in table:
            return table
        for name in ("posterior_odds", "evidence_ratio"):
            table[name] = [
                f"{bound} {value:.4g}".strip() if np.isfinite(value) else ""
                for bound, value in zip(table["bound"], table[name], strict=True)
            ]
        return table.drop(columns="bound")


def read_hypotheses(expressions: str | Sequence[str], symbols: Symbols) -> list[Hypothesis]:
    """Read one hypothesis or several."""
    if isinstance(expressions, Mapping):
        raise TypeError(
            "Hypotheses are a text or a list of texts, such as ['Days > 0', 'Days > 5']."
        )
    sources = [expressions] if isinstance(expressions, str) else list(expressions)
    if not sources:
        raise ValueError("At least one hypothesis is expected.")
    labels = symbols.labels
    found = [
        parse_hypothesis(source, labels, lambda text: symbols.effect(text).label)
        for source in sources
    ]
    for hypothesis in found:
        for comparison in hypothesis.parts:
            symbols.check(comparison)
    return found


def single_comparisons(hypotheses: Sequence[Hypothesis]) -> list[Comparison]:
    """Hypotheses about an estimate, each a single comparison."""
    for hypothesis in hypotheses:
        if isinstance(hypothesis, OrderConstraint):
            raise FormulaError(
                "An estimate tests one comparison at a time; the probability that several hold "
                "together is a posterior's (model.fit()). Or test each of them.",
                hypothesis.source,
                0,
                len(hypothesis.source),
            )
    return [part for hypothesis in hypotheses for part in hypothesis.parts]


# --- estimates -------------------------------------------------------------------------


def estimate_hypotheses(
    design: Design, inference: Inference, expressions: str | Sequence[str], level: float = LEVEL
) -> Hypotheses:
    """Test hypotheses that are linear in the fixed effects.

    Parameters
    ----------
    design : Design
        The design of the model.
    inference : Inference
        Its estimate, and how fixed effects are judged.
    expressions : str or sequence of str
        Hypotheses.
    level : float
        Coverage of the (two-sided) intervals.

    Returns
    -------
    Hypotheses
    """
    level = probability(level, "level")
    symbols = symbols_of(design)
    comparisons = single_comparisons(read_hypotheses(expressions, symbols))
    forms = [_linear_form(symbols, comparison) for comparison in comparisons]
    quantities = Combinations(
        labels=pd.DataFrame(index=range(len(forms))),
        weights=np.array([form.weights for form in forms]),
        constant=np.array([form.constant for form in forms]),
    )
    source, families = EstimateSource(design.spec.fixed, inference), [(np.arange(len(forms)), 0)]
    table = source.table(quantities, _index(comparisons), level, "none", families)
    tests = zip(table["statistic"], table["df"], comparisons, strict=True)
    columns = table.drop(columns=["conf_low", "conf_high"]).assign(
        p_value=[float(tail_of(t, df, SIDE_OF[one.relation])) for t, df, one in tests]
    )
    return Hypotheses(columns=columns, level=level, notes=fit_notes(inference))


def _linear_form(symbols: Symbols, comparison: Comparison) -> LinearForm:
    try:
        return symbols.form(comparison.difference)
    except NotLinearError as error:
        bad = [n for n in labels_in(comparison.difference) if n.value not in symbols.linear]
        node = bad[0] if bad else comparison.difference
        raise FormulaError(
            "An estimate tests linear combinations of the fixed effects only. Ask a posterior "
            "(model.fit()) about anything else, or see confint(method='profile').",
            comparison.source,
            node.start,
            node.end,
        ) from error


# --- posteriors ------------------------------------------------------------------------


def posterior_hypotheses(
    model: Model,
    joint: JointDraws,
    expressions: str | Sequence[str],
    rope: float | Sequence[float] | None,
    scope: Scope = "standard",
    group: str | None = None,
) -> Hypotheses:
    """Judge hypotheses by posterior draws; see ``posterior.hypothesis()``.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        Draws.
    expressions : str or sequence of str
        Hypotheses.
    rope : float or pair of float or None
        Region of practical equivalence of left side less right side.
    scope : {"standard", "ranef", "coef"}
        Whether names of coefficients are of fixed effects, of the random effects of each level of
        `group`, or of the coefficients of each level.
    group : str, optional
        Grouping factor of the levels.

    Returns
    -------
    Hypotheses
    """
    symbols = symbols_of(model.design)
    region = None if rope is None else checked_region(rope)
    check_choice(scope, SCOPES, "scope")
    if scope == "standard":
        if group is not None:
            raise ValueError(f"group={group!r} is for scope='coef' or 'ranef'.")
        hypotheses = likes = read_hypotheses(expressions, symbols)
        index = _index(hypotheses)
    else:
        hypotheses, likes, index = by_level(model.design, symbols, expressions, scope, group)
    effects = symbols.effects_in(hypotheses)
    evidence = PosteriorEvidence(
        model=model,
        joint=joint,
        symbols=symbols,
        rope=region,
        effects=effect_values(model.design, joint, effects.values()),
    )
    require_memory(joint.size * len(hypotheses), "hypotheses")
    draws = np.column_stack([evidence.differences(hypothesis) for hypothesis in hypotheses])
    prior_odds = cache(evidence.log_prior_odds)
    judged = [
        evidence.judge(hypothesis, column, partial(prior_odds, like))
        for hypothesis, like, column in zip(hypotheses, likes, draws.T, strict=True)
    ]
    notes = [f"{c.source}: {j.note}" for c, j in zip(hypotheses, judged, strict=True) if j.note]
    columns = pd.DataFrame([j.row for j in judged], index=index)
    if not any(isinstance(hypothesis, OrderConstraint) for hypothesis in hypotheses):
        columns = columns.drop(columns=list(OF_CONSTRAINTS))
    return Hypotheses(columns=columns, draws=draws, notes=tuple(dict.fromkeys(notes)))


def by_level(
    design: Design,
    symbols: Symbols,
    expressions: str | Sequence[str],
    scope: Scope,
    group: str | None,
) -> tuple[list[Hypothesis], list[Hypothesis], pd.MultiIndex]:
    """Each hypothesis about the coefficients of a level, for every level of a grouping factor.

    With them those with the same prior odds: of the first level, where levels are exchangeable.
    """
    f, _ = locate_levels(design, group, None)
    factor, kind = design.random[f], "coef" if scope == "coef" else "u"
    coefs = coefficients_of(design, factor, kind)
    linear = dict.fromkeys(coefs, partial(LinearForm, np.zeros(0), 0.0))
    inner = replace(symbols, linear=linear)
    general = read_hypotheses(expressions, inner)
    names = level_names(factor)
    alike = factor.relationship is None and not factor.spec.divided
    found: list[Hypothesis] = []
    likes: list[Hypothesis] = []
    labels = []
    for hypothesis in general:
        first = len(found)
        for level, name in enumerate(names):
            at = {coef: effect_at(design, f, level, coef, kind).label for coef in coefs}
            found.append(hypothesis.renamed(at, f"{hypothesis.source} [{name}]"))
            likes.append(found[first if alike else -1])
            labels.append((hypothesis.source, factor.levels[level]))
    return found, likes, pd.MultiIndex.from_tuples(labels, names=["hypothesis", factor.name])


def _index(comparisons: Sequence[Hypothesis]) -> pd.Index:
    return pd.Index([comparison.source for comparison in comparisons], name="hypothesis")


# --- probabilities, odds and evidence ratios ----------------------------------------------


def conditional_moments(model: Model, points: Points, weights: Array) -> tuple[Array, Array]:
    """Mean and sd (S,) of ``weights @ beta`` given the data and covariance parameters.

    Parameters
    ----------
    model : Model
        A model whose priors on beta are normal or flat.
    points : Points
        S covariance parameters.
    weights : ndarray (p,)
        Weights of the coefficients.

    Returns
    -------
    mean, sd : ndarray (S,)
        Of a normal distribution.
    """
    plan, p, prior = model.system, len(weights), beta_prior(model.priors)
    with single_threaded():
        reduced = reduce_equations(plan, points)
        lower, _ = fixed_cholesky(plan, reduced.fixed, points.sigma, prior)
        noise = np.zeros((len(points.sigma), p))
        beta = fixed_effects_at(plan, prior, reduced, points.sigma, noise)
    root = np.moveaxis(lower[:p, :p], 2, 0)
    right = np.broadcast_to(plan.products.basis.fixed.T @ weights, (len(root), p))
    half = np.linalg.solve(root, right[..., None])[..., 0]
    return beta @ weights, points.sigma * np.linalg.norm(half, axis=1)


def mixture_density(
    value: float, mean: Array, sd: Array, shape: tuple[int, int]
) -> tuple[float, float]:
    """Log density at a value of an equal mixture of S normal distributions, and its error.

    Parameters
    ----------
    value : float
        Where.
    mean, sd : ndarray (S,)
        Of the distributions, at the draws of a Markov chain.
    shape : tuple of int
        Chains and draws of each, S in all.

    Returns
    -------
    density, error : float
        The error is the Monte Carlo standard error of the log; infinite where the densities have
        too heavy a tail over the draws for it to be known.
    """
    logs = norm.logpdf(value, mean, sd)
    density = float(logsumexp(logs) - np.log(len(mean)))
    ratios = np.exp(logs - density)
    if smooth_weights(logs)[1] > MAX_PARETO_K:
        return density, np.inf
    return density, float(ratios.std(ddof=1) / np.sqrt(effective_size(ratios, shape)))


def effective_size(values: Array, shape: tuple[int, int]) -> float:
    """Effective number of draws for the mean of values (S,); their number where all are equal."""
    from arviz_stats.base import array_stats

    if np.ptp(values) == 0.0:
        return float(len(values))
    return float(array_stats.ess(values.reshape(shape), method="mean"))


# --- probabilities, odds and evidence ratios of hypotheses, by draws and by exact densities ---


PRIOR_DRAWS = 20_000
"""Draws from the prior for the prior odds of what is not linear in the fixed effects."""

LINEAR_PRIOR_DRAWS = 200_000
"""The same of order constraints that are linear in normal fixed effects, which are cheap."""

OF_CONSTRAINTS = ("prior_probability", "bayes_factor", "log_bayes_factor_error")
"""Columns that are there where a hypothesis is an order constraint."""

LARGEST_ERROR = 0.1
"""Error of the log of a density at zero by draws from which on it is found by two evidences."""

HELD = 1e7
"""Posterior variance of a linear form over the variance that is left to it where it is held."""

CONSTANT = "it does not depend on the parameters."

FAR_OUT = "because hardly a draw comes near equality"

LARGEST_LOG = 650.0
"""Log odds beyond which floating-point numbers might not hold an evidence ratio."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """What the draws and the priors say about a hypothesis, and why a figure is missing."""

    row: dict[str, Any]
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A logarithm and its Monte Carlo standard error, or NaN with the reason why it is not known.

    A number that is known may have a reason to doubt it.
    """

    value: float
    reason: str = ""
    error: float = np.nan


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PosteriorEvidence:
    """What hypotheses about a posterior are judged by."""

    model: Model
    joint: JointDraws
    symbols: Symbols
    rope: Bounds | None
    effects: Mapping[str, Array]

    def differences(self, hypothesis: Hypothesis) -> Array:
        """Draws (S,) of the left side less the right side.

        Of several inequalities, of the smallest margin by which one holds: all do where it is
        positive.
        """
        parameter = partial(joint_parameter, self.joint)
        linear = partial(self._linear, self.joint.beta)
        return np.broadcast_to(
            _margins(hypothesis, self.symbols, linear, parameter, self.effects), (self.joint.size,)
        ).astype(np.float64)

    def judge(
        self, hypothesis: Hypothesis, draws: Array, prior_odds: Callable[[], Known]
    ) -> Judgement:
        """Probabilities, odds and evidence ratio of a hypothesis."""
        row: dict[str, Any] = dict.fromkeys(
            ("probability", "posterior_odds", "prior_odds", "evidence_ratio", "log_ratio_error"),
            np.nan,
        )
        row["bound"] = ""
        row |= dict.fromkeys(OF_CONSTRAINTS, np.nan)
        defined = bool(np.isfinite(draws).all())
        if self.rope is not None:
            inside = (draws >= self.rope[0]) & (draws <= self.rope[1])
            row["rope_probability"] = inside.mean() if defined else np.nan
        if not defined:
            return Judgement(row, _undefined(draws))
        if isinstance(hypothesis, Comparison) and hypothesis.relation == "=":
            ratio = self.density_ratio(hypothesis, self.form(hypothesis))
            row["evidence_ratio"], row["log_ratio_error"] = float(np.exp(ratio.value)), ratio.error
            return Judgement(row, ratio.reason)
        below = isinstance(hypothesis, Comparison) and hypothesis.relation == "<"
        draws = -draws if below else draws
        row |= posterior_odds(draws)
        prior = prior_odds()
        if prior.reason:
            return Judgement(row, prior.reason)
        row["prior_odds"] = float(np.exp(prior.value))
        row["evidence_ratio"] = float(np.exp(np.log(row["posterior_odds"]) - prior.value))
        size = effective_size((draws > 0).astype(float), self.joint.shape)
        row |= against_all(row["probability"], prior, size)
        if not row["bound"]:
            spread = 1.0 / row["probability"] + 1.0 / (1.0 - row["probability"])
            row["log_ratio_error"] = float(np.hypot(np.sqrt(spread / size), prior.error))
        return Judgement(row)

    def form(self, comparison: Comparison) -> LinearForm | None:
        """The difference as a linear form with weights (p,), or None."""
        try:
            full = self.symbols.form(comparison.difference)
        except NotLinearError:
            return None
        return LinearForm(self.model.design.spec.fixed.reduce(full.weights[None])[0], full.constant)

    def log_prior_odds(self, hypothesis: Hypothesis) -> Known:
        """Log prior odds of inequalities: exact for one that is linear under normal priors."""
        forms = [self.form(part) for part in hypothesis.parts]
        linear = [form for form in forms if form is not None]
        if len(linear) == len(forms) and self.model.priors.beta_root is not None:
            if isinstance(hypothesis, OrderConstraint):
                return _log_odds(self._linear_margins(hypothesis, linear))
            return self._exact_odds(hypothesis, linear[0])
        if not self.model.priors.proper:
            names = ", ".join(self.model.priors.improper())
            return Known(np.nan, f"no prior odds, the priors of {names} being improper.")
        differences = self._prior_differences(hypothesis)
        if np.ndim(differences) == 0:
            return Known(np.nan, CONSTANT)
        below = isinstance(hypothesis, Comparison) and hypothesis.relation == "<"
        return _log_odds((-1.0 if below else 1.0) * differences)

    def _exact_odds(self, comparison: Comparison, form: LinearForm) -> Known:
        sign = 1.0 if comparison.relation == ">" else -1.0
        mean, sd = self._prior_moments(form)
        if sd == 0.0:
            return Known(np.nan, CONSTANT)
        odds = sign * float(stats.norm.logcdf(mean / sd) - stats.norm.logsf(mean / sd))
        if abs(odds) > LARGEST_LOG:
            side = "surely false" if odds < 0 else "surely true"
            return Known(np.nan, f"no evidence ratio; it is {side} under the priors.")
        return Known(odds, error=0.0)

    def _linear_margins(self, constraint: OrderConstraint, forms: Sequence[LinearForm]) -> Array:
        """Smallest margins (S,) at prior draws of linear forms of normal fixed effects."""
        root, rng = self.model.priors.beta_root, np.random.default_rng(0)
        assert root is not None
        weights = np.stack([form.weights for form in forms])
        turned = np.linalg.solve(root.T, weights.T)  # (p, m)
        noise = rng.standard_normal((LINEAR_PRIOR_DRAWS, len(turned)))
        centre = weights @ self.model.priors.beta_mean + [form.constant for form in forms]
        signs = [1.0 if part.relation == ">" else -1.0 for part in constraint.parts]
        return np.asarray(np.min((centre + noise @ turned) * signs, axis=1))

    def density_ratio(self, comparison: Comparison, form: LinearForm | None) -> Known:
        """Log posterior over prior density of a linear form at zero."""
        if form is None:
            return Known(np.nan, self._no_density(comparison))
        if self.model.priors.beta_root is None:
            if self.model.priors.beta_sampled:
                why = "the priors of the fixed effects are not all normal"
            else:
                why = "the priors of the fixed effects are flat"
            return Known(np.nan, f"no evidence ratio, because {why}.")
        if not np.any(form.weights):
            return Known(np.nan, CONSTANT)
        mean, sd = conditional_moments(self.model, self.joint.points, form.weights)
        posterior, error = mixture_density(-form.constant, mean, sd, self.joint.shape)
        if not error < LARGEST_ERROR:
            return self._evidence_ratio(form, float(np.mean(sd**2)))
        prior_mean, prior_sd = self._prior_moments(form)
        prior = float(stats.norm.logpdf(0.0, prior_mean, prior_sd))
        return Known(posterior - prior, error=error)

    def _evidence_ratio(self, form: LinearForm, variance: float) -> Known:
        """The same where few draws come near zero: the evidence of the model held there, over its.

        The density at zero is that of the restricted model's data, the prior of the fixed effects
        being what the model's is given that the form is zero (Dickey 1971).
        """
        held = self._held_at_zero(form, variance)
        rng = np.random.default_rng(0)
        models = [
            Resampler(model, self.joint, rng)
            for model in (self.model.with_priors(held), self.model)
        ]
        if not all(model.affordable for model in models):
            return Known(np.nan, f"no evidence ratio, {FAR_OUT}, and further ones are dear.")
        try:
            (first, one), (second, other) = (model.log_evidence for model in models)
        except SamplingError as failure:
            return Known(
                np.nan, f"no evidence ratio, {FAR_OUT}, and its evidence is not known: {failure}"
            )
        return Known(first - second, error=float(np.hypot(one, other)))

    def _held_at_zero(self, form: LinearForm, variance: float) -> Priors:
        """Priors given that a linear form, whose posterior variance is given, is all but zero."""
        root, weights = self.model.priors.beta_root, form.weights
        assert root is not None
        mean, sd = self._prior_moments(form)
        shift = np.linalg.solve(root, np.linalg.solve(root.T, weights)) * (mean / sd**2)
        tight = np.linalg.qr(np.vstack([root, weights * np.sqrt(HELD / variance)]), mode="r")
        priors = self.model.priors
        return replace(priors, beta_mean=priors.beta_mean - shift, beta_root=tight)

    def prior(self, hypothesis: Hypothesis) -> tuple[float, float] | Array | None:
        """Moments of the difference under normal priors, draws under others, None if improper."""
        form = self.form(hypothesis) if isinstance(hypothesis, Comparison) else None
        if form is not None and self.model.priors.beta_root is not None:
            return self._prior_moments(form)
        return self._prior_differences(hypothesis) if self.model.priors.proper else None

    def _linear(self, beta: Array, form: LinearForm) -> Array:
        weights = self.model.design.spec.fixed.reduce(form.weights[None])[0]
        return np.asarray(beta @ weights + form.constant)

    def _prior_differences(self, hypothesis: Hypothesis) -> Array:
        rng = np.random.default_rng(0)
        draws = self.model.priors.sample(rng, PRIOR_DRAWS)
        effects = self.symbols.effects_in([hypothesis]).values()
        values = prior_values(self.model.design, draws, effects, rng) if effects else {}
        linear, parameter = partial(self._linear, draws.beta), partial(joint_parameter, draws)
        return _margins(hypothesis, self.symbols, linear, parameter, values)

    def _prior_moments(self, form: LinearForm) -> tuple[float, float]:
        mean = form.weights @ self.model.priors.beta_mean + form.constant
        assert self.model.priors.beta_root is not None
        sd = np.linalg.norm(np.linalg.solve(self.model.priors.beta_root.T, form.weights))
        return float(mean), float(sd)

    def _no_density(self, comparison: Comparison) -> str:
        """Why ``=`` has no evidence ratio for what is not linear in the fixed effects."""
        names = {node.value for node in labels_in(comparison.difference)}
        found = [self.symbols.parameters.get(name) for name in names]
        if len(found) == 1 and found[0] is not None and found[0].kind == "sd":
            with np.errstate(all="ignore"):
                if evaluate_node(comparison.difference, lambda _: np.float64(0.0)) == 0.0:
                    return (
                        "no evidence ratio, because zero is the boundary of a standard deviation; "
                        "check.singularity() says how far the data support it."
                    )
        return (
            "no evidence ratio, because only combinations that are linear in the fixed effects "
            "have a density known at a point."
        )


def _margins(
    hypothesis: Hypothesis,
    symbols: Symbols,
    linear: Callable[[LinearForm], Array],
    parameter: Callable[[Parameter], Array],
    effects: Mapping[str, Array],
) -> Array:
    """Left side less right side (S,), or the smallest margin by which several inequalities hold."""
    values = [symbols.values(part, linear, parameter, effects) for part in hypothesis.parts]
    if isinstance(hypothesis, Comparison):
        return values[0]
    signs = [1.0 if part.relation == ">" else -1.0 for part in hypothesis.parts]
    return reduce(np.minimum, (sign * value for sign, value in zip(signs, values, strict=True)))


def against_all(probability: float, prior: Known, size: float) -> dict[str, float]:
    """Bayes factor of a hypothesis against the model without it, with the error of its log.

    The quotient of its posterior and its prior probability in the model that encompasses it
    (Klugkist, Hoijtink 2007).
    """
    below = float(expit(prior.value))
    found = {"prior_probability": below, "bayes_factor": probability / below}
    if probability > 0.0:
        own = (1.0 - probability) / (probability * size)
        found["log_bayes_factor_error"] = float(np.sqrt(own + ((1.0 - below) * prior.error) ** 2))
    return found


def posterior_odds(draws: Array) -> dict[str, Any]:
    """Probability and odds of a positive value; a bound where all draws agree."""
    size, above = len(draws), int((draws > 0).sum())
    found = {"probability": above / size, "bound": ""}
    if above == size:
        return found | {"posterior_odds": float(size), "bound": ">"}
    if above == 0:
        return found | {"posterior_odds": 1.0 / size, "bound": "<"}
    return found | {"posterior_odds": above / (size - above)}


def _log_odds(draws: Array) -> Known:
    """Log odds of a positive value by prior draws, unknown where all of them agree."""
    if np.isnan(draws).any():
        return Known(np.nan, "no prior odds, because it is not defined at every prior draw.")
    above = float(np.mean(draws > 0))
    if above in (0.0, 1.0):
        size = len(draws)
        odds = f"below 1/{size}" if above == 0.0 else f"above {size}"
        which = "none" if above == 0.0 else "all"
        return Known(
            np.nan,
            f"no evidence ratio; it holds at {which} of {size} prior draws, so that its "
            f"prior odds are {odds}.",
        )
    error = float(np.sqrt((1.0 / above + 1.0 / (1.0 - above)) / len(draws)))
    return Known(float(np.log(above) - np.log1p(-above)), error=error)


def _undefined(draws: Array) -> str:
    if np.isfinite(draws).any():
        return "not defined at every draw."
    return "cannot be estimated from these data, or is not defined at any draw."
