"""Labelled quantities that are linear in the fixed effects: values, tables and prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bayeslmm.effects.back_transform import BackTransform
from bayeslmm.effects.groups import joined, text_of
from bayeslmm.effects.multiplicity import (
    STEPWISE,
    Adjust,
    Side,
    check_adjust,
    check_side,
)
from bayeslmm.effects.sources import (
    Combinations,
    EstimateSource,
    Family,
    PosteriorSource,
    Question,
    ResponseScale,
    Source,
    fit_notes,
    one_level,
    refuse_level,
    summarise_known,
)
from bayeslmm.summaries.text import frame_text, html_page

Array = NDArray[np.float64]

if TYPE_CHECKING:
    import xarray as xr

    from bayeslmm.effects.reference_grid import ReferenceGrid


ONE_SIDED: dict[Adjust, Adjust] = {"tukey": "mvt", "scheffe": "bonferroni"}
"""What stands for a default adjustment that is for two-sided tests only."""

TUKEY = "adjust='tukey' is for pairwise contrasts; take 'mvt', which is exact, 'holm' or another."

UNADJUSTED = ("default", "none", None)
"""What a posterior takes for `adjust`: it is not adjusted."""

ADJUSTED = "p-values adjusted for multiplicity: {}; intervals: bonferroni."
ADJUSTED_ALIKE = "p-values and intervals adjusted for multiplicity: {}."


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class LabelledQuantities:
    """Quantities with their uncertainty: the attributes and tables of `LinearQuantities`."""

    title: str
    quantities: Combinations
    source: Source
    adjust: Adjust = "none"
    families: tuple[Family, ...] = ()
    notes: tuple[str, ...] = ()
    transform: BackTransform | None = None
    scale: ResponseScale | None = None
    grid: ReferenceGrid | None = None

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
        values = self._draws(self.source)
        coords = {"quantity": joined(self.quantities.labels)}
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
        null: float | ArrayLike | None = None,
        side: Side = "two-sided",
    ) -> pd.DataFrame:
        """Estimates with tests, or summaries of draws, one row per quantity.

        Parameters
        ----------
        prob : float, optional
            Coverage of the intervals; 0.95 for an estimate and ArviZ's
            ``rcParams["stats.ci_prob"]`` for a posterior by default.
        level : float, optional
            For an estimate, another name of `prob`, as in its other methods.
        adjust : str or None
            For an estimate, the adjustment of p-values and intervals for the number of contrasts
            in each family, one of those of :meth:`contrasts`: what ``contrasts()`` was given by
            default; None and "none" adjust nothing.
        simultaneous : bool
            For a posterior, intervals in which all quantities lie at once with probability
            `prob`. A posterior needs no other adjustment.
        null : float or array-like (m,), optional
            Value that quantities are compared with, on the scale shown; by default zero
            on the scale of the model, which is a ratio of 1.
        side : {"two-sided", "greater", "less"}
            The alternative. Intervals are one-sided too. Of a posterior, "greater" and "less" add
            the `probability` of lying on that side of `null`.

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
        values = self._null(null)
        if isinstance(self.source, PosteriorSource):
            refuse_level(level)
            if adjust not in UNADJUSTED:
                raise ValueError(
                    f"adjust={adjust!r} is for estimates. A posterior takes simultaneous=True."
                )
            return self._summary(
                self.source, prob, simultaneous, None if null is None else values, check_side(side)
            )
        if simultaneous:
            raise ValueError("simultaneous=True is for posteriors; an estimate takes adjust=.")
        chosen = self.adjust if adjust == "default" else check_adjust(adjust)
        families = self._families
        if chosen == "tukey" and any(means == 0 for _, means in families):
            raise ValueError(TUKEY)
        if adjust == "default" and side != "two-sided" and chosen in ONE_SIDED:
            chosen = ONE_SIDED[chosen]
        values = self._inner(values, f"null={null!r}") if null is not None else values
        question = Question(null=values, side=check_side(side, chosen), scale=self.scale)
        wanted = one_level(prob, level)
        return self.source.table(self.quantities, self._index, wanted, chosen, families, question)

    def _null(self, null: float | ArrayLike | None) -> float | Array:
        if null is None:
            return 0.0
        values = np.asarray(null, dtype=np.float64)
        count = len(self._index)
        if values.shape not in ((), (count,)) or not np.isfinite(values).all():
            raise ValueError(
                f"null={null!r}: a finite number, or one for each of the {count} quantities, is "
                "expected."
            )
        return values

    def _inner(self, values: float | Array, what: str) -> float | Array:
        """Values on the scale shown, on that of the model."""
        if self.scale is None:
            return values
        if self.scale.sd is not None:
            raise ValueError(f"{what} cannot be compared with means corrected for bias.")
        return self.scale.transform.forward(np.asarray(values, dtype=np.float64), what)

    def _draws(self, source: PosteriorSource) -> Array:
        """Draws (S, m) on the scale that is shown."""
        draws = source.values(self.quantities)
        return draws if self.scale is None else self.scale.of_draws(draws)

    def _summary(
        self,
        source: PosteriorSource,
        prob: float | None,
        simultaneous: bool,
        null: float | Array | None,
        side: Side,
    ) -> pd.DataFrame:
        table = summarise_known(self._draws(source), self._index, prob, joint=simultaneous)
        if side == "two-sided":
            return table
        draws = source.values(self.quantities) if null is None else self._draws(source)
        null = 0.0 if null is None else null
        beyond = draws > null if side == "greater" else draws < null
        known = np.isfinite(draws).all(axis=0)
        return table.assign(probability=np.where(known, beyond.mean(axis=0), np.nan))

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
            text = ADJUSTED if self.adjust in STEPWISE else ADJUSTED_ALIKE
            lines.append(text.format(self.adjust))
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
