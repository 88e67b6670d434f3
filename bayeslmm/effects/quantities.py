"""Marginal means, contrasts, slopes and average predictions: labelled linear combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.effects.contrasts import (
    Adjust,
    adjusted_p,
    check_adjust,
    contrast_weights,
    critical_values,
    simultaneous_interval,
)
from bayeslmm.effects.tests_of_fixed import f_test, noted
from bayeslmm.estimation.inference import Inference
from bayeslmm.formula.rank import RowSpace
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import probability
from bayeslmm.summaries.posterior_tables import interval_defaults, summarise
from bayeslmm.summaries.text import frame_text, html_page

Array = NDArray[np.float64]


def names_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name or several as a tuple, without the backticks that a formula needs around some."""
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) else tuple(value)
    return tuple(name.strip("`") if isinstance(name, str) else name for name in names)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Combinations:
    """m quantities that are linear in the fixed effects: ``weights @ beta + constant``.

    Attributes
    ----------
    labels : pandas.DataFrame
        m rows: what each quantity is.
    weights : ndarray (m, p_full)
        Weights of all columns of X, dropped ones included.
    constant : ndarray (m,) or (S, m)
        What is added: the offset and, on draws, random effects.
    by : tuple of str
        Columns of `labels` within whose values contrasts are taken.
    """

    labels: pd.DataFrame
    weights: Array
    constant: Array
    by: tuple[str, ...] = ()

    def combine(self, matrix: Array, labels: pd.DataFrame, by: tuple[str, ...]) -> Combinations:
        """Linear combinations (k, m) of these quantities."""
        return replace(
            self,
            labels=labels,
            weights=_product(matrix, self.weights),
            constant=_product(matrix, self.constant.T).T,
            by=by,
        )


def _product(matrix: Array, rows: Array) -> Array:
    """``matrix @ rows`` where rows that are not defined count only with a weight."""
    lost = np.isnan(rows.reshape(len(rows), -1)).any(axis=1)
    if not lost.any():
        return matrix @ rows
    result = matrix[:, ~lost] @ rows[~lost]
    result[(matrix[:, lost] != 0).any(axis=1)] = np.nan
    return result


# --- where the uncertainty of linear combinations comes from ------------------------

Family = tuple[NDArray[np.intp], int]
"""Places of contrasts that are adjusted together, and the number of means they compare."""

LEVEL = 0.95
"""Coverage of the intervals of estimates where none is given."""


MAP_NOTE = (
    "A MAP estimate: std_error is the posterior standard deviation given the covariance parameters "
    "at the mode; tests and intervals are normal (no t tests), the intervals credible ones."
)


def fit_notes(inference: Inference) -> tuple[str, ...]:
    """What a reader of tests of an estimate should know."""
    if inference.fit.method == "MAP":
        return (MAP_NOTE,)
    return (inference.note,) if inference.note else ()


def one_level(prob: float | None, level: float | None, default: float = LEVEL) -> float:
    """Coverage of the intervals of an estimate, which may be called `prob` or `level`.

    Raises
    ------
    ValueError
        If both are given, or the one given is not between 0 and 1.
    """
    if prob is not None and level is not None:
        raise ValueError("prob= and level= are the same for an estimate; give one of them.")
    if level is not None:
        return probability(level, "level")
    return default if prob is None else probability(prob, "prob")


def refuse_level(level: float | None) -> None:
    """Raise ValueError where a posterior is given the level of an estimate's intervals."""
    if level is not None:
        raise ValueError(
            f"level={level!r} is for confidence intervals of estimates. A posterior takes prob=."
        )


def refuse_df(df: str | None) -> None:
    """Raise ValueError where a posterior is given degrees of freedom of an estimate's tests."""
    if df is not None:
        raise ValueError(
            f"df={df!r} is for t tests of estimates. A posterior has draws, whose intervals need "
            "no degrees of freedom: leave df= out, or take model.reml()."
        )


@dataclass(frozen=True, slots=True, eq=False)
class EstimateSource:
    """An estimate: t statistics of linear combinations."""

    space: RowSpace
    inference: Inference

    def table(
        self,
        quantities: Combinations,
        index: pd.Index,
        level: float,
        adjust: Adjust,
        families: Sequence[Family],
    ) -> pd.DataFrame:
        """Estimates with tests and intervals, NaN where not estimable."""
        value, error, df = self.moments(quantities)
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = np.where(error > 0, value / error, np.nan)
        p_value, margin = np.full_like(value, np.nan), np.full_like(value, np.nan)
        for rows, means in families:
            count = int(np.isfinite(statistic[rows]).sum())
            p_value[rows] = adjusted_p(statistic[rows], df[rows], adjust, means)
            margin[rows] = critical_values(level, df[rows], adjust, means, count) * error[rows]
        columns = {
            "estimate": value,
            "std_error": error,
            "df": df,
            "statistic": statistic,
            "p_value": p_value,
            "conf_low": value - margin,
            "conf_high": value + margin,
        }
        return pd.DataFrame(columns, index=index)

    def moments(self, quantities: Combinations) -> tuple[Array, Array, Array]:
        """Estimates, standard errors and degrees of freedom (m,)."""
        weights = self.space.reduce(quantities.weights)
        value = weights @ self.inference.fit.beta + quantities.constant
        variance = np.einsum("mi,ij,mj->m", weights, self.inference.vcov, weights)
        error = np.sqrt(np.maximum(variance, 0.0))
        df, known = np.full(len(value), np.nan), error > 0
        df[known] = self.inference.df(weights[known])
        return value, error, df


@dataclass(frozen=True, slots=True, eq=False)
class PosteriorSource:
    """Posterior draws of the fixed effects (S, p), S = chains x draws."""

    space: RowSpace
    beta: Array
    shape: tuple[int, int]

    def values(self, quantities: Combinations) -> Array:
        """Draws (S, m) of the quantities, NaN where not estimable."""
        weights = self.space.reduce(quantities.weights)
        return np.asarray(self.beta @ weights.T + quantities.constant)

    def table(
        self, quantities: Combinations, index: pd.Index, prob: float | None, *, joint: bool
    ) -> pd.DataFrame:
        """Summaries of the draws; with `joint`, intervals that hold all quantities at once."""
        return summarise_known(self.values(quantities), index, prob, joint=joint)


def summarise_known(
    draws: Array, index: pd.Index, prob: float | None, *, joint: bool = False
) -> pd.DataFrame:
    """Summaries of draws (S, m), NaN where some are not finite; `joint` as in `PosteriorSource`."""
    known = np.isfinite(draws).all(axis=0)
    places = pd.RangeIndex(len(known))
    table = summarise(draws[:, known], places[known], prob)
    if joint and known.any():
        chosen, _ = interval_defaults(prob)
        lower, upper = simultaneous_interval(draws[:, known], chosen)
        names = [f"joint{100 * chosen:g}_lb", f"joint{100 * chosen:g}_ub"]
        table = table.iloc[:, :-2].assign(**dict(zip(names, (lower, upper), strict=True)))
    return table.reindex(places).set_axis(index)


Source = EstimateSource | PosteriorSource


def source_of_estimate(design: Design, inference: Inference) -> EstimateSource:
    """What stands behind the combinations of an estimate."""
    return EstimateSource(design.spec.fixed, inference)


def source_of_draws(design: Design, joint: JointDraws) -> PosteriorSource:
    """What stands behind the combinations of a posterior."""
    return PosteriorSource(design.spec.fixed, joint.beta, joint.shape)


# --- marginal means, contrasts, slopes and average predictions ----------------------

if TYPE_CHECKING:
    import xarray as xr


DEFAULT_ADJUST: dict[str, Adjust] = {
    "pairwise": "tukey",
    "reference": "holm",
    "sequential": "holm",
    "effects": "holm",
}

UNADJUSTED = ("default", "none", None)
"""What a posterior takes for `adjust`: it is not adjusted."""

ADJUSTED = {"holm": "p-values adjusted for multiplicity: holm; intervals: bonferroni."}
ADJUSTED_ALIKE = "p-values and intervals adjusted for multiplicity: {}."


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class LinearQuantities:
    """Labelled quantities that are linear in the fixed effects, with their uncertainty.

    Made by ``fit.means()``, ``fit.contrasts()``, ``fit.slopes()``, ``fit.comparisons()`` and
    ``fit.average_predictions()``; prints as the table that :meth:`table` returns.

    Attributes
    ----------
    title : str
        What the quantities are.
    quantities : Combinations
        Labels, weights of the coefficients, and constants.
    source : EstimateSource or PosteriorSource
        The uncertainty of the coefficients.
    adjust : str
        Adjustment of p-values and intervals of an estimate for the number of contrasts.
    families : tuple
        Contrasts that are adjusted together.
    notes : tuple of str
        What a reader should know, such as the scale of a transformed response.
    """

    title: str
    quantities: Combinations
    source: Source
    adjust: Adjust = "none"
    families: tuple[Family, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> pd.DataFrame:
        """What each quantity is, one row for each."""
        return self.quantities.labels.copy()

    @property
    def weights(self) -> pd.DataFrame:
        """Weights of the coefficients, quantities by coefficients; NaN where not estimable."""
        weights = self.source.space.reduce(self.quantities.weights)
        return pd.DataFrame(weights, index=self._index, columns=list(self.source.space.coefs))

    @property
    def estimable(self) -> pd.Series:
        """Whether the data say anything about each quantity."""
        flags = self.source.space.estimable(self.quantities.weights)
        return pd.Series(flags, index=self._index, name="estimable")

    @property
    def draws(self) -> xr.DataArray:
        """Posterior draws, dimensions chain, draw and quantity, for ArviZ and plots.

        Raises
        ------
        TypeError
            For an estimate, which has none.
        """
        import xarray as xr

        if isinstance(self.source, EstimateSource):
            raise TypeError("An estimate has no draws; fit a posterior with model.fit().")
        values = self.source.values(self.quantities)
        coords = {"quantity": _joined(self.quantities.labels)}
        return xr.DataArray(
            values.reshape(*self.source.shape, -1),
            dims=("chain", "draw", "quantity"),
            coords=coords,
            name="value",
        )

    def table(
        self,
        prob: float | None = None,
        *,
        level: float | None = None,
        adjust: Adjust | Literal["default"] | None = "default",
        simultaneous: bool = False,
    ) -> pd.DataFrame:
        """Estimates with tests, or summaries of draws, one row per quantity.

        Parameters
        ----------
        prob : float, optional
            Coverage of the intervals; 0.95 for an estimate and ArviZ's
            ``rcParams["stats.ci_prob"]`` for a posterior by default.
        level : float, optional
            For an estimate, another name of `prob`, as in its other methods.
        adjust : {"default", "none", "tukey", "bonferroni", "holm", "sidak"} or None
            For an estimate, the adjustment of p-values and intervals for the number of contrasts
            in each family: what ``contrasts()`` was given by default; None and "none" adjust
            nothing. Holm has no intervals of its own; they are Bonferroni's then.
        simultaneous : bool
            For a posterior, intervals in which all quantities lie at once with probability
            `prob`. A posterior needs no other adjustment.

        Returns
        -------
        pandas.DataFrame
            Estimate: estimate, std_error, df, statistic, p_value, conf_low,
            conf_high. Posterior: mean, sd, median and interval. NaN where not estimable.

        Raises
        ------
        ValueError
            If an option does not fit the kind of fit or of contrasts.

        References
        ----------
        R's ``summary.emmGrid(infer = TRUE)``; Besag et al. (1995), doi:10.1214/ss/1177010123, for
        simultaneous intervals.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> model.reml().means("Machine").table()["estimate"].round(2).tolist()
        [52.36, 60.32, 66.27]
        """
        if isinstance(self.source, PosteriorSource):
            refuse_level(level)
            if adjust not in UNADJUSTED:
                raise ValueError(
                    f"adjust={adjust!r} is for estimates. A posterior takes simultaneous=True."
                )
            return self.source.table(self.quantities, self._index, prob, joint=simultaneous)
        if simultaneous:
            raise ValueError("simultaneous=True is for posteriors; an estimate takes adjust=.")
        chosen = self.adjust if adjust == "default" else check_adjust(adjust)
        families = self._families
        if chosen == "tukey" and any(means == 0 for _, means in families):
            raise ValueError("adjust='tukey' is for pairwise contrasts; take 'holm' or 'sidak'.")
        wanted = one_level(prob, level)
        return self.source.table(self.quantities, self._index, wanted, chosen, families)

    def contrasts(
        self,
        method: str | Mapping[str, Any] | ArrayLike = "pairwise",
        *,
        by: str | Sequence[str] | None = None,
        adjust: Adjust | Literal["default"] | None = "default",
    ) -> LinearQuantities:
        """Contrasts of these quantities.

        Parameters
        ----------
        method : str, mapping or array-like (c, k)
            "pairwise" (each less each later one), "reference" (each less the first),
            "sequential" (each less the one before), "effects" (each less the mean of all),
            "polynomial" (orthogonal, for equally spaced levels, in emmeans' whole numbers), or
            weights by label: ``{"late - early": {"9": 1, "0": -1}}`` or
            ``{"late - early": [-1, 0, 1]}``, or an array of weights.
        by : str or sequence of str, optional
            Columns of `labels` within whose values contrasts are taken; those that the quantities
            were made with by default.
        adjust : {"default", "none", "tukey", "bonferroni", "holm", "sidak"} or None
            For an estimate, within each value of `by`. The default is Tukey's for pairwise
            contrasts, Holm's against a reference, sequential and of effects, and none for
            polynomials and weights of your own. None and "none" adjust nothing.

        Returns
        -------
        LinearQuantities

        Raises
        ------
        ValueError
            If the method, the adjustment or a column is unknown, or there is one mean only.

        References
        ----------
        R's ``emmeans::contrast``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> means = model.reml().means("Machine")
        >>> means.contrasts("reference").table()["estimate"].round(2).to_dict()
        {'B - A': 7.97, 'C - A': 13.92}
        """
        groups = self.quantities.by if by is None else names_of(by)
        matrix, labels, families = _stacked(self.quantities.labels, groups, method)
        pairwise = isinstance(method, str) and method == "pairwise"
        if isinstance(self.source, PosteriorSource):
            if adjust not in UNADJUSTED:
                raise ValueError(
                    f"adjust={adjust!r} is for estimates. A posterior takes "
                    "table(simultaneous=True)."
                )
            chosen: Adjust = "none"
        elif adjust == "default":
            chosen = DEFAULT_ADJUST.get(method, "none") if isinstance(method, str) else "none"
        else:
            chosen = check_adjust(adjust)
        if chosen == "tukey" and not pairwise:
            raise ValueError("adjust='tukey' is for pairwise contrasts; take 'holm' or 'sidak'.")
        return LinearQuantities(
            title=f"Contrasts of {self.title[0].lower()}{self.title[1:]}",
            quantities=self.quantities.combine(matrix, labels, ()),
            source=self.source,
            adjust=chosen,
            families=tuple((rows, size if pairwise else 0) for rows, size in families),
            notes=self.notes,
        )

    def joint_test(self) -> pd.DataFrame:
        """F test that all quantities are zero at once.

        Returns
        -------
        pandas.DataFrame
            One row: num_df, den_df, statistic, p_value and, where residuals have no structure,
            sum_sq and mean_sq.

        Raises
        ------
        TypeError
            For a posterior; ``table(simultaneous=True)`` is the joint statement there.
        ValueError
            If no quantity is estimable.

        References
        ----------
        R's ``emmeans::test(joint = TRUE)`` with the degrees of freedom of lmerTest by default.
        """
        if isinstance(self.source, PosteriorSource):
            raise TypeError("A joint test is for estimates; table(simultaneous=True) is its like.")
        weights = self.source.space.reduce(self.quantities.weights)
        known = np.isfinite(weights).all(axis=1)
        if not known.any():
            raise ValueError("None of the quantities can be estimated.")
        value = -self.quantities.constant[known]
        test = f_test(self.source.inference, weights[known], value)
        table = pd.DataFrame([test], index=pd.Index(["joint"], name="test"))
        return noted(self.source.inference, table)

    @property
    def _index(self) -> pd.Index:
        labels = self.quantities.labels
        if labels.shape[1] == 1:
            return pd.Index(labels.iloc[:, 0], name=labels.columns[0])
        return pd.MultiIndex.from_frame(labels)

    @property
    def _families(self) -> tuple[Family, ...]:
        return self.families or ((np.arange(len(self._index)), 0),)

    @property
    def _adjusts(self) -> bool:
        """Whether the adjustment changes anything: there are several contrasts in a family."""
        if self.adjust == "none" or isinstance(self.source, PosteriorSource):
            return False
        known = self.estimable.to_numpy()
        if self.adjust == "tukey":
            return any(means > 2 and known[rows].any() for rows, means in self._families)
        return any(known[rows].sum() > 1 for rows, _ in self._families)

    def _lines(self) -> list[str]:
        lines = list(self.notes)
        if isinstance(self.source, EstimateSource):
            lines += fit_notes(self.source.inference)
        if self._adjusts:
            lines.append(ADJUSTED.get(self.adjust, ADJUSTED_ALIKE.format(self.adjust)))
        lost = int((~self.estimable).sum())
        if lost:
            lines.append(f"{lost} of {len(self.estimable)} cannot be estimated from these data.")
        return lines

    def __repr__(self) -> str:
        labels = self.quantities.labels.map(text_of)
        table = pd.concat([labels, self.table().set_axis(labels.index)], axis=1)
        text = frame_text(table.set_axis([""] * len(table), axis=0))
        return "\n".join([self.title, text, *self._lines()])

    def _repr_html_(self) -> str:
        return html_page(self.title, self.table(), self._lines())


def scale_notes(design: Design) -> tuple[str, ...]:
    """Say so where the response is not a variable of the data but a function of one."""
    name = design.response
    plain = [n for n in design.formula.left.variables if _is_column(design, n)]
    return () if plain else (f"On the scale of {name}, the response of the model.",)


def _is_column(design: Design, name: str) -> bool:
    if isinstance(design, SummarisedDesign):
        return design.formula.left.reading is None
    column = design.data[name]
    return pd.api.types.is_numeric_dtype(column.dtype) and bool(
        np.array_equal(design.y, column.to_numpy(dtype=np.float64))
    )


def text_of(value: Any) -> str:
    """A level or a number as labels show it."""
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _joined(labels: pd.DataFrame) -> list[str]:
    return [" ".join(map(text_of, row)) for row in labels.itertuples(index=False)]


def _stacked(
    labels: pd.DataFrame, by: tuple[str, ...], method: Any
) -> tuple[Array, pd.DataFrame, list[Family]]:
    """Weights, labels and families of contrasts within groups."""
    unknown = [name for name in by if name not in labels.columns]
    if unknown:
        raise ValueError(f"by={unknown}: columns among {', '.join(labels.columns)} are expected.")
    others = labels.drop(columns=list(by))
    if others.shape[1] == 0:
        raise ValueError("Every variable is in by=, so that there is nothing to contrast.")
    rows: list[Array] = []
    records: list[dict[str, Any]] = []
    families: list[Family] = []
    for value, members in _groups(labels, by):
        names = _joined(others.iloc[members])
        levels = [row if len(row) > 1 else row[0] for row in others.iloc[members].values.tolist()]
        levels = [tuple(level) if isinstance(level, list) else level for level in levels]
        if len(members) < 2 and isinstance(method, str):
            raise ValueError(
                f"There is one mean only ({', '.join(names) or 'overall'}), and nothing to contrast"
                " it with."
            )
        weights, texts = contrast_weights(method, names, levels)
        block = np.zeros((len(weights), len(labels)))
        block[:, members] = weights
        families.append((np.arange(len(records), len(records) + len(texts)), len(members)))
        rows.append(block)
        records += [dict(zip(by, value, strict=True)) | {"contrast": text} for text in texts]
    return np.vstack(rows), pd.DataFrame(records), families


def _groups(
    labels: pd.DataFrame, by: tuple[str, ...]
) -> list[tuple[tuple[Any, ...], NDArray[np.intp]]]:
    if not by:
        return [((), np.arange(len(labels)))]
    places: dict[tuple[Any, ...], list[int]] = {}
    for i, key in enumerate(labels[list(by)].itertuples(index=False, name=None)):
        places.setdefault(key, []).append(i)
    return [(key, np.array(members)) for key, members in places.items()]
