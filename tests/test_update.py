"""Changed models, models of fits, and more draws."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from slow_cases import slow, whole

import bayeslmm as blm
from bayeslmm.exceptions import DataError, FormulaError, PriorError
from bayeslmm.fits.load import load
from bayeslmm.formula.grammar import parse
from bayeslmm.formula.update import update_formula
from bayeslmm.priors import LKJ, Gamma, HalfNormal, Normal
from bayeslmm.sampling.joint_draws import all_levels
from bayeslmm.storage import changes

SLOPES = "Reaction ~ Days + (Days | Subject)"
LONG = "y ~ x * f + offset(o) + (x | g) + (1 | a/b)"


@pytest.fixture(scope="module")
def sleep():
    data = blm.load_dataset("sleepstudy")
    data["w"] = np.linspace(0.5, 2.0, len(data))
    data["half"] = np.where(data["Days"] < 5, "first", "second")
    return data


@pytest.fixture(scope="module")
def model(sleep):
    return blm.LMM(SLOPES, sleep)


# --- formulas --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # as R's update.formula
        ("y ~ x + (1 | g)", ". ~ .", "y ~ x + (1 | g)"),
        ("y ~ x + (1 | g)", "~ . + z", "y ~ x + z + (1 | g)"),
        ("y ~ x + z + (1 | g)", "~ . - x", "y ~ z + (1 | g)"),
        ("y ~ x + (1 | g)", "~ . - x", "y ~ 1 + (1 | g)"),
        ("y ~ x + (1 | g)", "~ . + x", "y ~ x + (1 | g)"),
        ("y ~ x + (1 | g)", "log(.) ~ .", "log(y) ~ x + (1 | g)"),
        ("I(y / 2.5) ~ x + (1 | g)", "sqrt(.) ~ .", "sqrt(I(y / 2.5)) ~ x + (1 | g)"),
        ("`my y` ~ x + (1 | g)", "log(`my y`) ~ .", "log(`my y`) ~ x + (1 | g)"),
        ("y ~ x + (1 | g)", "v ~ z + (1 | h)", "v ~ z + (1 | h)"),
        ("y ~ x + (1 | g)", "~ z + (1 | h)", "y ~ z + (1 | h)"),
        ("y ~ x + (1 | g)", "~ . - 1", "y ~ 0 + x + (1 | g)"),
        ("y ~ x + (1 | g)", "~ 0 + .", "y ~ 0 + x + (1 | g)"),
        ("y ~ 0 + x + (1 | g)", "~ . + 1", "y ~ 1 + x + (1 | g)"),
        ("y ~ x - 1 + (1 | g)", "~ .", "y ~ 0 + x + (1 | g)"),
        ("y ~ (x + z + (1 | g))", "~ . - z", "y ~ x + (1 | g)"),
        (LONG, "~ . - x*f", "y ~ 1 + offset(o) + (x | g) + (1 | a/b)"),
        (LONG, "~ . - x:f", "y ~ x + f + offset(o) + (x | g) + (1 | a/b)"),
        (LONG, "~ . - f:x", "y ~ x + f + offset(o) + (x | g) + (1 | a/b)"),
        (LONG, "~ . - offset( o )", "y ~ x * f + (x | g) + (1 | a/b)"),
        (LONG, "~ . - (x|g)", "y ~ x * f + offset(o) + (1 | a/b)"),
        (LONG, "~ . - (1 + x | g) + (x || g)", "y ~ x * f + offset(o) + (1 | a/b) + (x || g)"),
        (LONG, "~ . - (1 | a/b) + (1 | a)", "y ~ x * f + offset(o) + (x | g) + (1 | a)"),
        (LONG, "~ . + ns(x, 3) - x*f", "y ~ ns(x, 3) + offset(o) + (x | g) + (1 | a/b)"),
        # what a product, a power or a nesting stood for is written out
        ("y ~ a*b*c + (1 | g)", "~ . - a:b:c", "y ~ a + b + c + a:b + a:c + b:c + (1 | g)"),
        ("y ~ (a + b + c)**2 + (1 | g)", "~ . - a:c", "y ~ a + b + c + a:b + b:c + (1 | g)"),
        ("y ~ a / b + (1 | g)", "~ . - a:b", "y ~ a + (1 | g)"),
        ("y ~ a * b + (1 | g)", "~ . - a", "y ~ b + a:b + (1 | g)"),
        ("y ~ a * b + (1 | g)", "~ . - (a + b)", "y ~ a:b + (1 | g)"),
        ("y ~ a*b + a*c + (1 | g)", "~ . - a:b", "y ~ a + b + a*c + (1 | g)"),
        ("y ~ a * b - a:b + (1 | g)", "~ . - a", "y ~ b + (1 | g)"),
        ("y ~ 0 + a*b + (1 | g)", "~ . - a:b", "y ~ 0 + a + b + (1 | g)"),
        ("y ~ `a b` * c + (1 | g)", "~ . - c:`a b`", "y ~ `a b` + c + (1 | g)"),
        ("y ~ poly(x, 2) * f + (1 | g)", "~ . - poly(x,2):f", "y ~ poly(x, 2) + f + (1 | g)"),
        ("y ~ x + (1 | g/h)", "~ . - (1 | h:g)", "y ~ x + (1 | g)"),
        ("y ~ x + (x || g)", "~ . - (0 + x | g)", "y ~ x + (1 | g)"),
        ("y ~ x + (x || g)", "~ . - (1 | g)", "y ~ x + (0 + x || g)"),
        (
            "y ~ x + (x + z || `a b`/h)",
            "~ . - (0 + x | h:`a b`)",
            "y ~ x + (x + z || `a b`) + (z || `a b`:h)",
        ),
        ("y ~ x + cs(0 + f | g) + (1 | h)", "~ . - cs(0+f|g)", "y ~ x + (1 | h)"),
    ],
)
def test_formulas(old, new, expected):
    found = update_formula(parse(old), new)
    assert found == expected
    parse(found)


SUMS = ["a * b", "(a + b + c)^2", "a/b/c", "a*b + c:a", "b %in% a + a", "`a b`*c - c", "a*b*c"]


@pytest.mark.parametrize("right", SUMS)
def test_each_term_can_be_taken_out(right):
    old = parse(f"y ~ {right} + (1 | g)")
    for term in filter(None, old.right.terms):
        unwanted = ":".join(f"`{label}`" for label in term)
        found = update_formula(old, f"~ . - {unwanted}")
        assert "-" not in found
        assert parse(found).right.keys == old.right.keys - {":".join(sorted(term))}


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("~ . - (1 | g)", "no random-effects term"),  # (x | g) is one term
        ("~ . - q", "no fixed-effects term `q` to take out; the formula has `x \\* f`"),
        ("~ . - x:q", "no fixed-effects term `x:q`"),
        ("~ . - (x || g)", "no random-effects term .* the formula has `\\(x \\| g\\)`"),
        ("~ . - offset(p)", "no offset `offset\\(p\\)` .* has `offset\\(o\\)`"),
        ("~ .:z", "must be a term of its own"),
        ("~ (.)^2", "must be a term of its own"),
        ("~ . - .", "must be a term of its own"),
        (". + z", "has one `~`"),
        ("~ . ~ .", "has one `~`"),
        ("~ ", "nothing on the right"),
        ("~ . -", "nothing after this"),
    ],
)
def test_formulas_that_make_no_sense(new, message):
    with pytest.raises(FormulaError, match=message) as caught:
        update_formula(parse(LONG), new)
    assert caught.value.source == new
    assert "^" in str(caught.value)


def test_a_formula_is_text(model):
    with pytest.raises(TypeError, match="formula must be text"):
        model.update(formula=3)


# --- models ----------------------------------------------------------------------------


def same_model(one, two):
    """Whether two models have the same design and priors."""
    assert one.formula == two.formula
    assert one.X.equals(two.X) and one.y.equals(two.y)
    assert (one.Z != two.Z).nnz == 0 and one.effect_labels.equals(two.effect_labels)
    assert np.array_equal(one.design.weights, two.design.weights) or (
        one.design.weights is two.design.weights is None
    )
    assert one.design.spec.weights == two.design.spec.weights
    assert one.design.dropped.tolist() == two.design.dropped.tolist()
    assert one.priors.table().equals(two.priors.table())
    assert np.array_equal(one.priors.fixed_map, two.priors.fixed_map)


def test_formula_on_own_data(model, sleep):
    changed = model.update(formula="~ . - (Days | Subject) + (1 | Subject)")
    same_model(changed, blm.LMM("Reaction ~ Days + (1 | Subject)", sleep))
    assert model.formula == SLOPES
    assert changed.reml().criterion > model.reml().criterion


def test_nothing_changed(model):
    same_model(model.update(), model)


def test_new_variables_need_data(model, sleep):
    with pytest.raises(DataError, match="`half` is not among them: give data="):
        model.update(formula="~ . + half")
    changed = model.update(formula="~ . + half", data=sleep)
    same_model(changed, blm.LMM("Reaction ~ Days + half + (Days | Subject)", sleep))


def test_new_data_set_new_defaults(model, sleep):
    data = sleep[sleep["Days"] < 6].assign(Reaction=lambda d: d["Reaction"] / 100)
    same_model(model.update(data=data), blm.LMM(SLOPES, data))


def test_dropped_rows_stay_dropped_without_data(sleep, caplog):
    data = sleep.copy()
    data.loc[[3, 8], "Days"] = np.nan
    data.loc[20, "Reaction"] = np.nan
    model = blm.LMM(SLOPES, data)
    changed = model.update(formula="~ 1 + (1 | Subject)")
    assert "3 rows stay dropped" in caplog.text
    assert changed.design.dropped.tolist() == [3, 8, 20]
    assert model.update(formula="~ 1 + (1 | Subject)", data=data).design.dropped.tolist() == [20]
    weights = np.ones(177)
    weights[[0, 3, 175]] = np.nan  # of the rows that were used: 0, 4 and 178 of the data
    assert model.update(weights=weights).design.dropped.tolist() == [0, 3, 4, 8, 20, 178]


# --- weights ---------------------------------------------------------------------------


def test_weights_of_a_column(sleep):
    model = blm.LMM(SLOPES, sleep, weights="w")
    same_model(model.update(data=sleep[:90]), blm.LMM(SLOPES, sleep[:90], weights="w"))
    intercepts = "Reaction ~ Days + (1 | Subject)"
    changed = model.update(formula="~ . - (Days | Subject) + (1 | Subject)")
    same_model(changed, blm.LMM(intercepts, sleep, weights="w"))
    same_model(changed.update(data=sleep), blm.LMM(intercepts, sleep, weights="w"))
    same_model(model.update(weights="w"), model)
    with pytest.raises(DataError, match="no column `w`, which held the weights"):
        model.update(data=sleep.drop(columns="w"))
    with pytest.raises(DataError, match="does not keep the column `v`"):
        model.update(weights="v")


def test_weights_of_values(sleep):
    model = blm.LMM(SLOPES, sleep, weights=sleep["w"].to_numpy())
    changed = model.update(formula="~ . - Days")
    assert np.array_equal(changed.design.weights, sleep["w"])
    with pytest.raises(DataError, match=r"given as values, .* give weights="):
        model.update(data=sleep)
    half = sleep["w"].to_numpy() / 2
    same_model(model.update(data=sleep, weights=half), blm.LMM(SLOPES, sleep, weights=half))
    same_model(model.update(weights=half), blm.LMM(SLOPES, sleep, weights=half))


def test_weights_can_be_taken_away(sleep):
    for weights in ("w", sleep["w"].to_numpy()):
        model = blm.LMM(SLOPES, sleep, weights=weights)
        same_model(model.update(weights=False), blm.LMM(SLOPES, sleep))
        same_model(model.update(weights=False, data=sleep[:50]), blm.LMM(SLOPES, sleep[:50]))


@pytest.mark.parametrize("weights", [True, 1, 2.0])
def test_weights_that_are_no_weights(model, weights):
    with pytest.raises(ValueError, match="a column, an array or False"):
        model.update(weights=weights)


# --- priors ----------------------------------------------------------------------------

GIVEN = {"Days": Normal(10.0, 5.0), "sd[Subject]": HalfNormal(30.0), "cor": LKJ(4.0)}


def sources(model):
    return dict(model.priors.sources)


def test_given_priors_are_kept_and_others_computed_anew(sleep):
    model = blm.LMM(SLOPES, sleep, priors=GIVEN)
    data = sleep.assign(Reaction=sleep["Reaction"] / 1000)
    changed = model.update(data=data)
    same_model(changed, blm.LMM(SLOPES, data, priors=GIVEN))
    assert changed.priors.sigma != model.priors.sigma


def test_priors_are_added_and_override(sleep):
    model = blm.LMM(SLOPES, sleep, priors=GIVEN)
    more = {"sd[Subject, Days]": Gamma(2.0, 0.1), "sigma": HalfNormal(9.0)}
    same_model(model.update(priors=more), blm.LMM(SLOPES, sleep, priors={**GIVEN, **more}))
    general = model.update(priors=more).update(priors={"sd": HalfNormal(1.0)})
    assert {str(p) for row in general.priors.sd for p in row} == {"HalfNormal(1)"}
    assert sources(general)["sigma"] == "user"


def test_priors_are_taken_away(sleep):
    model = blm.LMM(SLOPES, sleep, priors=GIVEN)
    less = {key: GIVEN[key] for key in ("Days", "cor")}
    same_model(model.update(priors={"sd": None}), blm.LMM(SLOPES, sleep, priors=less))
    same_model(model.update(priors="default"), blm.LMM(SLOPES, sleep))
    same_model(model.update(priors="flat"), blm.LMM(SLOPES, sleep, priors="flat"))
    assert set(sources(model.update(priors={}).update(priors={"sigma": None}))) == set(
        sources(model)
    )


def test_flat_priors_stay_flat(sleep):
    flat = blm.LMM(SLOPES, sleep, priors="flat")
    same_model(flat.update(data=sleep[:90]), blm.LMM(SLOPES, sleep[:90], priors="flat"))
    one = flat.update(priors={"sigma": HalfNormal(30.0)})
    assert sources(one) | {"sigma": "flat"} == sources(flat)
    assert sources(one)["sigma"] == "user"
    same_model(one.update(priors={"sigma": None}), flat)


INTERCEPTS = "~ . - (Days | Subject) + (1 | Subject)"


def test_priors_on_what_is_gone(sleep):
    model = blm.LMM(SLOPES, sleep, priors=GIVEN)
    with pytest.raises(PriorError, match=r"no parameter cor\[Subject\], to which"):
        model.update(formula=INTERCEPTS)
    fewer = model.update(formula=INTERCEPTS, priors={"cor[Subject]": None})
    kept = {"Days": GIVEN["Days"], "sd": GIVEN["sd[Subject]"]}
    same_model(fewer, blm.LMM("Reaction ~ Days + (1 | Subject)", sleep, priors=kept))
    with pytest.raises(PriorError, match="Valid keys"):
        model.update(priors={"Nights": None})
    with pytest.raises(PriorError, match="Valid keys"):
        model.update(priors={"Nights": Normal(0.0, 1.0)})


@pytest.mark.parametrize("key", ["sd", "sd[Subject]"])
def test_a_key_for_several_parameters_stays_with_those_that_remain(sleep, key):
    priors = {key: HalfNormal(30.0)}
    model = blm.LMM(SLOPES, sleep, priors=priors)
    expected = blm.LMM("Reaction ~ Days + (1 | Subject)", sleep, priors=priors)
    same_model(model.update(formula=INTERCEPTS), expected)


def test_keys_for_several_coefficients_and_factors(sleep):
    both = "Reaction ~ Days + half + (1 | Subject) + (1 | half)"
    priors = {"beta": Normal(0.0, 7.0), "sd": HalfNormal(30.0)}
    model = blm.LMM(both, sleep, priors=priors)
    changed = model.update(formula="~ . - half - (1 | half)")
    same_model(changed, blm.LMM("Reaction ~ Days + (1 | Subject)", sleep, priors=priors))
    with pytest.raises(PriorError, match=r"no parameter Days, half\[T\.second\], to"):
        model.update(formula="~ . - half - Days")  # "beta" would address nothing


def test_a_prior_on_one_parameter_is_not_lost_silently(sleep):
    """Whether its neighbours have a default, another one or, not all of them, the same one."""
    days, w, other = (f"sd[Subject, {name}]" for name in ("Days", "w", "Intercept"))
    for priors in (
        {days: HalfNormal(30.0)},
        {days: HalfNormal(30.0), w: HalfNormal(9.0), other: HalfNormal(9.0)},
        {days: HalfNormal(30.0), w: HalfNormal(30.0)},
    ):
        model = blm.LMM("Reaction ~ Days + (Days + w || Subject)", sleep, priors=priors)
        with pytest.raises(PriorError, match=r"no parameter sd\[Subject, Days\], to which"):
            model.update(formula="~ . - (Days + w || Subject) + (w || Subject)")


# --- models of fits --------------------------------------------------------------------


def test_models_of_posteriors(sleep, tmp_path):
    model = blm.LMM(SLOPES, sleep, priors=GIVEN, weights="w")
    posterior = model.fit(method="laplace", draws=20, chains=2, random_seed=1)
    same_model(blm.LMM.from_fit(posterior), model)
    posterior.save(tmp_path / "fit.nc")
    again = blm.LMM.from_fit(load(tmp_path / "fit.nc"))
    same_model(again, model)
    refit = again.fit(method="laplace", draws=20, chains=2, random_seed=1)
    xr.testing.assert_equal(refit.data["posterior"].dataset, posterior.data["posterior"].dataset)
    assert again.reml().criterion == model.reml().criterion
    same_model(again.update(data=sleep[:90]), model.update(data=sleep[:90]))
    changed = blm.LMM.from_fit(posterior, priors={"Days": None})
    same_model(changed, model.update(priors={"Days": None}))


def test_models_of_estimates(model, sleep):
    same_model(blm.LMM.from_fit(model.reml()), model)
    same_model(blm.LMM.from_fit(model.ml(), priors=GIVEN), blm.LMM(SLOPES, sleep, priors=GIVEN))
    same_model(blm.LMM.from_fit(model.map()), model)
    own = blm.LMM(SLOPES, sleep, priors=GIVEN)
    for fit in (own.map(), own.reml()):
        same_model(blm.LMM.from_fit(fit), own)
        same_model(blm.LMM.from_fit(fit, priors="default"), model)


# --- more draws ------------------------------------------------------------------------

OPTIONS = {
    "collapsed": {"method": "collapsed"},
    "without u": {"method": "collapsed", "store_u": False},
    "laplace": {"method": "laplace"},
}


@pytest.fixture(scope="module", autouse=True)
def few_states():
    """Summaries of random effects that are not stored from fewer draws, to save time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bayeslmm.sampling.groups.STATES", (32, 64))
        yield


@pytest.fixture(scope="module", params=list(OPTIONS))
def runs(request, model):
    first = model.fit(draws=200, random_seed=1, **OPTIONS[request.param])
    return first, first.extend(300, random_seed=1)


def values(posterior, name="sigma"):
    return posterior.data["posterior"][name].to_numpy()


def test_the_first_draws_stay(runs):
    first, both = runs
    assert values(both).shape == (4, 500)
    for name in first.data["posterior"].data_vars:
        assert np.array_equal(values(both, name)[:, :200], values(first, name))
    assert both.data["posterior"]["draw"].to_numpy().tolist() == list(range(500))
    assert both.data["posterior"]["chain"].to_numpy().tolist() == [0, 1, 2, 3]
    assert first.data["posterior"].sizes["draw"] == 200
    assert both.data.attrs["draws_of_runs"] == [200, 300]


@pytest.mark.parametrize("runs", ["collapsed", slow("without u"), "laplace"], indirect=True)
def test_no_seed_repeats_draws(runs, model):
    first, both = runs
    again = both.extend(200, random_seed=1)
    parts = np.split(values(again), [200, 500], axis=1)
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert not np.intersect1d(parts[one], parts[two]).size
    same = first.extend(300, random_seed=1)
    assert np.array_equal(values(same), values(both))
    generator = first.extend(200, random_seed=np.random.default_rng(1))
    assert not np.intersect1d(values(generator)[:, 200:], values(first)).size


@pytest.mark.parametrize("runs", ["collapsed", slow("without u"), slow("laplace")], indirect=True)
def test_the_runs_agree(runs):
    """Both are draws of one posterior: R-hat of all, and effective draws that add up."""
    first, both = runs
    assert both.diagnostics.max_rhat < 1.02
    assert both.diagnostics.min_ess_bulk > 1.5 * first.diagnostics.min_ess_bulk
    assert both.summary().shape[0] == first.summary().shape[0]


def test_random_effects_follow(runs):
    first, both = runs
    assert ("random_effects" in both.data.children) == ("random_effects" in first.data.children)
    u = both._joint.effects(all_levels(both.design))[0]
    assert u.shape == (2000, 18, 2)
    apart = both.ranef()["Subject"] - first.ranef()["Subject"]
    assert 0.0 < np.abs(apart.to_numpy()).max() < 0.3 * first.ranef_sd()["Subject"].to_numpy().max()


def test_evidence_and_statistics_combine(runs, monkeypatch):
    first, both = runs
    stats, before = both.data["sample_stats"], first.data["sample_stats"]
    assert np.array_equal(stats["lp"].to_numpy()[:, :200], before["lp"].to_numpy())
    assert both.data.attrs["sampling_time"] > first.data.attrs["sampling_time"]
    if both.method != "collapsed":
        return
    assert (stats["n_evaluations"] > before["n_evaluations"]).all()
    assert (stats["pareto_k"] >= before["pareto_k"]).all()
    one, two = first.log_evidence, both.log_evidence
    assert two.error < one.error
    assert abs(one.value - two.value) < 5 * np.hypot(one.error, two.error)
    assert both.data.attrs["surrogate_error"] == 0.0


def test_estimates_are_weighted_by_their_errors():
    value, error = changes.combined_estimate([1.0, 4.0], [1.0, 2.0])
    assert value == pytest.approx((1.0 / 1 + 4.0 / 4) / (1 + 1 / 4), rel=1e-12)
    assert error == pytest.approx((1 + 1 / 4) ** -0.5, rel=1e-12)
    assert changes.combined_estimate([1.0, 4.0], [0.1, 0.0]) == (4.0, 0.0)


def test_root_attributes_of_runs():
    one = {"method": "collapsed", "surrogate_error": 0.002, "sampling_time": 1.0, "mine": "kept"}
    two = {"method": "collapsed", "surrogate_error": 0.001, "sampling_time": 2.0}
    joined = changes.joined_attrs({**one, "draws_of_runs": [5, 6]}, two, (11, 7))
    expected = {"surrogate_error": 0.002, "sampling_time": 3.0, "draws_of_runs": [5, 6, 7]}
    assert joined == {**one, **expected}


@pytest.mark.slow
@pytest.mark.parametrize(
    "priors", [slow(None), {"Days": "StudentT"}], ids=["normal", "sampled beta"]
)
def test_laplace_weights_have_one_constant(sleep, priors):
    """log_weight is lp plus half the squared Mahalanobis distance, up to one constant."""
    import pymc as pm

    priors = priors and {"Days": pm.StudentT.dist(4, mu=10.0, sigma=5.0)}
    model = blm.LMM(SLOPES, sleep, priors=priors)
    first = model.fit(method="laplace", draws=100, random_seed=1)
    both = first.extend(150, random_seed=2)
    stats = both.data["sample_stats"]
    difference = (stats["log_weight"] - stats["lp"]).to_numpy()
    assert np.max(stats["log_weight"]) == 0.0
    constants = [difference[0, place] - half_square(both, place) for place in (10, 99, 100, 200)]
    assert np.ptp(constants) < 1e-8  # rounding of squares of a few units


def half_square(posterior, place):
    """Half the squared distance from the mode of a draw of the first chain."""
    from bayeslmm.sampling.collapsed import find_mode

    priors = posterior.priors
    mode = find_mode(posterior.model)
    joint, where = posterior._joint, priors.coordinates
    points = replace(joint.points, beta=joint.beta).take(slice(place, place + 1))
    gap = where.vector(where.to_working(points))[0] - mode.x
    return 0.5 * gap @ (mode.hessian / 2.0) @ gap


def test_groups_of_draws(model, caplog):
    posterior = model.fit(draws=50, random_seed=1).with_log_likelihood().with_log_prior()
    posterior = posterior.with_prior(20, random_seed=1)
    extra = {
        "posterior_predictive": xr.Dataset({"y": (("chain", "draw"), np.zeros((4, 50)))}),
        "notes": xr.Dataset({"a": ("k", [1.0])}),
    }
    both = posterior.with_groups(**extra).extend(70, random_seed=2)
    assert "left out: posterior_predictive" in caplog.text
    assert "posterior_predictive" not in both.data.children
    for name in ("notes", "prior", "prior_predictive", "observed_data", "constant_data"):
        expected = posterior.with_groups(**extra).data[name].to_dataset()
        xr.testing.assert_identical(both.data[name].to_dataset(), expected)
    for name in ("log_likelihood", "log_prior"):
        assert both.data[name].sizes["draw"] == 120
        for variable, old in posterior.data[name].dataset.data_vars.items():
            new = both.data[name][variable].to_numpy()
            # sums over random effects may differ in the last digits between shapes of arrays
            assert np.allclose(new[:, :50], old.to_numpy(), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("runs", ["collapsed", slow("without u"), slow("laplace")], indirect=True)
def test_extended_posteriors_are_saved(runs, tmp_path):
    _, both = runs
    both.save(tmp_path / "both.nc")
    back = load(tmp_path / "both.nc")
    xr.testing.assert_identical(back.data, both.data)
    more = back.extend(20, random_seed=4)
    assert np.array_equal(values(more), values(both.extend(20, random_seed=4)))
    assert more.data.attrs["draws_of_runs"] == [200, 300, 20]


@pytest.mark.parametrize("draws", [0, -1, 1.5, True, "10"])
def test_draws_must_be_counts(runs, draws):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        runs[0].extend(draws)


def test_options_of_the_method(runs):
    with pytest.raises(TypeError, match="has no option tune"):
        runs[0].extend(10, tune=5)


def test_effects_are_summarised_anew_where_beta_is_sampled(sleep):
    import pymc as pm

    priors = {"Days": pm.Laplace.dist(10.0, 5.0)}
    model = blm.LMM(SLOPES, sleep, priors=priors)
    first = model.fit(draws=100, random_seed=1, store_u=False)
    both = first.extend(400, random_seed=2)
    long = model.fit(draws=500, random_seed=3, store_u=False)
    for one, two in ((both, long), (first, long)):
        apart = (one.ranef()["Subject"] - two.ranef()["Subject"]) / two.ranef_sd()["Subject"]
        assert np.abs(apart.to_numpy()).max() < 0.3  # 64 states: a Monte Carlo error below 0.1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["marginal", pytest.param("noncentered", marks=whole)])
def test_nuts_is_run_again_in_its_form(form):
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    options = {"tune": 300, "progressbar": False}
    first = model.fit(method="nuts", form=form, draws=200, random_seed=1, **options)
    both = first.extend(300, random_seed=1, progressbar=False)
    assert both.data.attrs["form"] == form
    assert values(both).shape == (4, 500)
    assert np.array_equal(values(both)[:, :200], values(first))
    assert not np.intersect1d(values(both)[:, 200:], values(first)).size
    assert both.data["sample_stats"]["diverging"].dtype == bool
    assert both.data["sample_stats"].sizes["draw"] == 500
    assert both.diagnostics.max_rhat < 1.05


def test_index_of_new_data(model, sleep):
    data = sleep.set_index(pd.Index(range(1000, 1180)))
    assert model.update(data=data).design.index.tolist() == list(range(1000, 1180))


def test_a_model_under_other_priors_shares_the_cross_products():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).model
    flat = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"), priors="flat").priors
    other = model.with_priors(flat)
    assert other.priors is flat
    assert other.system is model.system and other.design is model.design
    assert model.priors is not flat
