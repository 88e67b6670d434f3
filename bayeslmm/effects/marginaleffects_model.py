"""The fixed effects of a fit as a model of the Python package marginaleffects."""

from __future__ import annotations

from typing import Any, override

import numpy as np
import pandas as pd
import polars as pl
from marginaleffects.classes import ModelAbstract, ModelVault
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.effects.sources import EstimateSource, Source
from bayeslmm.effects.variables import is_factor, variables_of
from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]


class FixedEffects(ModelAbstract):
    """Predictions of the fixed part, by its coefficients, for marginaleffects.

    Parameters
    ----------
    design : Design
        The design of the model.
    coef : ndarray (p,)
        Fixed effects.
    vcov : ndarray (p, p)
        Their covariance matrix.
    """

    def __init__(self, design: Design, coef: Array, vcov: Array) -> None:
        names = list(variables_of(design).names)
        response = sorted(design.formula.left.variables)
        vault = ModelVault(
            coef=coef,
            coefnames=np.array(design.coefs),
            formula=self._matrices,
            modeldata=_polars(design, [*response, *names]),
            package="bayeslmm",
            vcov=vcov,
            variable_names=[response[0], *names],
        )
        self.design = design
        super().__init__(design, vault)

    @override
    def validation(self) -> None:
        """Nothing is left to check; kinds of the variables, as marginaleffects calls them."""
        self.coef = self.vault.coef
        self.formula = self.vault.formula
        self.response_name = self.find_response()
        data = self.vault.modeldata
        self.vault.variables_type = {name: _kind(data[name]) for name in data.columns}

    def _matrices(self, rows: Any) -> tuple[None, Array]:
        return None, self.get_exog(rows)

    @override
    def get_exog(self, newdata: Any) -> Array:
        """Columns (n, p) of the fixed effects, and the offset last."""
        frame = _pandas(self.design, newdata)
        rows = self.design.spec.rows(frame, random="none")
        kept = rows.X_full[:, self.design.spec.fixed.kept]
        return np.column_stack([kept, rows.offset])

    @override
    def get_vcov(self, vcov: Any = True) -> Array | None:
        """The covariance matrix, or one that is given; None for ``False``."""
        if isinstance(vcov, np.ndarray):
            return vcov
        if vcov is True:
            return self.vault.vcov
        if vcov is False or vcov is None:
            return None
        raise ValueError(
            f"vcov={vcov!r}: True, False or a matrix is expected; take standard errors of another "
            "kind by to_marginaleffects(df=...)."
        )

    @override
    def get_predict(self, params: Array, newdata: Any) -> pl.DataFrame:
        """Predictions at coefficients."""
        columns = np.asarray(newdata, dtype=np.float64)
        values = columns[:, :-1] @ np.asarray(params, dtype=np.float64) + columns[:, -1]
        return pl.DataFrame({"rowid": np.arange(len(values)), "estimate": values})


def marginaleffects_model(design: Design, source: Source) -> FixedEffects:
    """Make the model of a fit; see ``fit.to_marginaleffects()``."""
    if isinstance(design, SummarisedDesign):
        raise DataError(
            "marginaleffects works on the rows of the model: build it from a data frame in memory, "
            "or take slopes(), comparisons() and average_predictions(), which read rows in batches."
        )
    if isinstance(source, EstimateSource):
        return FixedEffects(design, source.inference.fit.beta, source.inference.vcov)
    beta = source.beta
    return FixedEffects(
        design, beta.mean(axis=0), np.cov(beta, rowvar=False).reshape((beta.shape[1],) * 2)
    )


def _kind(column: pl.Series) -> str:
    if column.dtype == pl.Boolean:
        return "boolean"
    if not column.dtype.is_numeric():
        return "character"
    if bool(((column == 0) | (column == 1)).all()):
        return "binary"
    return "integer" if column.dtype.is_integer() else "numeric"


def _polars(design: Design, names: list[str]) -> pl.DataFrame:
    """Columns of the data, factors with their levels in the order of the model."""
    known = variables_of(design)
    columns = {}
    for name in dict.fromkeys(names):
        column = design.data[name]
        if name in known.levels and is_factor(column):
            levels = [str(level) for level in known.levels[name]]
            columns[name] = pl.Series(name, column.astype(str).tolist(), dtype=pl.Enum(levels))
        else:
            columns[name] = pl.Series(name, column.to_numpy())
    return pl.DataFrame(columns)


def _pandas(design: Design, rows: Any) -> pd.DataFrame:
    """Rows as marginaleffects makes them, with the types of the model's data."""
    frame = rows.to_pandas() if isinstance(rows, pl.DataFrame) else pd.DataFrame(rows)
    known = variables_of(design)
    result = {}
    for name in known.names:
        if name in known.levels and is_factor(design.sample[name]):
            by_text = {str(level): level for level in known.levels[name]}
            values = [by_text.get(str(value), value) for value in frame[name]]
            result[name] = pd.Series(values, dtype=design.sample[name].dtype)
        else:
            result[name] = frame[name].reset_index(drop=True)
    return pd.DataFrame(result)
