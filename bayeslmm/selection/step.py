"""What backward elimination found."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import pandas as pd

from bayeslmm.estimation.inference import DfMethod
from bayeslmm.estimation.judging import inference_of
from bayeslmm.estimation.model import Model
from bayeslmm.selection.random_part import Fitted
from bayeslmm.selection.stepwise import reduced_fixed, reduced_random
from bayeslmm.storage.changes import updated_priors
from bayeslmm.summaries.text import frame_text


@dataclass(frozen=True, eq=False)
class Step:
    """The steps of backward elimination, and the model that is left.

    Made by :meth:`bayeslmm.Estimate.step`.

    Attributes
    ----------
    random : DataFrame
        Tests of the random part as of :meth:`bayeslmm.Estimate.ranova`; `eliminated` numbers the
        terms that were taken out in turn, and is 0 for those that stay.
    fixed : DataFrame
        Tests of the fixed part as of :meth:`bayeslmm.Estimate.drop1`, with the same column.
    fit : Estimate
        The estimate of the model that is left, by the criterion of the first one.
    """

    random: pd.DataFrame
    fixed: pd.DataFrame
    fit: Any

    @property
    def model(self) -> Model:
        """Its design and priors; ``LMM.from_fit(step.fit)`` is the model to go on with."""
        return self.fit.model

    @property
    def formula(self) -> str:
        """The formula that is left."""
        return self.fit.design.formula.source

    def __repr__(self) -> str:
        return "\n\n".join(
            [
                f"Backward reduced random part:\n{frame_text(self.random)}",
                f"Backward reduced fixed part:\n{frame_text(self.fixed)}",
                f"Model found:\n{self.formula}",
            ]
        )


def stepped(
    estimate: Any,
    *,
    df: DfMethod | None,
    alphas: tuple[float, float],
    keep: Collection[str],
) -> Step:
    """Reduce the random part, then the fixed part; arguments as of ``estimate.step()``."""
    for name, alpha in zip(("alpha_random", "alpha_fixed"), alphas, strict=True):
        _check_alpha(alpha, name)
    if isinstance(keep, str):
        keep = (keep,)
    choice = estimate.choice if df is None else replace(estimate.choice, df=df)
    first = Fitted(estimate.design, estimate.fit)
    random = reduced_random(first, alphas[0])
    fixed = reduced_fixed(
        random.fitted, lambda design, fit: inference_of(choice, design, fit), alphas[1], keep
    )
    left = fixed.fitted
    model = estimate.model
    if left is not first:
        model = Model(left.design, updated_priors(estimate.priors, left.design))
    return Step(random.table, fixed.table, replace(estimate, model=model, fit=left.fit))


def _check_alpha(value: object, name: str) -> None:
    """Refuse what is no number from 0 to 1, both of which a reduction may have."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"{name}={value!r}: a number from 0 to 1 is expected.")
