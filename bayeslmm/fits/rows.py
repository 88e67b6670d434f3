"""Values of a fit by row of the data, which may be beyond memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, get_args, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.row_tables import Out, row_table
from bayeslmm.estimation import effects
from bayeslmm.estimation.residuals import ResidualKind, scaled_residuals
from bayeslmm.exceptions import check_choice
from bayeslmm.fits.base import FittedModel
from bayeslmm.summaries import parameters

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RowValues(FittedModel):
    """Fitted values and residuals that an estimate and a posterior both have."""

    @overload
    def fitted(self, *, random_effects: bool = True, out: None = None) -> pd.Series: ...

    @overload
    def fitted(self, *, random_effects: bool = True, out: Out) -> None: ...

    def fitted(self, *, random_effects: bool = True, out: Out | None = None) -> pd.Series | None:
        """Fitted values: offset + X beta, plus Zu unless `random_effects` is false.

        Parameters
        ----------
        random_effects : bool
            Whether they have the random effects.
        out : str or path, optional
            A Parquet file to write them to, batch by batch, beside the number of the row in the
            source (``.row``) and the variables of the formula; nothing is returned then. For data
            beyond memory, whose rows are read again; up to about a million are returned without.

        Returns
        -------
        pandas.Series

        Raises
        ------
        DataError
            If the rows are too many to be returned, cannot be read again, or are no longer those of
            the model. Nothing is written then.
        FileExistsError
            If there is such a file.
        ValueError
            If its name does not end in ``.parquet``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.fitted().iloc[:2].round(1).tolist()
        [1509.9, 1509.9]
        """
        return self._by_row("fitted", partial(self._fitted, random_effects=random_effects), out)

    def _fitted(self, rows: Design, *, random_effects: bool) -> Array:
        return effects.linear_predictor(rows, self._beta, self._u if random_effects else None)

    def _by_row(
        self, name: str, values: Callable[[Design], Array], out: Out | None
    ) -> pd.Series | None:
        """A value per row."""
        table = row_table(
            self.design, lambda rows: pd.DataFrame({name: values(rows)}, index=rows.index), out
        )
        return None if table is None else table[name]

    @overload
    def residuals(
        self, kind: ResidualKind = "response", *, random_effects: bool = True, out: None = None
    ) -> pd.Series: ...

    @overload
    def residuals(
        self, kind: ResidualKind = "response", *, random_effects: bool = True, out: Out
    ) -> None: ...

    def residuals(
        self,
        kind: ResidualKind = "response",
        *,
        random_effects: bool = True,
        out: Out | None = None,
    ) -> pd.Series | None:
        """Response less fitted values.

        Parameters
        ----------
        kind : {"response", "pearson", "normalised"}
            As they are; over their standard deviations; or multiplied by the inverse Cholesky root
            of R, so that under the model they are independent with variance one. The names are
            nlme's.
        random_effects : bool
            Whether fitted values have the random effects.
        out : str or path, optional
            As in :meth:`fitted`, which says what is raised too.

        Returns
        -------
        pandas.Series

        Raises
        ------
        ValueError
            If the kind is unknown.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> data = blm.load_dataset("sleepstudy")
        >>> fit = blm.LMM("Reaction ~ Days", data, residual="ar1(Days | Subject)").reml()
        >>> print(round(float(fit.residuals("normalised").std()), 1))
        1.0
        """
        check_choice(kind, get_args(ResidualKind), "kind")

        def values(rows: Design) -> Array:
            own = rows is self.design
            covariance = (
                self._residual if own else parameters.residual_covariance(rows, self._points)
            )
            rest = rows.y - self._fitted(rows, random_effects=random_effects)
            return scaled_residuals(rows, rest, covariance, kind)

        return self._by_row("residual", values, out)

    def with_source(self, source: Any) -> Self:
        """The same fit of a model that knows where its rows are.

        A model of data beyond memory knows that until it is saved or sent to another process; one
        that was loaded has to be told before fitted values, residual checks or cross-validation.

        Parameters
        ----------
        source : path or other source
            The rows of the model, in any order, as :class:`~bayeslmm.LMM` takes them. Each reading
            checks their number and their sums.

        Returns
        -------
        Estimate or Posterior

        Raises
        ------
        DataError
            If the model has its rows in memory.
        FormulaError
            If the source lacks columns of the formula.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> parts = [blm.load_dataset("Dyestuff")]
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", parts).reml()
        >>> len(reml.with_source(parts).fitted())
        30
        """
        return replace(self, model=self.model.with_source(source))

    def augment(self, *args: Any, **options: Any) -> Any:
        """Put fitted values and residuals beside the data, as broom.mixed's ``augment``.

        Parameters
        ----------
        data : data frame, optional
            The data the model was built from, with all columns wanted; by default the variables of
            the model in the rows used.
        incomplete : {"omit", "keep"}
            Whether rows of `data` dropped for missing values are left out or kept with NaN.
        influence : bool
            Of an estimate: whether leverages and Cook's distances are added, those of
            ``check.influence()``.
        prob : float, optional
            Of a posterior: probability of the interval.
        out : str or path, optional
            As in :meth:`fitted`: a Parquet file to write the table to, batch by batch.

        Returns
        -------
        pandas.DataFrame
            The data with their index, and columns

            - ``.fitted``; of a posterior its mean, with ``.fitted_low`` and ``.fitted_high``, the
              interval of the fitted value, without residual noise;
            - ``.fixed``: random effects at zero;
            - ``.resid``: response less ``.fitted``;
            - ``.pearson_resid``: residual over its standard deviation sigma / sqrt(weight), lme4's
              scaled Pearson residual; of a posterior the mean over the draws. No leverage enters,
              as it does into the residual of ``check.influence()`` that is called standardised;
            - of an estimate with `influence` ``.hat`` (leverage) and ``.cooksd`` (Cook's distance);
            - where the model has them, ``.offset`` and ``.weights``.

            ``attrs["rows_dropped"]`` counts the rows without.

        Raises
        ------
        ValueError
            If `incomplete` is unknown or `prob` is no probability.
        DataError
            If `data` are not those of the model.

        References
        ----------
        R's ``broom.mixed::augment.merMod``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> list(model.reml().augment().columns)
        ['Batch', 'Yield', '.fitted', '.fixed', '.resid', '.pearson_resid']
        >>> table = model.fit(method="laplace", random_seed=1).augment()
        >>> list(table.columns[2:6])
        ['.fitted', '.fitted_low', '.fitted_high', '.fixed']
        """
        raise NotImplementedError
