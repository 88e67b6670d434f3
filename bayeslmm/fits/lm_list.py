"""A regression in each level of a grouping factor, as before a mixed model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from bayeslmm.data.building import build_design
from bayeslmm.data.sources import open_source
from bayeslmm.estimation.level_fits import LevelFits, fit_levels
from bayeslmm.exceptions import DataError, FormulaError
from bayeslmm.formula.evaluation import own_functions
from bayeslmm.formula.grammar import Formula, parse
from bayeslmm.formula.syntax import is_operator, nest, tokens
from bayeslmm.summaries.parameters import probability
from bayeslmm.summaries.text import frame_text

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

MOST_NAMED = 5
"""Levels that a note names."""


def lm_list(
    formula: str,
    data: Any,
    *,
    weights: str | ArrayLike | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> LmList:
    """Fit a regression by least squares to the rows of each level of a grouping factor.

    Parameters
    ----------
    formula : str
        Such as ``"y ~ x | g"``: a plain formula, a bar, and the grouping factor, ``g`` or ``g:h``.
    data : DataFrame
        As for :class:`LMM`, in memory. Rows with a missing value are dropped.
    weights : str or array-like (n,), optional
        Precision weights.
    functions : mapping of str to callable, optional
        Functions of your own, as for :class:`LMM`.

    Returns
    -------
    LmList

    Raises
    ------
    FormulaError
        If the formula has no bar, something else than a grouping factor after it, or random
        effects before it.
    DataError
        If the data are not in memory, or no level has more rows than coefficients.

    Notes
    -----
    Splines, polynomials, ``center()`` and ``scale()`` are of all rows, not of those of a level.

    References
    ----------
    R's ``lme4::lmList`` and ``nlme::lmList``.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> sleep = blm.load_dataset("sleepstudy")
    >>> blm.lm_list("Reaction ~ Days | Subject", sleep).coef.round(2).head(2)
             Intercept   Days
    Subject
    308         244.19  21.76
    309         205.05   2.26
    """
    if open_source(data) is not None:
        raise DataError(
            "lm_list() takes a data frame in memory: read the rows, or those of some levels."
        )
    functions = own_functions(functions)
    read = _read(formula, functions)
    design = build_design(read, data, weights=weights, functions=functions)
    factor = design.random[0]
    roots = np.sqrt(design.row_weights)
    found = fit_levels(
        (design.y - design.offset) * roots,
        design.X * roots[:, None],
        factor.members[0].codes,
        factor.n_levels,
    )
    if found.df.sum() == 0:
        raise DataError(
            f"No level of {factor.name} has more rows than coefficients ({design.p}): there is "
            "nothing to estimate the residual variance from."
        )
    levels = pd.Index(list(factor.levels), name=factor.name)
    return LmList(formula, tuple(design.coefs), levels, found)


def _read(formula: str, functions: Collection[str]) -> Formula:
    """The formula as that of a mixed model with one plain grouping factor."""
    mixed, place = _mixed(formula)
    read = parse(mixed, functions)
    *others, term = read.random
    if others:
        raise FormulaError(
            f"A regression in each level is by least squares and has no random effects: take "
            f"{others[0].source} out, or fit the whole with LMM.",
            formula,
            *others[0].span,
        )
    if term.members is not None or term.by is not None:
        raise FormulaError(
            "After the bar stands one grouping factor, g or g:h.", formula, place, len(formula)
        )
    return read


def _mixed(formula: str) -> tuple[str, int]:
    """A formula with the bar as that of a mixed model, and the place of the bar."""
    found = tokens(formula)
    bars = [item for item in nest(formula, found) if is_operator(item, "|", "||")]
    if len(bars) != 1 or is_operator(bars[0], "||"):
        raise FormulaError(
            "A regression in each level is written as y ~ x | g: one bar, outside parentheses, and "
            "the grouping factor after it.",
            formula,
            0,
            max(1, len(formula)),
        )
    place = bars[0].start
    after = [token for token in found if token.start > place]
    if any(is_operator(token, "/", "*") for token in after) or not after:
        raise FormulaError(
            "After the bar stands one grouping factor, g or g:h.", formula, place, len(formula)
        )
    return f"{formula[:place]} + (1 | {formula[place + 1 :].strip()})", place


@dataclass(frozen=True, eq=False, repr=False)
class LmList:
    """Regressions in the levels of a grouping factor, with one residual variance or one each.

    Made by :func:`bayeslmm.lm_list`.

    Attributes
    ----------
    formula : str
        The formula as written.
    coefs : tuple of str
        Labels of the coefficients.
    levels : Index (J,)
        The levels.
    fits : LevelFits
        Coefficients, sums of squares and counts as arrays.
    """

    formula: str
    coefs: tuple[str, ...]
    levels: pd.Index
    fits: LevelFits

    @property
    def coef(self) -> pd.DataFrame:
        """Coefficients, levels by columns; NaN where a level cannot tell one."""
        return self._frame(self.fits.coef)

    @property
    def sigma(self) -> float:
        """Residual standard deviation of all levels together."""
        return float(np.sqrt(self.fits.rss.sum() / self.df))

    @property
    def df(self) -> int:
        """Its degrees of freedom: rows less coefficients, of all levels."""
        return int(self.fits.df.sum())

    @property
    def sigmas(self) -> pd.Series:
        """Residual standard deviation of each level by itself; NaN without degrees of freedom."""
        df = self.fits.df.astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.sqrt(np.where(df > 0, self.fits.rss / df, np.nan))
        return pd.Series(values, index=self.levels, name="sigma")

    @property
    def nobs(self) -> pd.Series:
        """Number of rows of each level."""
        return pd.Series(self.fits.counts, index=self.levels, name="nobs")

    @property
    def notes(self) -> tuple[str, ...]:
        """Coefficients that some levels cannot tell."""
        lacking = np.isnan(self.fits.coef)
        return tuple(
            f"{coef} cannot be told in {_some(self.levels[lacking[:, j]])}."
            for j, coef in enumerate(self.coefs)
            if lacking[:, j].any()
        )

    def std_errors(self, *, pool: bool = True) -> pd.DataFrame:
        """Standard errors of the coefficients, levels by columns.

        Parameters
        ----------
        pool : bool
            Whether all levels have one residual variance, or each its own.
        """
        sigma = np.full(len(self.levels), self.sigma) if pool else self.sigmas.to_numpy()
        return self._frame(sigma[:, None] * np.sqrt(self.fits.unscaled))

    def intervals(self, level: float = 0.95, *, pool: bool = True) -> pd.DataFrame:
        """Coefficients with standard errors and t intervals, one row per level and coefficient.

        Parameters
        ----------
        level : float
            Coverage.
        pool : bool
            As in :meth:`std_errors`; degrees of freedom are then those of all levels.

        Returns
        -------
        pandas.DataFrame
            estimate, std_error, df, conf_low, conf_high.

        References
        ----------
        R's ``nlme::intervals.lmList``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> fits = blm.lm_list("distance ~ age | Subject", blm.load_dataset("Orthodont"))
        >>> fits.intervals().loc[("M01", "age")].round(2).tolist()
        [0.95, 0.29, 54.0, 0.36, 1.54]
        """
        level = probability(level, "level")
        errors = self.std_errors(pool=pool).to_numpy()
        df = np.full(len(self.levels), self.df) if pool else self.fits.df
        with np.errstate(invalid="ignore"):
            half = errors * stats.t.isf(0.5 - 0.5 * level, np.where(df > 0, df, np.nan))[:, None]
        columns = {
            "estimate": self.fits.coef,
            "std_error": errors,
            "df": np.broadcast_to(df[:, None].astype(float), errors.shape),
            "conf_low": self.fits.coef - half,
            "conf_high": self.fits.coef + half,
        }
        index = pd.MultiIndex.from_product(
            [self.levels, list(self.coefs)], names=[self.levels.name, "coef"]
        )
        return pd.DataFrame({name: np.ravel(v) for name, v in columns.items()}, index=index)

    def plot(
        self,
        coefs: str | Sequence[str] | None = None,
        *,
        level: float | None = None,
        pool: bool = True,
        order: str = "estimate",
        backend: Any = None,
        visuals: Mapping[str, Any] | None = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Draw the coefficients of each level with their intervals, one panel per coefficient.

        Parameters
        ----------
        coefs : str or sequence of str, optional
            Coefficients to draw; all by default.
        level : float, optional
            Coverage; ArviZ's ``rcParams["stats.ci_prob"]`` by default.
        pool : bool
            As in :meth:`intervals`.
        order : str
            Levels by the first coefficient drawn ("estimate"), by "label", or by a coefficient.
        backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
            ArviZ's ``rcParams["plot.backend"]`` by default.
        visuals : mapping, optional
            Settings of "interval", "inner_interval", "point", "title", "xlabel", "ylabel",
            "yticks" and "figure_title"; False leaves one out.
        **pc_kwargs
            Passed on to ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection
            Thick lines are 50 % intervals, thin ones those of `level`.
        """
        from bayeslmm.plots.common import (
            Intervals,
            drawing,
            inner_probability,
            level_of_picture,
            two_widths,
        )
        from bayeslmm.plots.effects import plot_level_coefs

        level = level_of_picture(level)
        tables = [self.intervals(p, pool=pool) for p in (inner_probability(level), level)]
        shape = self.fits.coef.shape
        inner, outer = (
            (t["conf_low"].to_numpy().reshape(shape), t["conf_high"].to_numpy().reshape(shape))
            for t in tables
        )
        label = f"{two_widths(level)} confidence intervals"
        intervals = Intervals(self.fits.coef, inner, outer, label)
        how = drawing(backend, visuals, pc_kwargs)
        title = f"{self.formula}: {intervals.label}"
        return plot_level_coefs(self.levels, self.coefs, intervals, how, title, coefs, order)

    def _frame(self, values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(values, index=self.levels, columns=list(self.coefs))

    def __repr__(self) -> str:
        shown = self.coef if len(self.levels) <= 60 else self.coef.head(10)
        more = len(self.levels) - len(shown)
        lines = [
            f"Least squares in {len(self.levels)} levels of {self.levels.name}: {self.formula}",
            frame_text(shown) + (f"\n... ({more} more levels)" if more else ""),
            f"Residual standard deviation {self.sigma:.4g} on {self.df} degrees of freedom",
            *self.notes,
        ]
        return "\n".join(lines)


def _some(levels: pd.Index) -> str:
    first = ", ".join(str(level) for level in levels[:MOST_NAMED])
    more = f" and {len(levels) - MOST_NAMED} more" if len(levels) > MOST_NAMED else ""
    noun = "level" if len(levels) == 1 else "levels"
    return f"{len(levels)} {noun}: {first}{more}"
