"""REML or ML tests of effects in simulated data sets."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.effects.multiplicity import SIDE_OF, tail_of
from bayeslmm.effects.tests_of_fixed import f_tail
from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.estimation.inference import DfMethod, Inference
from bayeslmm.estimation.judging import Choice, inference_of
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.planning.simulations import Analysis, Answer, Setup
from bayeslmm.planning.targets import Target

Array = NDArray[np.float64]

FIGURES = ("estimate", "std_error", "df", "p_value")


def tests_of(setup: Setup, method: Literal["REML", "ML"], df: DfMethod) -> Analysis:
    """Analysis that estimates a model and tests the targets: :data:`FIGURES` of each."""

    def analyse(design: Design, plan: Plan, rng: np.random.Generator) -> Answer:
        del rng
        fit = fit_likelihood(plan, method)
        inference = inference_of(Choice(df=df), design, fit)
        values = np.array([_tested(inference, target) for target in setup.targets])
        return Answer(values, fit.singular, fit.optimum.converged)

    return analyse


def _tested(inference: Inference, target: Target) -> tuple[float, float, float, float]:
    if target.joint:
        test = inference.f_test(target.weights, np.zeros(len(target.weights)))
        return np.nan, np.nan, test.den_df, f_tail(test.statistic, test.num_df, test.den_df)
    row = target.weights[0]
    estimate = float(row @ inference.fit.beta + target.constant)
    error = float(np.sqrt(row @ inference.vcov @ row))
    df = float(inference.df(target.weights)[0])
    return estimate, error, df, float(tail_of(estimate / error, df, SIDE_OF[target.relation]))
