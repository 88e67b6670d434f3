"""Profile likelihood intervals: against lme4, against plain constrained optimisation, at bounds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import reference_checks as checks
from dense import relative_factor
from reference_data import list_fits, load_reference_data
from scipy.optimize import minimize
from scipy.stats import chi2
from slow_cases import slow, some

from bayeslmm.covariance.coordinates import plain_coordinates
from bayeslmm.covariance.structure import sds_and_correlation
from bayeslmm.data.building import build_design
from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.estimation.profile import profile_intervals
from bayeslmm.estimation.start import vector_of
from bayeslmm.formula.grammar import parse
from bayeslmm.likelihood.crossprod import cross_products
from bayeslmm.likelihood.elimination import make_plan
from bayeslmm.likelihood.factorise import factorise
from bayeslmm.likelihood.marginal import LOG_2PI, marginal_system

# Of the width of the interval. All but one of the limits found by R's root finding agree to 2e-7;
# in sim_weights__slope_w_reml nlminb stopped 2e-3 deviance units above the constrained minimum.
OWN = 2e-4
# lme4's own limits are read off splines through a few points of the profile.
LME4 = 5e-3
# SLSQP with differenced gradients.
DEVIANCE = 1e-4

SMALL = list_fits(big=False)
LONG = {"sim_cross3__abc_reml", "cake__temperature_poly_ml"}


def one_in_24(names):
    return [slow(name) if i % 24 or name in LONG else name for i, name in enumerate(names)]


def fit(formula, frame, method="REML"):
    return fit_likelihood(marginal_system(build_design(parse(formula), frame)), method)


def by_parameter(intervals):
    return {(i.kind, i.factor, i.coefs): i for i in intervals}


@pytest.fixture(scope="module")
def sleepstudy():
    return load_reference_data("sleepstudy")


@pytest.fixture(scope="module")
def slope(sleepstudy):
    return fit("Reaction ~ Days + (Days | Subject)", sleepstudy)


@pytest.fixture(scope="module")
def slope_intervals(slope):
    return profile_intervals(slope)


# --- against lme4 ----------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize("name", one_in_24(filter(checks.has_own_profile, SMALL)))
def test_criterion_of_the_fit_is_profiled(name):
    assert checks.profile(checks.load_case(name)) <= OWN


@pytest.mark.reference
@pytest.mark.parametrize("name", one_in_24(filter(checks.has_lme4_profile, SMALL)))
def test_likelihood_is_profiled_for_fixed_effects(name):
    assert checks.profile_ml(checks.load_case(name)) <= LME4


# --- against the definition ------------------------------------------------------------


def deviance(model, eta):
    """-2 log (restricted) likelihood at log sds, correlation coordinates and log sigma."""
    products = model.plan.products
    pieces = model.plan.theta.parts(eta[:-1])
    factors = [
        relative_factor(s, piece, eta[-1])
        for s, piece in zip(products.structures, pieces, strict=True)
    ]
    fact = factorise(model.plan, factors)
    restricted = model.method == "REML"
    dof = products.n_obs - restricted * products.n_fixed
    value = dof * (LOG_2PI + 2.0 * eta[-1]) - products.log_weights + fact.log_det_random
    return value + restricted * fact.log_det_fixed + fact.rss * np.exp(-2.0 * eta[-1])


def parameter(model, interval, eta):
    """The profiled parameter, on the log scale for standard deviations."""
    if interval.kind == "sigma":
        return eta[-1]
    structure = model.plan.products.structures[interval.factor]
    piece = model.plan.theta.parts(eta[:-1])[interval.factor]
    sds, corr = sds_and_correlation(relative_factor(structure, piece, 0.0))
    return corr[interval.coefs] if interval.kind == "cor" else np.log(sds[interval.coefs[0]])


def least_deviance(model, interval, value):
    """Minimum over all parameters but one, by a general constrained optimiser."""
    target = value if interval.kind == "cor" else np.log(value)
    found = minimize(
        lambda eta: deviance(model, eta),
        start_of(model),
        method="SLSQP",
        jac="3-point",
        constraints={"type": "eq", "fun": lambda eta: parameter(model, interval, eta) - target},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    return found.fun


def start_of(model):
    """The estimate in the coordinates of `deviance`."""
    return vector_of(plain_coordinates(model.plan.products.structures), model)


def assert_limits_lose_the_quantile(model, kinds):
    for interval in profile_intervals(model, kinds=kinds):
        for limit, at_bound in (
            (interval.lower, interval.lower_at_bound),
            (interval.upper, interval.upper_at_bound),
        ):
            if not at_bound:
                drop = least_deviance(model, interval, limit) - model.criterion
                assert drop == pytest.approx(chi2.ppf(0.95, 1), abs=DEVIANCE), interval


@pytest.mark.slow
@pytest.mark.parametrize("method", ["REML", "ML"])
def test_limits_lose_the_quantile_three_correlated_coefficients(method):
    machines = load_reference_data("Machines")
    model = fit("score ~ Machine + (0 + Machine | Worker)", machines, method)
    assert_limits_lose_the_quantile(model, ("sd", "cor", "sigma"))


@pytest.mark.parametrize("kinds", [slow(("sd",)), ("cor", "sigma")], ids="-".join)
def test_limits_lose_the_quantile_two_factors(kinds):
    pixel = load_reference_data("Pixel")
    model = fit("pixel ~ day + I(day**2) + (day | Dog) + (1 | Dog:Side)", pixel)
    assert_limits_lose_the_quantile(model, kinds)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    some(2, ["Chem97__slope_ml", "sim_many__slope_reml", "InstEval__sd_reml", "sim_many__int_ml"]),
)
def test_limits_lose_the_quantile_large(name):
    assert_limits_lose_the_quantile(checks.load_case(name).fit, ("sd", "cor", "sigma"))


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)"),
        ("Dyestuff2", "Yield ~ 1 + (1 | Batch)"),
        ("Penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"),
        ("sim_corr_pos", "y ~ x + (x | g)"),
    ],
)
def test_limits_of_fixed_effects_lose_the_quantile(name, formula):
    """Held at a limit, a fixed effect is an offset."""
    design = build_design(parse(formula), load_reference_data(name))
    model = fit_likelihood(marginal_system(design), "ML")
    for interval in profile_intervals(model, kinds=("beta",)):
        (coef,) = interval.coefs
        rest = np.delete(design.X, coef, axis=1)
        for limit in (interval.lower, interval.upper):
            y = design.y - limit * design.X[:, coef]
            held = fit_likelihood(make_plan(cross_products(y, rest, design.random)), "ML")
            drop = held.criterion - model.criterion
            assert drop == pytest.approx(chi2.ppf(0.95, 1), abs=1e-5)


# --- properties ------------------------------------------------------------------------


def test_order_and_criteria(slope_intervals):
    intervals = slope_intervals
    assert [(i.kind, i.factor, i.coefs) for i in intervals] == [
        ("sd", 0, (0,)),
        ("sd", 0, (1,)),
        ("cor", 0, (1, 0)),
        ("sigma", None, ()),
        ("beta", None, (0,)),
        ("beta", None, (1,)),
    ]
    assert [i.criterion for i in intervals] == ["REML"] * 4 + ["ML"] * 2
    assert all(i.lower < i.estimate < i.upper for i in intervals)


def test_fixed_effects_do_not_depend_on_the_method():
    frame = load_reference_data("sim_imbalance")
    reml, ml = (fit("y ~ x + (x | g)", frame, method) for method in ("REML", "ML"))
    for a, b in zip(
        profile_intervals(reml, kinds=("beta",)),
        profile_intervals(ml, kinds=("beta",)),
        strict=True,
    ):
        assert (a.lower, a.upper) == pytest.approx((b.lower, b.upper), rel=1e-6)
        assert a.estimate == reml.beta[a.coefs[0]]


def test_higher_level_is_wider(slope, slope_intervals):
    narrow, wide = profile_intervals(slope, level=0.5), slope_intervals
    assert all(w.lower < n.lower < n.upper < w.upper for n, w in zip(narrow, wide, strict=True))


@pytest.mark.parametrize(("shift", "scale"), [slow(2000.0, 1.0), slow(0.0, 1e6), (1e3, 1e-6)])
def test_origin_and_units_of_a_covariate(sleepstudy, slope_intervals, shift, scale):
    frame = sleepstudy.assign(time=(sleepstudy["Days"] + shift) * scale)
    moved = by_parameter(profile_intervals(fit("Reaction ~ time + (time | Subject)", frame)))
    plain = by_parameter(slope_intervals)
    for key, factor in ((("sd", 0, (1,)), scale), (("beta", None, (1,)), scale)):
        limits = moved[key].lower * factor, moved[key].upper * factor
        assert limits == pytest.approx((plain[key].lower, plain[key].upper), rel=1e-5)
    sigma = moved["sigma", None, ()]
    assert (sigma.lower, sigma.upper) == pytest.approx(
        (plain["sigma", None, ()].lower, plain["sigma", None, ()].upper), rel=1e-6
    )


def test_units_of_the_response(sleepstudy, slope_intervals):
    frame = sleepstudy.assign(Reaction=sleepstudy["Reaction"] * 1e-6 + 3.0)
    moved = profile_intervals(fit("Reaction ~ Days + (Days | Subject)", frame))
    for a, b in zip(slope_intervals, moved, strict=True):
        if a.kind in ("sd", "sigma"):
            assert (b.lower, b.upper) == pytest.approx((a.lower * 1e-6, a.upper * 1e-6), rel=1e-5)
        if a.kind == "cor":
            assert (b.lower, b.upper) == pytest.approx((a.lower, a.upper), abs=1e-5)


def test_order_of_coefficients(sleepstudy, slope_intervals):
    frame = sleepstudy.assign(one=1.0)
    turned = fit("Reaction ~ Days + (0 + Days + one | Subject)", frame)
    found = by_parameter(profile_intervals(turned, kinds=("sd", "cor")))
    plain = by_parameter(slope_intervals)
    for old, new in (((0,), (1,)), ((1,), (0,))):
        a, b = plain["sd", 0, old], found["sd", 0, new]
        assert (a.lower, a.upper) == pytest.approx((b.lower, b.upper), rel=1e-6)
    a, b = plain["cor", 0, (1, 0)], found["cor", 0, (1, 0)]
    assert (a.lower, a.upper) == pytest.approx((b.lower, b.upper), abs=1e-6)


# --- at the bounds ---------------------------------------------------------------------


def test_zero_estimate_has_lower_limit_zero():
    (sd,) = profile_intervals(
        fit("Yield ~ 1 + (1 | Batch)", load_reference_data("Dyestuff2")), kinds=("sd",)
    )
    assert (sd.estimate, sd.lower, sd.lower_at_bound, sd.upper_at_bound) == (0.0, 0.0, True, False)
    assert sd.upper > 0.0


def test_correlation_is_free_where_a_sd_may_be_zero():
    model = fit("distance ~ age * Sex + (age | Subject)", load_reference_data("Orthodont"))
    found = by_parameter(profile_intervals(model, kinds=("sd", "cor")))
    assert found["sd", 0, (1,)].lower_at_bound
    cor = found["cor", 0, (1, 0)]
    assert (cor.lower, cor.upper) == (-1.0, 1.0)
    assert cor.lower_at_bound and cor.upper_at_bound


def test_correlation_with_a_zero_sd_is_undefined_and_free():
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(8), 6)
    x = np.tile(np.arange(6.0), 8)
    noise = rng.normal(size=48)
    for column in np.column_stack([x == value for value in range(6)]).T:
        noise[column] -= noise[column].mean()
    # Slopes that vary less than chance: the estimate of their sd is zero.
    for level in range(8):
        rows = group == level
        noise[rows] -= np.polyval(np.polyfit(x[rows], noise[rows], 1), x[rows])
    frame = pd.DataFrame({"y": noise + rng.normal(size=8)[group], "x": x, "g": group.astype(str)})
    model = fit("y ~ x + (x | g)", frame)
    assert model.singular
    cor = by_parameter(profile_intervals(model, kinds=("cor",)))["cor", 0, (1, 0)]
    assert (cor.lower, cor.upper) == (-1.0, 1.0)
    assert cor.lower_at_bound and cor.upper_at_bound


def test_sd_that_the_data_say_nothing_about_is_unbounded():
    """Group means are all fitted by the fixed effects."""
    frame = load_reference_data("Rail").assign(line=lambda d: d["Rail"].astype(str))
    model = fit("travel ~ line + (1 | Rail)", frame)
    (sd,) = profile_intervals(model, kinds=("sd",))
    assert (sd.lower, sd.upper) == (0.0, np.inf)
    assert sd.lower_at_bound and sd.upper_at_bound


# --- misuse ----------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_level_out_of_range(slope, level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        profile_intervals(slope, level=level)


def test_unknown_kind(slope):
    with pytest.raises(
        ValueError,
        match=r"\['sdd'\]; allowed are \['beta', 'cor', 'cor_residual', 'power_residual'",
    ):
        profile_intervals(slope, kinds=("sdd",))


def test_map_has_no_profile(slope):
    with pytest.raises(ValueError, match="'MAP'"):
        profile_intervals(replace(slope, method="MAP"))
