"""Planned studies of one or several sizes, simulated and analysed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy.stats import norm

from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design, require_marginal
from bayeslmm.data.frames import column_names, to_frame
from bayeslmm.data.seeds import seeded
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.effects.equivalence import checked_region
from bayeslmm.estimation.executor import Executor
from bayeslmm.estimation.inference import DfMethod
from bayeslmm.estimation.judging import MAKERS
from bayeslmm.exceptions import DataError, check_choice
from bayeslmm.formula.grammar import Formula
from bayeslmm.planning.assurance import Assurance
from bayeslmm.planning.outcomes import Plans
from bayeslmm.planning.posteriors import posteriors_of
from bayeslmm.planning.power import Power, SampleSize
from bayeslmm.planning.refits import tests_of
from bayeslmm.planning.simulations import Analysis, Setup, simulate_studies
from bayeslmm.planning.sizes import check_same_columns, resized
from bayeslmm.planning.targets import Target, TestKind, targets_of
from bayeslmm.planning.truth import Truth
from bayeslmm.storage.changes import updated_design
from bayeslmm.summaries.parameters import parameters, probability, whole_number

Effects = str | Sequence[str] | None
Estimator = Literal["REML", "ML"]


def with_placeholder(formula: Formula, data: Any) -> pd.DataFrame:
    """Data as a data frame with a response that stands for one that does not exist yet.

    Raises
    ------
    DataError
        If the response is made of several variables.
    """
    frame = to_frame(data, None).reset_index(drop=True)
    missing = [name for name in formula.left.variables if name not in column_names(frame)]
    if len(formula.left.variables) > 1 and missing:
        raise DataError(
            f"The response of {formula.source!r} is made of {', '.join(missing)}: a planned study "
            "has one variable as its response."
        )
    steps = np.random.default_rng(0).uniform(1.0, 2.0, len(frame))
    return frame.assign(**dict.fromkeys(missing, steps))


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """A study: rows, model of analysis and truth.

    Attributes
    ----------
    design : Design
        Rows and model; the response is not used.
    truth : Truth
        What data are simulated from.
    df : str
        Degrees of freedom of the tests, where a test names none: those of the pilot study.
    """

    design: Design
    truth: Truth
    df: DfMethod = "satterthwaite"

    def __post_init__(self) -> None:
        if isinstance(self.design, SummarisedDesign):
            raise DataError(
                "Studies are simulated row by row, and this model has sums over its rows alone: "
                "build the model from a data frame in memory."
            )
        require_marginal(self.design, "Power by simulation")

    def frame(self) -> pd.DataFrame:
        """The rows, with the column of weights."""
        frame, weights = self.design.data.reset_index(drop=True), self.design.spec.weights
        if isinstance(weights, str) and self.design.weights is not None:
            frame = frame.assign(**{weights: self.design.weights})
        return frame

    def resized(self, along: str | None, within: str | None, size: Any) -> Planned:
        """The study with `size` levels of `along`, or rows in each level of `within`."""
        spec = self.design.spec
        frame, rows = resized(self.design, self.frame(), along, within, size)
        weights = self.design.weights
        given = None
        if weights is not None and spec.weights is None and not spec.has_errors:
            given = weights[rows]
        other = updated_design(self.design, data=frame, weights=given)
        check_same_columns(self.design, other, rows)
        return Planned(other, Truth(self._points_for(other)), self.df)

    def _points_for(self, other: Design) -> Points:
        mine, theirs = ([p.label for p in parameters(d)] for d in (self.design, other))
        if mine != theirs:
            raise DataError(
                f"A study of {other.n} rows has other covariance parameters than that of "
                f"{self.design.n} rows: {', '.join(sorted(set(mine) ^ set(theirs)))}."
            )
        return replace(self.truth.points, residual=other.spec.residual_structure)

    def count(self, along: str | None, within: str | None) -> int:
        """Number of levels of `along`, or of rows in the largest level of `within`."""
        counts = self.frame()[along or within].value_counts()
        return len(counts) if within is None else int(counts.max())

    def sized(self, sizes: Any, along: str | None, within: str | None) -> Sized:
        """The study in several sizes; as it is where none are given."""
        if sizes is None:
            if along is not None or within is not None:
                raise DataError("along= and within= need sizes=, numbers of levels or rows.")
            return Sized((self,))
        given = [sizes] if np.ndim(sizes) == 0 else list(sizes)
        chosen = tuple(sorted({whole_number(size, "sizes") for size in given}))
        if not chosen:
            raise DataError("sizes= is empty: numbers of levels or rows are expected.")
        counted = f"levels of {along}" if within is None else f"rows in each level of {within}"
        return Sized(tuple(self.resized(along, within, size) for size in chosen), chosen, counted)


@dataclass(frozen=True, slots=True, eq=False)
class Sized:
    """A study in several sizes.

    Attributes
    ----------
    studies : tuple of Planned
        One for each size.
    sizes : tuple of int
        Numbers of levels or rows; nothing for a study as it is.
    counted : str
        What they count.
    """

    studies: tuple[Planned, ...]
    sizes: tuple[int, ...] = ()
    counted: str = ""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Runs:
    """How data sets are simulated.

    Attributes
    ----------
    n : int
        Number of data sets of each study.
    random_seed : int or numpy.random.Generator or None
    executor : Executor or None
    progressbar : bool
    """

    n: int
    random_seed: int | np.random.Generator | None = None
    executor: Executor | None = None
    progressbar: bool = True

    def __post_init__(self) -> None:
        whole_number(self.n, "n")

    def seeded(self, rng: np.random.Generator) -> Runs:
        """The same with a random stream that goes on."""
        return replace(self, random_seed=rng)

    def plans(
        self,
        sized: Sized,
        targets: Callable[[Design], tuple[Target, ...]],
        analysis: Callable[[Setup], Analysis],
    ) -> Plans:
        """Simulate studies of one or several sizes."""
        setups = [Setup(own.design, own.truth, targets(own.design)) for own in sized.studies]
        outcomes = simulate_studies(
            setups,
            analysis,
            self.n,
            random_seed=self.random_seed,
            executor=self.executor,
            progressbar=self.progressbar,
        )
        return Plans(
            formula=sized.studies[0].design.formula.source,
            targets=setups[0].targets,
            outcomes=tuple(outcomes),
            sizes=sized.sizes,
            counted=sized.counted,
            rows=tuple(study.design.n for study in sized.studies),
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Tests:
    """How effects are tested in each data set.

    Attributes
    ----------
    alpha : float
        Level.
    df : str
        Method of the degrees of freedom.
    test : {"auto", "t", "F"}
        What names of effects are.
    method : {"REML", "ML"}
        The estimate.
    """

    alpha: float = 0.05
    df: DfMethod = "satterthwaite"
    test: TestKind = "auto"
    method: Estimator = "REML"

    def __post_init__(self) -> None:
        probability(self.alpha, "alpha")
        check_choice(self.df, tuple(MAKERS), "df")
        check_choice(self.method, get_args(Estimator), "method")


def power_of(sized: Sized, effects: Effects, tests: Tests, runs: Runs) -> Power:
    """Power of tests; see :meth:`bayeslmm.Study.power` and :meth:`bayeslmm.Study.power_curve`."""
    analysis = partial(tests_of, method=tests.method, df=tests.df)
    plans = runs.plans(sized, partial(targets_of, effects=effects, test=tests.test), analysis)
    return Power(plans=plans, alpha=tests.alpha)


def assurance_of(
    sized: Sized,
    effects: Effects,
    runs: Runs,
    *,
    threshold: float,
    prob: float,
    rope: Any,
    priors: Any,
) -> Assurance:
    """Assurance; see :meth:`bayeslmm.Study.assurance`."""
    threshold, prob = probability(threshold, "threshold"), probability(prob, "prob")
    region = None if rope is None else checked_region(rope)
    analysis = partial(posteriors_of, priors=priors, prob=prob)
    plans = runs.plans(sized, partial(targets_of, effects=effects, test="t"), analysis)
    return Assurance(plans=plans, threshold=threshold, prob=prob, rope=region)


# --- the size that a power takes -------------------------------------------------------


MOST_STEPS = 8
"""Sizes that a search tries."""

LARGEST_FACTOR = 4.0
"""Largest ratio of a size to the one before it."""

AROUND = (0.75, 1.0, 1.3)
"""Sizes over the one found at which the last data sets are simulated."""


def size_of(
    study: Planned,
    effect: str,
    tests: Tests,
    runs: Runs,
    *,
    power: float,
    along: str | None,
    within: str | None,
    largest: int,
) -> SampleSize:
    """Size at which a power is reached; see :meth:`Study.sample_size`.

    A step goes to where the normal quantile of the power would be, were it to rise with the square
    root of the size from its value without an effect.
    """
    power = probability(power, "power")
    largest = whole_number(largest, "largest", least=3)
    rng = seeded(runs.random_seed)
    size, tried = min(study.count(along, within), largest), set[int]()
    for _ in range(MOST_STEPS):
        tried.add(size)
        found = power_of(study.sized([size], along, within), effect, tests, runs.seeded(rng))
        share = float(found.power.iloc[0])
        new = min(_next_size(size, share, runs.n, power, tests.alpha), largest)
        if new in tried or abs(new - size) <= 0.1 * size:
            break
        size = new
    if size == largest and share < power:
        raise DataError(
            f"{largest} {found.plans.counted} have a power of {share:.2f} only, and more were not "
            "tried: raise largest=."
        )
    centre = min(float(new), largest / AROUND[-1])
    around = {max(2, round(factor * centre)) for factor in AROUND}
    sizes = sorted(around | {min(max(2, new) + 1, largest)})
    curve = power_of(study.sized(sizes, along, within), effect, tests, runs.seeded(rng))
    return curve.sample_size(power, effect)


def _next_size(size: int, share: float, n: int, power: float, alpha: float) -> int:
    """Where the power would be reached, going by that of one size."""
    kept = min(max(share, 0.5 / n), 1.0 - 0.5 / n)
    critical = norm.ppf(1.0 - 0.5 * alpha)
    now, wanted = max(norm.ppf(kept) + critical, 0.1), norm.ppf(power) + critical
    factor = min(max((wanted / now) ** 2, 1.0 / LARGEST_FACTOR), LARGEST_FACTOR)
    return max(2, round(size * factor))
