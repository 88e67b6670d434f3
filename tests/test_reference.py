"""Every reference fit by lme4, recomputed: one test per quantity and fit."""

import numpy as np
import pytest
import reference_checks as checks
from reference_data import list_fits, load_fit
from reference_formulas import STANDS_FOR
from slow_cases import slow

pytestmark = pytest.mark.reference

# lme4's optimizer stopped within 1e-6 of its optimum; ours may be better, never worse.
CRITERION = 1e-6
# Two evaluations of one formula at one theta: rounding, with n up to 73,421.
CRITERION_AT = 1e-10
# lme4's derivatives are differences; relative to the curvature.
DERIVATIVES = 1e-4
# Columns are copied, or orthogonalised (poly, ns, contr.poly).
DESIGN = 1e-12
# Standard errors: beta hardly depends on theta.
BETA = 1e-5
# What depends on theta smoothly, relative: theta itself is known to about 1e-5, the criterion
# being flat; covariances of beta, sds, sigma, modes and their standard deviations follow it.
SMOOTH = 1e-4
# Asymptotic covariance matrices rest on lmerTest's differenced Hessian.
CURVATURE = 1e-4


LARGE = ("InstEval", "Chem97__gcse_reml", "Chem97__null_reml", "sim_many__slope_reml")
"""Of much data; other fits to the last two data sets are not among the slow ones."""


@pytest.fixture(scope="module", params=[slow(n) if n.startswith(LARGE) else n for n in list_fits()])
def case(request):
    return checks.load_case(request.param)


def interior(case):
    if case.lme4["singular_scale_free"]:
        pytest.skip("at a boundary sds and correlations are compared as covariances")


def test_rows(case):
    assert case.design.n == case.lme4["n"]
    assert checks.rows_dropped(case) == case.lme4["rows_dropped"]


def test_levels(case):
    assert checks.group_sizes(case) == case.lme4["groups"]


def test_columns(case):
    assert case.design.p == case.lme4["p"]
    assert checks.columns_dropped(case) == list(case.design.aliased)
    assert checks.design_matrix(case) <= DESIGN


def test_converged(case):
    assert case.fit.optimum.converged


def test_criterion(case):
    assert checks.criterion(case) <= CRITERION


def test_lme4_found_the_optimum_too(case):
    assert checks.criterion(case) >= -CRITERION


def test_criterion_at_given_theta(case):
    assert checks.criterion_at(case) <= CRITERION_AT


def test_derivatives(case):
    differences = checks.derivatives(case)
    if differences is None:
        pytest.skip("the reference has derivatives at interior optima only")
    assert max(differences) <= DERIVATIVES


def test_fixed_effects(case):
    assert checks.beta(case) <= BETA


def test_covariance_of_fixed_effects(case):
    assert checks.standard_errors(case) <= SMOOTH


def test_satterthwaite(case):
    difference = checks.satterthwaite(case)
    if difference is None:
        pytest.skip("the reference has no degrees of freedom")
    assert difference <= CURVATURE


def test_covariances(case):
    assert checks.covariances(case) <= SMOOTH


def test_sds(case):
    interior(case)
    assert checks.sds(case) <= SMOOTH


def test_correlations(case):
    interior(case)
    assert checks.correlations(case) <= SMOOTH


def test_sigma(case):
    assert checks.sigma(case) <= SMOOTH


def test_covariance_of_covariance_parameters(case):
    difference = checks.parameter_cov(case)
    if difference is None:
        pytest.skip("the reference has none, or the fit is at a boundary")
    assert difference <= CURVATURE


def test_singular(case):
    assert case.fit.singular == case.lme4["singular_scale_free"]


def test_number_of_parameters(case):
    assert checks.information_criteria(case) <= 1e-8 * abs(case.lme4["AIC"])


def test_conditional_modes(case):
    assert checks.modes(case) <= SMOOTH


def test_conditional_sds_given_beta(case):
    assert checks.conditional_sds(case, given_beta=True) <= SMOOTH


def test_conditional_sds(case):
    assert checks.conditional_sds(case, given_beta=False) <= SMOOTH


def test_fitted(case):
    assert checks.fitted(case) <= SMOOTH


@pytest.mark.parametrize(("name", "right"), STANDS_FOR.items())
def test_cells_with_colliding_labels_are_not_merged(name, right):
    case = checks.load_case(name)
    merged = load_fit(name)
    assert len(case.design.random[0].levels) == load_fit(right)["groups"]["cell"]
    assert len(case.design.random[0].levels) > merged["groups"]["f1:f2"]
    assert not np.isclose(case.fit.criterion, merged["criterion"]["value"], atol=1.0)
