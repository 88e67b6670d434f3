"""Marginal means, contrasts, slopes and average predictions: labelled linear combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bayeslmm.data.design import Design
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.effects.equivalence import checked_region, one_sided_tests, rope_columns
from bayeslmm.effects.groups import groups_of, interaction_stacked, stacked
from bayeslmm.effects.labelled import TUKEY, UNADJUSTED, LabelledQuantities
from bayeslmm.effects.letters import NOTE as LETTERS_NOTE
from bayeslmm.effects.letters import compact_letters
from bayeslmm.effects.multiplicity import (
    Adjust,
    Side,
    check_adjust,
    check_side,
)
from bayeslmm.effects.sources import (
    EstimateSource,
    PosteriorSource,
    ResponseScale,
    one_level,
    refuse_level,
    summarise_known,
)
from bayeslmm.effects.spreads import check_spread, refuse_known, residual_df, spread
from bayeslmm.effects.tests_of_fixed import f_test, noted
from bayeslmm.summaries.parameters import probability
from bayeslmm.summaries.posterior_tables import interval_defaults

Array = NDArray[np.float64]

DEFAULT_ADJUST: dict[str, Adjust] = {
    "pairwise": "tukey",
    "reference": "holm",
    "sequential": "holm",
    "effects": "holm",
    "others": "holm",
    "mean-change": "holm",
}

SUM = 1e-9
"""Sum of the weights of a contrast over that of their sizes which counts as zero."""

ONE_SIDED_SIZE = 0.05
"""Level of the one-sided tests of equivalence where none is given."""

SCALE_NOTE = "On the scale of "


def names_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name or several as a tuple, without the backticks that a formula needs around some."""
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) else tuple(value)
    return tuple(name.strip("`") if isinstance(name, str) else name for name in names)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class LinearQuantities(LabelledQuantities):
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
    transform : BackTransform or None
        The way back from the scale of a transformed response, if it is known.
    scale : ResponseScale or None
        On which scale values are shown; None for that of the model.
    grid : ReferenceGrid or None
        Of marginal means, what they average over.
    """

    def contrasts(
        self,
        method: str | Mapping[str, Any] | ArrayLike = "pairwise",
        *,
        by: str | Sequence[str] | None = None,
        adjust: Adjust | Literal["default"] | None = "default",
        ref: Any = None,
        reverse: bool = False,
        interaction: Any = None,
    ) -> LinearQuantities:
        """Contrasts of these quantities.

        Parameters
        ----------
        method : str, mapping or array-like (c, k)
            "pairwise" (each less each later one), "reference" (each less that of `ref`),
            "sequential" (each less the one before), "effects" (each less the mean of all),
            "others" (each less the mean of the others), "mean-change" (the mean of those after a
            place less that of those before), "helmert" (each less the earlier ones), "polynomial"
            (orthogonal, for equally spaced levels, in emmeans' whole numbers), "identity" (the
            quantities themselves), or weights by label: ``{"late - early": {"9": 1, "0": -1}}`` or
            ``{"late - early": [-1, 0, 1]}``, or an array of weights.
        by : str or sequence of str, optional
            Columns of `labels` within whose values contrasts are taken; those that the quantities
            were made with by default.
        adjust : str or None
            For an estimate, within each value of `by`: "tukey" (pairwise contrasts only), "mvt"
            (exact for any contrasts, by the multivariate t distribution), "dunnett" (the same, for
            ``method="reference"``), "scheffe", "bonferroni", "sidak", "holm", "hochberg", "hommel",
            "fdr" (Benjamini and Hochberg) or "by" (Benjamini and Yekutieli). The default is
            Tukey's for pairwise contrasts, none for polynomials, Helmert's, interactions and
            weights of your own, and Holm's for the others. None and "none" adjust nothing. "holm",
            "hochberg", "hommel", "fdr" and "by" have no intervals of their own; these are
            Bonferroni's then.
        ref : optional
            Level that "reference" compares with, or a list of levels whose average it does; the
            first by default.
        reverse : bool
            Differences of "pairwise", "reference" and "sequential" in the other direction.
        interaction : str, sequence or mapping, optional
            Contrasts of contrasts instead of `method`: a method for all variables that are not in
            `by`, one for each in their order (``("pairwise", "polynomial")``), or methods by
            variable.

        Returns
        -------
        LinearQuantities
            On the response's scale, contrasts of logarithms are ratios, and those of logits odds
            ratios. Other contrasts are on the transformed scale: take those of :meth:`regrid` for
            differences on the response's.

        Raises
        ------
        ValueError
            If the method, the adjustment or a column is unknown, or there is one mean only.

        Notes
        -----
        "mvt" takes the joint distribution of all contrasts of a family and, for each, its own
        degrees of freedom, as emmeans does; these need not be whole numbers. Its error is below
        1e-4, and it is the same in each call. emmeans' "dunnettx" is an approximation of it.

        References
        ----------
        R's ``emmeans::contrast``; Genz, Bretz (2009), doi:10.1007/978-3-642-01689-9, for "mvt".

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> means = model.reml().means("Machine")
        >>> means.contrasts("reference", ref="B").table()["estimate"].round(2).to_dict()
        {'A - B': -7.97, 'C - B': 5.95}
        """
        groups = self.quantities.by if by is None else names_of(by)
        labels = self.quantities.labels
        if interaction is not None:
            if method != "pairwise" or ref is not None or reverse:
                raise ValueError("interaction= stands for method=, ref= and reverse=; leave them.")
            found = interaction_stacked(labels, groups, interaction)
        else:
            found = stacked(labels, groups, method, ref=ref, reverse=reverse)
        named = method if isinstance(method, str) and interaction is None else ""
        pairwise = named == "pairwise"
        scale, texts = self._contrasted(found.matrix, found.labels, groups)
        notes = self.notes
        if np.allclose(found.matrix.sum(axis=1), 0.0):
            # what is compared has a note of its own where it interacts with what is held
            starts = tuple(f"{name} interacts with " for name in groups)
            notes = tuple(note for note in notes if not (starts and note.startswith(starts)))
        if self.scale is not None and scale is None:
            notes = (f"On the scale of {self.scale.transform.label}; see regrid().",)
        return replace(
            self,
            title=f"Contrasts of {self.title[0].lower()}{self.title[1:]}",
            quantities=self.quantities.combine(found.matrix, texts, ()),
            adjust=self._chosen(adjust, named),
            families=tuple((rows, size if pairwise else 0) for rows, size in found.families),
            notes=notes,
            scale=scale,
            transform=None,
        )

    def _chosen(self, adjust: str | None, method: str) -> Adjust:
        """The adjustment of contrasts by a method."""
        if isinstance(self.source, PosteriorSource):
            if adjust not in UNADJUSTED:
                raise ValueError(
                    f"adjust={adjust!r} is for estimates. A posterior takes "
                    "table(simultaneous=True)."
                )
            return "none"
        if adjust == "default":
            return DEFAULT_ADJUST.get(method, "none")
        chosen = check_adjust(adjust)
        if chosen == "tukey" and method != "pairwise":
            raise ValueError(TUKEY)
        if chosen == "dunnett" and method != "reference":
            raise ValueError(
                "adjust='dunnett' is for method='reference'; 'mvt' is the same for any contrasts."
            )
        return chosen

    def _contrasted(
        self, matrix: Array, labels: pd.DataFrame, by: tuple[str, ...]
    ) -> tuple[ResponseScale | None, pd.DataFrame]:
        """The scale of contrasts of these quantities, and labels that say so."""
        if self.scale is None:
            return None, labels
        size = np.abs(matrix).sum(axis=1)
        sums_to_zero = np.all(np.abs(matrix.sum(axis=1)) <= SUM * np.maximum(size, 1.0))
        if not self.scale.transform.ratio or not sums_to_zero:
            return None, labels
        others = labels.columns.difference(list(by))
        labels = labels.copy()
        labels[others] = labels[others].map(lambda text: text.replace(" - ", " / "))
        return ResponseScale(transform=self.scale.transform.ratios), labels

    # --- scales -------------------------------------------------------------------------

    def response(self, bias_correct: bool | float = False) -> LinearQuantities:
        """Show means of a transformed response on its own scale.

        Parameters
        ----------
        bias_correct : bool or float
            Whether to show the mean of the response, and not what is the median where the
            transformed response is symmetric about its mean. True takes the standard deviation of
            responses about their means, of residuals and random effects, averaged over the rows;
            a number is that standard deviation (emmeans' `sigma`).

        Returns
        -------
        LinearQuantities
            Of an estimate: standard errors by the delta method, intervals with the transformed
            ends of those of the transformed scale, and tests on that scale; corrections are
            emmeans' second-order ones. Of a posterior: each draw exactly, and means by quadrature
            with each draw's own standard deviation. Back-transformed are logarithms of any base,
            also of ``y + c`` and ``log1p``, roots, powers, reciprocals, logits written ``log(y /
            (1 - y))``, exponentials, the arcsine of the square root, and compositions.

        Raises
        ------
        ValueError
            If the response is not transformed, or not by a function with a known inverse.

        References
        ----------
        R's ``emmeans::summary(type = "response", bias.adjust = TRUE)``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> pastes = blm.load_dataset("Pastes")
        >>> reml = blm.LMM("log(strength) ~ 1 + (1 | batch / cask)", pastes).reml()
        >>> reml.means().response().table()["estimate"].round(2).to_dict()
        {'overall': 59.97}
        """
        if self.transform is None:
            raise ValueError(
                "The response is not transformed by a function with a known inverse, or these are "
                "no means, so that there is nothing to transform back."
            )
        label, sd = self.transform.label, self._correction(bias_correct)
        tests = ", which tests are on" if isinstance(self.source, EstimateSource) else ""
        notes = [f"Transformed back from the scale of {label}{tests}."]
        if sd is not None and isinstance(self.source, EstimateSource):
            notes.append(f"Bias of the way back corrected for an sd of {float(sd):.4g}.")
        elif sd is not None:
            notes.append("Means over residuals and random effects, draw by draw.")
        kept = [note for note in self.notes if not note.startswith(SCALE_NOTE)]
        scale = ResponseScale(transform=self.transform, sd=sd)
        return replace(self, scale=scale, notes=(*notes, *kept))

    def _correction(self, bias_correct: bool | float) -> float | Array | None:
        if bias_correct is False:
            return None
        if bias_correct is True:
            total = spread(self.source, "total")
            return float(total[0]) if isinstance(self.source, EstimateSource) else total
        sd = float(bias_correct)
        if not (np.isfinite(sd) and sd > 0):
            raise ValueError(f"bias_correct={bias_correct!r}: True, False or a positive number.")
        return sd

    def regrid(self) -> LinearQuantities:
        """Means on the response's scale as quantities of their own, to take differences of.

        Returns
        -------
        LinearQuantities
            Of an estimate: linear approximations about the estimate (the delta method), whose
            tests and intervals are on the response's scale. Of a posterior: the draws of means on
            the response's scale.

        Raises
        ------
        ValueError
            If there is no known way back, as in :meth:`response`.

        References
        ----------
        R's ``emmeans::regrid``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> machines = blm.load_dataset("Machines")
        >>> reml = blm.LMM("sqrt(score) ~ Machine + (1 | Worker)", machines).reml()
        >>> means = reml.means("Machine").regrid()
        >>> means.contrasts("reference").table()["estimate"].round(2).to_dict()
        {'B - A': 7.75, 'C - A': 13.92}
        """
        shown = self if self.scale is not None else self.response()
        assert shown.scale is not None
        known = self.source.space.estimable(self.quantities.weights)
        weights = self.quantities.weights
        if isinstance(self.source, PosteriorSource):
            constant = shown._draws(self.source)
            weights = np.where(known[:, None], 0.0, weights)
        else:
            value, _, _ = self.source.moments(self.quantities)
            back, slope = shown.scale.linear(value)
            weights = np.where(known[:, None], weights * slope[:, None], weights)
            constant = back - slope * (value - self.quantities.constant)
        moved = replace(self.quantities, weights=weights, constant=constant)
        notes = tuple(note for note in shown.notes if not note.startswith("Transformed back"))
        first = f"On the response's scale, from {shown.scale.transform.label}."
        return replace(self, quantities=moved, notes=(first, *notes), scale=None, transform=None)

    # --- judgements ---------------------------------------------------------------------

    def letters(self, alpha: float = 0.05, *, adjust: Adjust | None = "tukey") -> pd.DataFrame:
        """Compact letter display: means that share a letter do not differ significantly.

        Parameters
        ----------
        alpha : float
            Significance level; of a posterior, one less the probability with which the intervals of
            all differences hold at once.
        adjust : str or None
            For an estimate, the adjustment of the pairwise differences, as in :meth:`contrasts`.

        Returns
        -------
        pandas.DataFrame
            :meth:`table` with a column `letters`, from the smallest mean to the largest in each
            group of `by`. ``attrs["note"]`` says what letters do not: that means are equal.

        Raises
        ------
        ValueError
            If there is one mean only, or some are not estimable.

        References
        ----------
        Piepho (2004), doi:10.1198/1061860043515; R's ``multcomp::cld``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> cake = blm.load_dataset("cake")
        >>> reml = blm.LMM("angle ~ recipe + (1 | recipe:replicate)", cake).reml()
        >>> reml.means("recipe").letters()["letters"].to_dict()
        {'C': 'a', 'B': 'a', 'A': 'a'}
        """
        alpha = probability(alpha, "alpha")
        if not self.estimable.all():
            raise ValueError("Some means cannot be estimated, so that they cannot have letters.")
        different = self._different(alpha, adjust)
        values, table = self._centres(), self.table()
        order, letters = [], []
        for _, members in groups_of(self.quantities.labels, self.quantities.by):
            places = members[np.argsort(values[members], kind="stable")]
            order += places.tolist()
            letters += compact_letters(different[np.ix_(places, places)])
        result = table.iloc[order].assign(letters=letters)
        result.attrs["note"] = LETTERS_NOTE
        return result

    def _centres(self) -> Array:
        """One value of each quantity to order them by."""
        if isinstance(self.source, EstimateSource):
            return self.source.moments(self.quantities)[0]
        return np.asarray(np.median(self.source.values(self.quantities), axis=0))

    def _different(self, alpha: float, adjust: Adjust | None) -> NDArray[np.bool_]:
        """Which pairs (m, m) within groups differ."""
        posterior = isinstance(self.source, PosteriorSource)
        pairs = self.contrasts("pairwise", adjust="default" if posterior else adjust)
        plain = replace(pairs, scale=None)
        if posterior:
            table = plain.table(1.0 - alpha, simultaneous=True)
            low, high = table.iloc[:, -2], table.iloc[:, -1]
            flags = ((low > 0) | (high < 0)).to_numpy()
        else:
            flags = (plain.table()["p_value"] < alpha).to_numpy()
        different = np.zeros((len(self._index),) * 2, dtype=bool)
        place = 0
        for _, members in groups_of(self.quantities.labels, self.quantities.by):
            first, second = np.triu_indices(len(members), 1)
            one, other = members[first], members[second]
            different[one, other] = different[other, one] = flags[place : place + len(first)]
            place += len(first)
        return different

    def effect_sizes(
        self,
        sigma: str | float = "residual",
        *,
        edf: float | None = None,
        prob: float | None = None,
        level: float | None = None,
    ) -> pd.DataFrame:
        """Differences as multiples of a standard deviation of responses (Cohen's d).

        Parameters
        ----------
        sigma : {"residual", "total"} or float
            Standard deviation to divide by: that of the residuals; that of responses given the
            fixed effects, of residuals and random effects, averaged over the rows; or a number.
        edf : float, optional
            For an estimate, degrees of freedom of `sigma`, whose uncertainty counts: its squared
            relative error is ``1 / (2 edf)``. Found for "residual" unless residuals have a
            structure; to be given otherwise.
        prob : float, optional
            Coverage of the intervals; ArviZ's rcParams for a posterior by default, 0.95 for an
            estimate.
        level : float, optional
            For an estimate, another name of `prob`, as in its other methods.

        Returns
        -------
        pandas.DataFrame
            Of an estimate: effect_size, std_error, df (of the difference) and conf_low, conf_high.
            Of a posterior: mean, sd, median and interval of the difference over the standard
            deviation draw by draw, so that no approximation is made. Means are compared pairwise;
            contrasts are taken as they are.

        Raises
        ------
        ValueError
            If `sigma` or a coverage is not as said, or `edf` is needed.

        References
        ----------
        R's ``emmeans::eff_size``, whose standard errors these are; Cohen (1988), "Statistical Power
        Analysis for the Behavioral Sciences".

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines")).reml()
        >>> reml.means("Machine").effect_sizes("total")
        Traceback (most recent call last):
            ...
        ValueError: edf=, the degrees of freedom of sigma='total', is needed here.
        >>> reml.means("Machine").effect_sizes()["effect_size"].round(2).to_dict()
        {'A - B': -2.52, 'A - C': -4.4, 'B - C': -1.88}
        """
        pairs = replace(self._differences(), scale=None)
        given = None if isinstance(sigma, str) else float(sigma)
        if given is None:
            check_spread(str(sigma))
            refuse_known(pairs.source)
        elif not (np.isfinite(given) and given > 0):
            raise ValueError(f"sigma={sigma!r}: a positive number is expected.")
        if isinstance(pairs.source, PosteriorSource):
            refuse_level(level)
            sd = spread(pairs.source, str(sigma)) if given is None else np.array([given])
            draws = pairs.source.values(pairs.quantities) / sd[:, None]
            return summarise_known(draws, pairs._index, prob)
        wanted = one_level(prob, level)
        if edf is None and sigma == "residual":
            edf = residual_df(pairs.source.inference.fit)
        if edf is None or not edf > 0:
            raise ValueError(f"edf=, the degrees of freedom of sigma={sigma!r}, is needed here.")
        size = float(spread(pairs.source, str(sigma))[0]) if given is None else given
        value, error, df = pairs.source.moments(pairs.quantities)
        effect = value / size
        spread_of = np.sqrt((error / size) ** 2 + effect**2 / (2.0 * edf))
        margin = stats.t.isf((1.0 - wanted) / 2.0, df) * spread_of
        columns = {"effect_size": effect, "std_error": spread_of, "df": df}
        columns |= {"conf_low": effect - margin, "conf_high": effect + margin}
        return pd.DataFrame(columns, index=pairs._index)

    def _differences(self) -> LinearQuantities:
        """Themselves if they are contrasts, or their pairwise ones."""
        return self if self.families else self.contrasts("pairwise")

    def equivalence(
        self,
        bounds: float | Sequence[float],
        *,
        side: Side = "two-sided",
        alpha: float | None = None,
        prob: float | None = None,
        level: float | None = None,
    ) -> pd.DataFrame:
        """Whether quantities are practically zero: tests, or a region of practical equivalence.

        Parameters
        ----------
        bounds : float or pair of float
            Region of what counts as equivalent, on the scale shown; a number stands for that
            far on either side of zero.
        side : {"two-sided", "greater", "less"}
            Equivalent: within the bounds; non-inferior: above the lower one; non-superior: below
            the upper one.
        alpha : float, optional
            For an estimate, level of each one-sided test, below 0.5; 0.05 by default.
        prob : float, optional
            For a posterior, probability of its highest density interval, ArviZ's rcParams by
            default. For an estimate, coverage of the interval, ``1 - 2 alpha``; give one of both.
        level : float, optional
            For an estimate, another name of `prob`, as in its other methods.

        Returns
        -------
        pandas.DataFrame
            Of an estimate: p-values of the test that the quantity is not above the lower bound
            (p_above) and not below the upper one (p_below), and of equivalence, the larger of both;
            the interval that lies within the bounds where both are significant. Not adjusted for
            the number of quantities. Of a posterior: probabilities below, in and above the region,
            the highest density interval, the share of its draws that are in the region, and the
            decision by whether the interval is inside ("equivalent"), outside ("different") or
            neither ("undecided").

        Raises
        ------
        ValueError
            If an option is not as said.

        References
        ----------
        Schuirmann (1987), doi:10.1007/BF01068419; Kruschke (2018), doi:10.1177/2515245918771304;
        R's ``emmeans::test(delta=, side=)`` and ``bayestestR::equivalence_test``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> cake = blm.load_dataset("cake")
        >>> reml = blm.LMM("angle ~ recipe + (1 | recipe:replicate)", cake).reml()
        >>> reml.contrasts("recipe").equivalence(8)["decision"].tolist()
        ['equivalent', 'equivalent', 'equivalent']
        """
        region, side = checked_region(bounds, "bounds"), check_side(side)
        if isinstance(self.source, PosteriorSource):
            refuse_level(level)
            if alpha is not None:
                raise ValueError(
                    f"alpha={alpha!r} is for tests of estimates. A posterior takes prob=."
                )
            chosen, _ = interval_defaults(prob)
            columns = rope_columns(self._draws(self.source), region, side, chosen)
        else:
            size = one_sided_size(alpha, prob, level)
            moments = self.source.moments(self.quantities)
            columns = one_sided_tests(*moments, self._inner_region(bounds, region), side, size)
            if self.scale is not None:
                ends = self.scale.of_bounds(columns["conf_low"], columns["conf_high"])
                columns["conf_low"], columns["conf_high"] = ends
                columns["estimate"], columns["std_error"] = self.scale.of_estimates(*moments[:2])
        return pd.DataFrame(columns, index=self._index)

    def _inner_region(self, bounds: Any, region: tuple[float, float]) -> tuple[float, float]:
        """Bounds of equivalence on the scale of the model."""
        low, high = (float(self._inner(end, f"bounds={bounds!r}")) for end in region)
        if low >= high:
            raise ValueError("bounds= on a scale that reverses the order: take those of regrid().")
        return low, high

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


def one_sided_size(alpha: float | None, prob: float | None, level: float | None) -> float:
    """Level of one-sided tests: `alpha`, or what is on either side of an interval's coverage.

    Raises
    ------
    ValueError
        If more than one is given, or the one given is out of range.
    """
    if alpha is None:
        given = prob is not None or level is not None
        return (1.0 - one_level(prob, level)) / 2.0 if given else ONE_SIDED_SIZE
    if prob is not None or level is not None:
        raise ValueError("The interval covers 1 - 2 alpha; give one of alpha=, prob= and level=.")
    if not 0.0 < alpha < 0.5:
        raise ValueError(
            f"alpha={alpha!r}: the level of a one-sided test is between 0 and 0.5, such as 0.05."
        )
    return float(alpha)


def scale_notes(design: Design) -> tuple[str, ...]:
    """Say so where the response is not a variable of the data but a function of one."""
    name = design.response
    plain = [n for n in design.formula.left.variables if _is_column(design, n)]
    return () if plain else (f"{SCALE_NOTE}{name}, the response of the model.",)


def _is_column(design: Design, name: str) -> bool:
    if isinstance(design, SummarisedDesign):
        return design.formula.left.reading is None
    column = design.data[name]
    return pd.api.types.is_numeric_dtype(column.dtype) and bool(
        np.array_equal(design.y, column.to_numpy(dtype=np.float64))
    )
