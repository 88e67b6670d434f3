"""Posterior draws in tidy frames."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from bayeslmm import LMM, DataError, FormulaError, load_dataset

SAMPLE = [".chain", ".iteration", ".draw"]


@pytest.fixture(scope="module")
def post():
    model = LMM("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    return model.fit(draws=50, random_seed=1)


def beta(post, coef):
    return post.data["posterior"]["beta"].sel(coef=coef).values.ravel()


def effect(post, level, coef):
    u = post.data["posterior"]["u_Subject"]
    return u.sel(Subject=level, Subject_coef=coef).values.ravel()


def test_all_parameters_by_default(post):
    frame = post.draws()
    assert list(frame) == [*SAMPLE, *post.summary().index]
    assert_array_equal(frame[".draw"], np.arange(200))
    assert_array_equal(frame[".chain"], np.repeat(np.arange(4), 50))
    assert_array_equal(frame[".iteration"], np.tile(np.arange(50), 4))
    assert_allclose(frame.drop(columns=SAMPLE).mean(), post.summary()["mean"], rtol=1e-12)


def test_names_effects_and_expressions(post):
    frame = post.draws(["Days", "u[Subject, 308, Days]", "coef[Subject, 308, Days]", "sigma ** 2"])
    assert_allclose(frame["Days"], beta(post, "Days"))
    u = effect(post, "308", "Days")
    assert_allclose(frame["u[Subject, 308, Days]"], u)
    assert_allclose(frame["coef[Subject, 308, Days]"], beta(post, "Days") + u)
    sigma = post.data["posterior"]["sigma"].values.ravel()
    assert_allclose(frame["sigma ** 2"], sigma**2)
    ratio = post.draws({"ratio": "max(sd[Subject, Days], 1) / sigma"})
    sd = post.data["posterior"]["sd_Subject"].sel(Subject_coef="Days").values.ravel()
    assert list(ratio) == [*SAMPLE, "ratio"]
    assert_allclose(ratio["ratio"], np.maximum(sd, 1) / sigma)


def test_all_levels_at_once(post):
    frame = post.draws("coef[Subject]")
    assert frame.shape == (200, 3 + 36)
    assert_allclose(
        frame["coef[Subject, 372, Intercept]"],
        beta(post, "Intercept") + effect(post, "372", "Intercept"),
    )
    assert post.draws("u").shape == (200, 3 + 36)


def test_regular_expressions(post):
    assert list(post.draws([r"^sd\[", "sigma"], regex=True))[3:] == [
        "sd[Subject, Intercept]",
        "sd[Subject, Days]",
        "sigma",
    ]
    found = list(post.draws(r"^u\[Subject, 33\d, Days", regex=True))[3:]
    assert found == [f"u[Subject, 33{d}, Days]" for d in (0, 1, 2, 3, 4, 5, 7)]
    with pytest.raises(ValueError, match="matches no parameter"):
        post.draws("tau", regex=True)
    with pytest.raises(ValueError, match="is no regular expression"):
        post.draws("[", regex=True)


def test_a_long_frame_has_a_row_per_quantity(post):
    wide = post.draws(["beta[Days]", "sigma"])
    long = post.draws(["beta[Days]", "sigma"], format="long")
    assert list(long) == [*SAMPLE, ".variable", ".value"]
    back = long.pivot(index=".draw", columns=".variable", values=".value")
    assert_allclose(back[["beta[Days]", "sigma"]], wide[["beta[Days]", "sigma"]])
    assert_array_equal(long[".chain"].iloc[200:], wide[".chain"])


def test_a_frame_by_level(post):
    frame = post.draws(["beta[Days]", "u[Subject]", "coef[Subject]"], format="levels")
    assert list(frame) == [*SAMPLE, "beta[Days]", "Subject", "term", "u", "coef"]
    assert len(frame) == 200 * 18 * 2
    rows = frame[(frame["Subject"] == "335") & (frame["term"] == "Days")]
    assert_allclose(rows["u"], effect(post, "335", "Days"))
    assert_allclose(rows["coef"], rows["u"] + rows["beta[Days]"])
    assert_array_equal(rows[".draw"], np.arange(200))
    assert post.draws("u", format="levels")["Subject"].nunique() == 18


def test_levels_have_fixed_coefficients_without_random_ones():
    post = LMM("distance ~ age + (1 | Subject)", load_dataset("Orthodont")).fit(
        draws=10, random_seed=1
    )
    frame = post.draws(["coef[Subject]", "u[Subject]"], format="levels")
    age = frame[frame["term"] == "age"]
    assert age["u"].isna().all()
    assert age.groupby(".draw")["coef"].nunique().eq(1).all()


def test_effects_that_are_not_stored(post):
    bare = post.model and LMM("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy")).fit(
        draws=500, random_seed=1, store_u=False
    )
    frame = bare.draws(["u[Subject, 308, Days]", "coef[Subject, 308, Days]", "beta[Days]"])
    assert_allclose(
        frame["coef[Subject, 308, Days]"], frame["u[Subject, 308, Days]"] + frame["beta[Days]"]
    )
    mean, sd = (f["Subject"].loc["308", "Days"] for f in (bare.ranef(), bare.ranef_sd()))
    assert abs(frame["u[Subject, 308, Days]"].mean() - mean) < 4 * sd / np.sqrt(1000)


@pytest.mark.parametrize("form", ["wide", "long", "levels"])
def test_polars_frames_are_the_same(post, form):
    names = ["beta[Days]", "u[Subject]"]
    one = post.draws(names, format=form)
    other = post.draws(names, format=form, engine="polars")
    assert isinstance(other, pl.DataFrame)
    assert other.columns == list(one)
    for name in one:
        assert other[name].to_list() == one[name].tolist()


def test_draws_of_predictions(post):
    new = {"Days": [0.0, 9.0], "Subject": ["308", "309"]}
    frame = post.predict_draws(new, draws=40)
    assert list(frame) == ["Days", "Subject", ".row", *SAMPLE, ".epred"]
    assert len(frame) == 80
    thin = post.predict(new, draws=40)
    assert_allclose(frame.groupby(".row")[".epred"].mean(), thin["mean"])
    every = post.predict_draws(new)
    rows = every[every[".row"] == 1]
    expected = beta(post, "Intercept") + 9 * beta(post, "Days")
    expected = expected + effect(post, "309", "Intercept") + 9 * effect(post, "309", "Days")
    assert_allclose(rows[".epred"], expected)
    assert_array_equal(rows[".chain"], np.repeat(np.arange(4), 50))
    assert (rows["Days"] == 9).all()


def test_draws_of_predictions_of_the_rows_and_of_responses(post):
    frame = post.predict_draws(kind="response", draws=5, random_seed=1)
    assert len(frame) == 180 * 5
    assert list(frame)[-1] == ".prediction"
    assert set(load_dataset("sleepstudy")) <= set(frame)
    polars = post.predict_draws({"Days": [1], "Subject": ["308"]}, draws=5, engine="polars")
    assert isinstance(polars, pl.DataFrame)
    assert polars.height == 5
    linear = post.predict_draws({"Days": [1]}, target="average", kind="linpred", draws=5)
    assert list(linear)[-1] == ".linpred"


def test_what_cannot_be_is_refused(post, monkeypatch):
    for names, message in [
        ("Dayz", "Did you mean `Days`"),
        ("Days > 0", "should end here, before '>'"),
        ("u[Subj]", "grouping factors are Subject"),
        ("u[Subject, 308, Dais]", "Did you mean `Days`"),
        (7, "a text, several, or a mapping"),
        ([], "a text, several, or a mapping"),
    ]:
        with pytest.raises((FormulaError, ValueError), match=message):
            post.draws(names)
    for options, message in [
        ({"format": "tall"}, "format='tall': one of"),
        ({"engine": "arrow"}, "engine='arrow': one of"),
        ({"format": "levels"}, "takes names such as"),
        ({"names": "sigma", "format": "levels"}, r"effects of one grouping factor .* u\[Subject\]"),
        ({"names": {"a": "sigma"}, "regex": True}, "not for a mapping"),
    ]:
        with pytest.raises(ValueError, match=message):
            post.draws(**options)
    monkeypatch.setattr("bayeslmm.prediction.rows.LARGEST", 1000)
    with pytest.raises(DataError, match="GB, more than the limit"):
        post.draws("u")
