"""Residual structures of data beyond memory: batches give the model that all rows give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from reference_data import load_reference_data
from slow_cases import one_in, slow
from test_beyond_memory import CRITERION, DRAWS, assert_same_model, batches, both
from test_residual_structures import NLME, SAS, TRIAL, fev

import bayeslmm as blm
from bayeslmm.data import residual_survey, whole_groups
from bayeslmm.exceptions import DataError, StorageError
from bayeslmm.formula.residual import parse_residual
from bayeslmm.likelihood import streamed_stack
from bayeslmm.storage.sums import pack_sums, unpack_sums

REFERENCES = {
    **{(v["formula"], v["data"], v["residual"]): v["data"] for v in NLME.values()},
    (TRIAL, "fev", "us(AVISIT | USUBJID)"): "fev",
    **{("FEV1 ~ 1", "fev", case["residual"]): "fev" for case in SAS["intercept"]},
}


def by_group(data, residual):
    """The rows of each group of correlated residuals one after the other."""
    term = parse_residual(residual).correlation
    return data if term is None else data.sort_values(list(term.group), kind="stable")


@pytest.mark.parametrize("case", one_in(4, [[case] for case in REFERENCES]), ids=str)
def test_batches_give_the_reference_fits(case):
    formula, name, residual = case[0]
    data = by_group(fev() if name == "fev" else load_reference_data(name), residual)
    assert_same_model(*both(formula, data, residual=residual))


@pytest.fixture(scope="module")
def trees():
    """Groups of one to four rows, in no order, with gaps and weights."""
    rng = np.random.default_rng(4)
    sizes = [(f"g{i}", rng.integers(1, 5)) for i in rng.permutation(40)]
    rows = [
        {"g": g, "t": int(t), "x": rng.uniform(1, 3), "arm": f"a{int(g[1:]) % 2}"}
        for g, size in sizes
        for t in np.sort(rng.choice(4, size, replace=False))
    ]
    frame = pd.DataFrame(rows)
    frame["f"] = rng.choice(["u", "v"], len(frame))
    frame["h"] = rng.integers(0, 5, len(frame))
    frame["w"] = rng.choice([0.5, 1.0, 2.0], len(frame))
    frame["time"] = frame["t"] + rng.choice([0.0, 0.25, 0.5], len(frame))
    shared = pd.Series(rng.normal(size=40), index=[f"g{i}" for i in range(40)])
    frame["y"] = shared[frame["g"]].to_numpy() + frame["x"] + rng.normal(size=len(frame))
    frame.loc[rng.choice(frame.index, 5, replace=False), "x"] = np.nan
    frame.loc[rng.choice(frame.index, 3, replace=False), "time"] = np.nan
    return frame


STRUCTURES = {
    "us(t | g)": "y ~ x * f",
    "csh(t | arm / g)": "y ~ x",
    "ar1h(t | g)": "y ~ x + (1 | h)",
    "ar1(1 | g) * strata(f) * power(x)": "y ~ x + (1 | g) + (x | h)",
    "car1(time | g) * exp(t)": "y ~ x + (x | g)",
    "exp(time + t | g)": "y ~ x + (1 | h)",
    "gau(time | arm / g)": "y ~ x",
    "cs(1 | g) * strata(f, arm)": "y ~ x",
    "toeph(t | g)": "y ~ x + offset(0.5 * t)",
    "se(w)": "y ~ x + (1 | g)",
    "se(w, sigma=True) * strata(f)": "y ~ x + (1 | g) + (1 | h)",
}


@pytest.mark.parametrize(
    ("residual", "size"),
    [
        *one_in(2, ((s, 7) for s in STRUCTURES)),
        *(slow(s, 1) for s in STRUCTURES),
    ],
)
def test_structures_in_batches_of_any_size(residual, size, trees):
    parts = [trees.iloc[start : start + size] for start in range(0, len(trees), size)]
    options = {} if "se(" in residual else {"weights": "w"}
    assert_same_model(*both(STRUCTURES[residual], trees, parts, residual=residual, **options))


def test_variances_alone_need_no_order(trees):
    shuffled = trees.sample(frac=1.0, random_state=1)
    memory, streamed = both(
        "y ~ x + (1 | g)", shuffled, residual="strata(f, arm) * power(x)", weights="w"
    )
    assert_same_model(memory, streamed)


@pytest.mark.parametrize("cut", [None, 30])
def test_rows_of_a_group_that_are_apart_are_refused(cut, trees):
    moved = pd.concat([trees, trees[trees["g"] == trees["g"].iloc[0]].assign(t=9)])
    parts = [moved] if cut is None else [moved.iloc[:cut], moved.iloc[cut:]]
    name = trees["g"].iloc[0]
    with pytest.raises(DataError, match=rf"rows of `{name}` of g are in two.*sort the source by g"):
        blm.LMM("y ~ x", parts, residual="ar1(t | g)")


def test_groups_of_several_columns_and_of_changing_types(trees):
    numbered = trees.assign(g=trees["g"].str[1:].astype(int)).reset_index(drop=True)
    numbered["arm"] = numbered["arm"].astype("category")
    middle = 41
    while numbered["g"][middle] != numbered["g"][middle - 1]:
        middle += 1
    first, second = numbered.iloc[:middle], numbered.iloc[middle:].astype({"g": float})
    more = second["arm"].cat.add_categories("a2")
    memory, streamed = both(
        "y ~ x", numbered, [first, second.assign(arm=more)], residual="cs(t | arm:g)"
    )
    assert streamed.reml().criterion == pytest.approx(memory.reml().criterion, abs=CRITERION)


@pytest.mark.parametrize(
    ("change", "residual", "words"),
    [
        ({"t": 1}, "cs(t | g)", "has one level, '1'"),
        ({"t": [0, 0] * 40}, "ar1(t | g)", "has two rows at `t` 0"),
        ({"f": "u"}, "strata(f)", "has one level, 'u', in the complete rows"),
        ({"t": 0.5}, "us(t | g)", "holds fractions, so that its values are no occasions"),
        ({"g": 0.5}, "ar1(1 | g)", "holds fractions, so that its values are no levels"),
        ({"g": range(80)}, "ar1(1 | g)", "no `g` has more than one row"),
        ({"x": 1.0}, "power(x)", "has the same value in all complete rows"),
        ({"x": -1.0}, "power(x)", "needs positive values"),
        ({"x": "a"}, "exp(x)", "must hold numbers"),
        ({"w": 0.0}, "se(w)", "standard errors must be positive"),
        ({}, "us(t | nothing)", "`nothing` is not a column"),
        ({}, "us(t | arm", "is expected"),
    ],
)
def test_errors_are_those_of_data_in_memory(change, residual, words, trees):
    frame = trees.dropna().iloc[:80].assign(**change)
    for data in (frame, [frame]):
        with pytest.raises((DataError, ValueError), match=words):
            blm.LMM("y ~ 1 + (1 | h)", data, residual=residual)


def test_known_errors_beside_weights_are_refused(trees):
    with pytest.raises(DataError, match="both say how variances of rows differ"):
        blm.LMM("y ~ x + (1 | h)", [trees], residual="se(w)", weights="w")


def test_sums_and_groups_that_are_too_large_are_refused(trees, monkeypatch):
    def build(residual):
        return blm.LMM("y ~ x", batches(trees), residual=residual)

    monkeypatch.setattr(streamed_stack, "LARGEST", 1000)
    with pytest.raises(DataError, match=r"residual='power\(x\)': the sums over pairs.*round them"):
        build("power(x)")
    monkeypatch.setattr(whole_groups, "MOST_ROWS", 20)
    with pytest.raises(DataError, match=r"of arm has more than 20 rows.*divides it"):
        blm.LMM("y ~ x", [trees.sort_values("arm")], residual="ar1(1 | arm)")
    monkeypatch.setattr(residual_survey, "MOST_DISTANCES", 3)
    with pytest.raises(DataError, match=r"more than 3 different distances.*Round the times"):
        build("car1(time | g)")


# --- without rows ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(trees):
    return both("y ~ x + f + (x | g)", trees, residual="ar1h(t | g)", weights="w")


@pytest.fixture(scope="module")
def fits(pair):
    return tuple(model.reml() for model in pair)


TABLES = {
    "summary": lambda fit: fit.summary(),
    "varcorr": lambda fit: fit.varcorr(),
    "nlme": lambda fit: fit.varcorr(style="nlme"),
    "ranef": lambda fit: fit.ranef()["g"],
    "icc": lambda fit: fit.icc(),
    "r2": lambda fit: fit.r2(),
    "variance_partition": lambda fit: fit.variance_partition(),
    "means": lambda fit: fit.means("f").table(),
    "contrasts": lambda fit: fit.contrasts("f").table(),
    "glance": lambda fit: fit.glance(),
    "tidy": lambda fit: fit.tidy(),
    "wald": lambda fit: fit.confint(method="wald"),
}


@pytest.mark.parametrize("name", TABLES)
def test_answers_that_need_no_rows(name, fits):
    memory, streamed = (TABLES[name](fit) for fit in fits)
    pd.testing.assert_frame_equal(streamed, memory, rtol=1e-6, atol=1e-8)


def test_words_need_no_rows(fits):
    memory, streamed = fits
    assert repr(streamed) == repr(memory)
    assert streamed.methods_paragraph() == memory.methods_paragraph()


@pytest.mark.parametrize("kind", ["response", "pearson", "normalised"])
def test_residuals_read_the_rows_again(kind, fits):
    memory, streamed = (fit.residuals(kind) for fit in fits)
    np.testing.assert_allclose(streamed, memory, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("ask", ["R", "V", "simulate"])
def test_what_needs_rows_says_so(ask, fits):
    with pytest.raises(DataError, match=r"needs the rows of the data"):
        getattr(fits[1], ask)()


NEW = {"x": [1.0, 2.0], "f": ["u", "v"], "t": [0, 3], "w": [1.0, 1.0]}


@pytest.mark.parametrize(
    "residual", [slow("us(t | g)"), "ar1(1 | g) * strata(f)", slow("gau(time | g)")]
)
def test_draws_files_and_predictions(residual, trees, tmp_path):
    memory, streamed = (
        model.fit(draws=40, chains=2, random_seed=1)
        for model in both("y ~ x + (1 | h)", trees, residual=residual)
    )
    for variable, values in memory.data["posterior"].items():
        found = streamed.data["posterior"][variable].values
        np.testing.assert_allclose(found, values.values, rtol=DRAWS, atol=DRAWS)
    streamed.save(tmp_path / "post.nc")
    again = blm.load(tmp_path / "post.nc")
    assert repr(again) == repr(streamed)
    assert again.model.reml.criterion == streamed.model.reml.criterion
    new = pd.DataFrame(NEW | {"h": 1, "time": [0.5, 3.0]})
    for answer in (
        lambda fit: fit.r2(),
        lambda fit: fit.predict(new, random_seed=2),
        lambda fit: fit.predict(
            new.assign(g="new"), kind="response", residuals="new", random_seed=2
        ),
        lambda fit: fit.predict(new.assign(g="new"), kind="response", random_seed=2),
    ):
        pd.testing.assert_frame_equal(answer(again), answer(streamed))
        pd.testing.assert_frame_equal(answer(streamed), answer(memory), rtol=1e-6)
    old = new.assign(g="g1")
    with pytest.raises(DataError, match=r"2 of 2 rows to predict are of groups of g.*only sums"):
        streamed.predict(old, kind="response")
    assert len(streamed.predict(old, kind="response", residuals="new", random_seed=1)) == 2


@pytest.mark.parametrize("residual", ["us(t | g)", "car1(time | g) * strata(f)", "exp(time | g)"])
def test_files_whose_structures_do_not_fit_are_refused(residual, trees):
    model = blm.LMM("y ~ x + (1 | h)", batches(trees), residual=residual)
    post = model.fit(method="laplace", draws=20, chains=1, random_seed=1)
    description, arrays = pack_sums(post.design, post.priors)
    draws = post.data["posterior"].to_dataset()
    law = [name for name in arrays if name.startswith(("law ", "tied 0 ", "tied 1 "))]
    assert len(law) > 8
    for name in law:
        alone = np.nan if arrays[name].dtype.kind == "f" else 1000
        wrong = arrays[name][:-1] if len(arrays[name]) > 1 else np.full_like(arrays[name], alone)
        with pytest.raises(StorageError, match="do not fit"):
            unpack_sums(description, arrays | {name: wrong}, draws)
