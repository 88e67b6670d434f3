"""Kenward-Roger against pbkrtest, SAS and a dense computation from its definition."""

import json
import tracemalloc
from functools import cache

import numpy as np
import pandas as pd
import pytest
import reference_checks
from reference_data import FOLDER, list_fits, load_fit, load_reference_data
from reference_formulas import STANDS_FOR
from slow_cases import one_in, slow
from test_means_reference import LEFT_OUT

import bayeslmm as blm
from bayeslmm.effects.tests_of_fixed import anova_table
from bayeslmm.estimation.adjusting import kenward_roger
from bayeslmm.estimation.kenward_roger import scaled_f
from bayeslmm.estimation.structured_forms import is_linear
from bayeslmm.estimation.variance_forms import MOST_TIED, entry_forms
from bayeslmm.exceptions import DataError

SAS = pd.read_csv(FOLDER / "small_samples" / "kenward_roger_sas.csv")
R = json.loads((FOLDER / "small_samples" / "small_samples.json").read_text())
WITH_KR = [
    name
    for name in list_fits()
    if name not in STANDS_FOR and load_fit(name)["fixed"].get("se_kenward_roger")
]


# --- pbkrtest ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", one_in(6, WITH_KR))
def test_standard_errors_df_and_f_tests_are_those_of_pbkrtest(name):
    case = reference_checks.load_case(name)
    judged, fixed = kenward_roger(case.design, case.fit), case.lme4["fixed"]
    expected = np.atleast_1d(fixed["se_kenward_roger"]), np.atleast_1d(fixed["df_kenward_roger"])
    # lme4's optimum is known to about 1e-5
    np.testing.assert_allclose(np.sqrt(np.diag(judged.vcov)), expected[0], rtol=1e-5)
    np.testing.assert_allclose(judged.df(np.eye(len(judged.vcov))), expected[1], rtol=1e-5)
    tests = (case.lme4.get("anova") or {}).get("kenward_roger")
    if not tests or name in LEFT_OUT:
        return
    expected = pd.DataFrame({key: np.atleast_1d(value) for key, value in tests.items()})
    known = expected["num_df"].notna().to_numpy()
    table = anova_table(case.design, judged, 3)
    found = table.loc[known, ["num_df", "den_df", "statistic"]].to_numpy()
    numbers = expected.loc[known, ["num_df", "den_df", "F"]].to_numpy(dtype=float)
    np.testing.assert_allclose(found, numbers, rtol=1e-4)


def test_sums_of_squares_are_those_before_f_is_scaled():
    lost = [0, 1, 2, 4, 21, 22, 23, 30, 44, 52]
    data = load_reference_data("Machines").drop(index=lost)
    reml = blm.LMM("score ~ Machine + (0 + Machine | Worker)", data).reml()
    table = reml.anova(df="kenward-roger").loc["Machine"]
    expected = R["machines"]
    np.testing.assert_allclose(
        table[["sum_sq", "statistic", "den_df"]].astype(float),
        [expected["sum_sq"], expected["F"], expected["den_df"]],
        rtol=1e-5,
    )


def test_degenerate_moments_are_treated_as_pbkrtest_does():
    assert scaled_f(1, 0.0, 0.0) == (np.inf, 1.0)
    df, factor = scaled_f(1, 0.5, 0.5)  # 2 / A of a single row, not scaled
    assert df == pytest.approx(4.0) and factor == pytest.approx(1.0)
    assert scaled_f(1, 1.0, 1.0)[1] == 1.0  # at two degrees of freedom


# --- a dense computation from the definition ----------------------------------------------


def dense(covariance, point, X, rows, *, expected, y=None, second=True):
    """Adjusted covariance, and A1 and A2 of rows, from V(point) and its differences."""
    point = np.asarray(point, dtype=float)
    steps = 1e-4 * np.maximum(np.abs(point), 1e-2)
    d, V = len(point), covariance(point)
    shift = np.diag(steps)
    first = [(covariance(point + s) - covariance(point - s)) / (2 * s.max()) for s in shift]
    inverse = np.linalg.inv(V)
    phi = np.linalg.inv(X.T @ inverse @ X)
    P = [-X.T @ inverse @ D @ inverse @ X for D in first]
    Q = [[X.T @ inverse @ A @ inverse @ B @ inverse @ X for B in first] for A in first]
    if expected:
        info = np.array(
            [
                [
                    np.trace(inverse @ A @ inverse @ B)
                    - 2 * np.trace(phi @ Q[i][j])
                    + np.trace(phi @ P[i] @ phi @ P[j])
                    for j, B in enumerate(first)
                ]
                for i, A in enumerate(first)
            ]
        )
    else:

        def deviance(x):
            W = np.linalg.inv(covariance(x))
            precision = X.T @ W @ X
            residual = y - X @ np.linalg.solve(precision, X.T @ W @ y)
            return (
                np.linalg.slogdet(covariance(x))[1]
                + np.linalg.slogdet(precision)[1]
                + residual @ W @ residual
            )

        wide = 3.0 * shift
        info = np.empty((d, d))
        for i in range(d):
            for j in range(d):
                corners = [
                    deviance(point + a * wide[i] + b * wide[j]) for a in (1, -1) for b in (1, -1)
                ]
                info[i, j] = corners[0] - corners[1] - corners[2] + corners[3]
                info[i, j] /= 4 * wide[i, i] * wide[j, j]
    W = 2 * np.linalg.inv(info)
    total = np.zeros_like(phi)
    for i in range(d):
        for j in range(d):
            total += W[i, j] * (Q[i][j] - P[i] @ phi @ P[j])
            if second:
                corners = [
                    covariance(point + a * shift[i] + b * shift[j])
                    for a in (1, -1)
                    for b in (1, -1)
                ]
                bend = (corners[0] - corners[1] - corners[2] + corners[3]) / (
                    4 * steps[i] * steps[j]
                )
                total -= 0.25 * W[i, j] * (X.T @ inverse @ bend @ inverse @ X)
    theta = rows.T @ np.linalg.inv(rows @ phi @ rows.T) @ rows
    u = [theta @ phi @ p @ phi for p in P]
    a1 = sum(W[i, j] * np.trace(u[i]) * np.trace(u[j]) for i in range(d) for j in range(d))
    a2 = sum(W[i, j] * np.trace(u[i] @ u[j]) for i in range(d) for j in range(d))
    return phi + 2 * phi @ total @ phi, a1, a2


def check(reml, covariance, point, df, tolerance, **options):
    """Compare an estimate with the dense computation."""
    judged = reml.with_df(df).inference
    X, rows = reml.design.X, np.eye(reml.design.p)[-2:]
    vcov, a1, a2 = dense(covariance, point, X, rows, y=reml.design.y, **options)
    np.testing.assert_allclose(judged.vcov, vcov, rtol=tolerance, atol=tolerance * vcov.max())
    found = judged.adjustment.moments(rows)
    np.testing.assert_allclose(found, (a1, a2), rtol=10 * tolerance)


def small():
    """Seven boys and seven girls."""
    data = blm.load_dataset("Orthodont")
    return pd.concat([data.iloc[:28], data.iloc[-28:]]).reset_index(drop=True)


def indicator(codes):
    return (np.asarray(codes)[:, None] == np.unique(codes)).astype(float)


def test_patterns_of_random_effects_have_second_derivatives():
    data = small()
    data["visit"] = data["age"].map("{:02.0f}".format)
    reml = blm.LMM("distance ~ age + hetar1(0 + visit | Subject)", data).reml()
    occasion = indicator(data["age"])
    same = np.equal.outer(data["Subject"].to_numpy(), data["Subject"].to_numpy())
    n = len(data)

    def covariance(x):
        sds, rho = np.sqrt(x[:4]), x[4]
        G = np.outer(sds, sds) * rho ** np.abs(np.subtract.outer(range(4), range(4)))
        return same * (occasion @ G @ occasion.T) + x[5] * np.eye(n)

    G = reml.G().iloc[:4, :4].to_numpy()
    rho = G[0, 1] / np.sqrt(G[0, 0] * G[1, 1])
    point = [*np.diag(G), rho, reml.sigma**2]
    check(reml, covariance, point, "kenward-roger", 1e-6, expected=True)
    check(reml, covariance, point, "kenward-roger-linear", 1e-6, expected=True, second=False)


def test_related_levels_and_crossed_factors():
    rng = np.random.default_rng(3)
    n, q = 60, 8
    animal, pen = rng.integers(0, q, n), rng.integers(0, 5, n)
    root = rng.normal(size=(q, q + 2))
    A = root @ root.T / q + np.eye(q)
    names = [f"a{i}" for i in range(q)]
    data = pd.DataFrame({"x": rng.normal(size=n), "pen": pen, "animal": [names[i] for i in animal]})
    effects = np.linalg.cholesky(A) @ rng.normal(size=q)
    data["y"] = data["x"] + effects[animal] + rng.normal(size=5)[pen] + rng.normal(size=n)
    data["pen"] = data["pen"].astype(str)
    known = {"animal": pd.DataFrame(A, index=names, columns=names)}
    reml = blm.LMM("y ~ x + (1 | animal) + (1 | pen)", data, relationships=known).reml()
    Za, Zp = np.eye(q)[animal], np.eye(5)[pen]
    parts = [Za @ A @ Za.T, Zp @ Zp.T, np.eye(n)]

    def covariance(x):
        return sum(value * part for value, part in zip(x, parts, strict=True))

    sds = [float(sd.iloc[0]) for sd in reml.sds.values()]
    point = np.square([*sds, reml.sigma])
    check(reml, covariance, point, "kenward-roger", 1e-6, expected=True)
    # one factor of related levels, of which independent combinations are made
    alone = blm.LMM("y ~ x + (1 | animal)", data, relationships=known).reml()
    point = np.square([float(alone.sds["animal"].iloc[0]), alone.sigma])
    check(
        alone,
        lambda x: x[0] * parts[0] + x[1] * parts[2],
        point,
        "kenward-roger",
        1e-6,
        expected=True,
    )


def test_a_known_sigma_does_not_count_as_estimated():
    data = small()
    reml = blm.LMM("distance ~ age + (1 | Subject)", data, fixed={"sigma": 1.4}).reml()
    same = np.equal.outer(data["Subject"].to_numpy(), data["Subject"].to_numpy()).astype(float)
    point = [float(reml.sds["Subject"].iloc[0]) ** 2]
    check(
        reml,
        lambda x: x[0] * same + 1.4**2 * np.eye(len(data)),
        point,
        "kenward-roger",
        1e-6,
        expected=True,
    )
    slopes = blm.LMM("distance ~ age + (age | Subject)", data, fixed={"sd[Subject, age]": 0.2})
    with pytest.raises(DataError, match="parameters other than sigma are known"):
        slopes.reml().fixef(df="kenward-roger")


LAWS = {
    "us": lambda lag: None,
    "ar1": lambda lag: lambda x: x[0] * x[1] ** (2.0 * lag),  # a correlation at one year
    "cs": lambda lag: lambda x: np.where(lag == 0, x[0] + x[1], x[1]),
    "toep": lambda lag: lambda x: np.array([x[0], x[1], x[2], x[3]])[lag.astype(int)],
}


@pytest.mark.parametrize(
    ("law", "random"),
    [
        ("cs", ""),
        ("ar1", " + (1 | Sex)"),
        ("us", ""),
        slow("ar1", ""),
        slow("toep", ""),
        slow("cs", " + (1 | Sex)"),
        slow("toep", " + (1 | Sex)"),
        slow("us", " + (1 | Sex)"),
    ],
)
def test_residual_structures_with_and_without_random_effects(law, random):
    data = small() if law != "ar1" else blm.load_dataset("Orthodont")  # enough for a maximum
    data = data.drop(index=[2, 9, 30, 31, 41]).reset_index(drop=True)
    reml = blm.LMM(f"distance ~ age{random}", data, residual=f"{law}(age | Subject)").reml()
    subject, place = data["Subject"].to_numpy(), (data["age"].to_numpy() - 8) / 2
    same, sex = np.equal.outer(subject, subject), indicator(data["Sex"])
    lag = np.abs(np.subtract.outer(place, place))
    R = reml.R().to_numpy()
    if law == "us":
        pairs = [(a, b) for a in range(4) for b in range(a + 1)]
        full = {pair: R[np.ix_(place == pair[0], place == pair[1])].max() for pair in pairs}
        start = [full[pair] for pair in pairs]

        def residual(x):
            matrix = np.zeros((4, 4))
            for (a, b), value in zip(pairs, x, strict=True):
                matrix[a, b] = matrix[b, a] = value
            where = place.astype(int)
            return matrix[np.ix_(where, where)]
    else:
        values = [R[lag == k].max() for k in range(4)]
        start = {
            "ar1": [values[0], np.sqrt(values[1] / values[0])],
            "cs": [values[0] - values[1], values[1]],
            "toep": values,
        }[law]
        residual = LAWS[law](lag)
    size = len(start)

    def covariance(x):
        ties = x[size] * sex @ sex.T if random else 0.0
        return same * residual(x[:size]) + ties

    point = [*start, *([float(reml.sds["Sex"].iloc[0]) ** 2] if random else [])]
    tolerance = 3e-4 if random else 1e-4  # Hessians of the deviance by differences
    check(reml, covariance, point, "kenward-roger", tolerance, expected=False)
    check(reml, covariance, point, "kenward-roger-linear", tolerance, expected=False, second=False)


def test_powers_of_covariates_and_known_correlations():
    data = small()
    same = np.equal.outer(data["Subject"].to_numpy(), data["Subject"].to_numpy())
    age = data["age"].to_numpy()
    reml = blm.LMM("distance ~ age + (1 | Subject)", data, residual="power(age)").reml()
    power = reml.varcorr(style="nlme")["estimate"].loc["varPower[age]"]
    point = [float(reml.sds["Subject"].iloc[0]) ** 2, reml.sigma**2, power]
    relative = age / np.exp(np.log(age).mean())  # sigma is that at the geometric mean

    def covariance(x):
        return x[0] * same + x[1] * np.diag(relative ** (2 * x[2]))

    check(reml, covariance, point, "kenward-roger", 1e-4, expected=False)
    residual = "ar1(age | Subject)"
    held = blm.LMM("distance ~ age", data, residual=residual, fixed={"cor_residual": 0.9}).reml()
    fixed = same * 0.9 ** np.abs(np.subtract.outer(age, age))
    check(held, lambda x: x[0] * fixed, [held.sigma**2], "kenward-roger", 1e-4, expected=False)


# --- SAS -------------------------------------------------------------------------------------


@cache
def trial(structure):
    place = "VISITN + VISITN2" if structure in ("sp_exp", "gau") else "AVISIT"
    data = pd.read_csv(FOLDER / "structures" / "fev_data.csv")
    return blm.LMM("FEV1 ~ ARMCD", data, residual=f"{structure}({place} | USUBJID)").reml()


def _case(row):
    name = f"{row['structure']}-{row['form']}"
    long = name == "sp_exp-linear"  # a block of rows for each subject
    return pytest.param(row, id=name, marks=[pytest.mark.slow] if long else [])


@pytest.mark.parametrize("row", [_case(row) for row in SAS.to_dict("records")])
def test_the_trial_of_forced_expiratory_volume_is_as_in_sas(row):
    df = {"full": "kenward-roger", "linear": "kenward-roger-linear"}[row["form"]]
    found = trial(row["structure"]).fixef(df=df).loc["ARMCD[T.TRT]"]
    # SAS' search ends at a relative criterion of 1e-8, a few 1e-4 of a standard error away; where
    # it ends at the maximum (ar1, cs, toeph) we agree to 1e-5
    near = row["structure"] in ("ar1", "cs", "toeph", "sp_exp")
    assert found["std_error"] == pytest.approx(row["std_error"], rel=3e-6 if near else 1.3e-4)
    assert found["df"] == pytest.approx(row["df"], rel=1e-5 if near else 5e-4)


@pytest.mark.slow
def test_gaussian_fields_are_as_in_sas():
    errors = [
        trial("gau").fixef(df=df).loc["ARMCD[T.TRT]", "std_error"]
        for df in ("kenward-roger", "kenward-roger-linear")
    ]
    assert np.round(errors, 4).tolist() == [0.9016, 0.9028]


# --- what is refused, and sizes -----------------------------------------------------------


def test_what_the_method_is_not_for_is_refused_in_words():
    model = blm.LMM("distance ~ age + (1 | Subject)", small())
    with pytest.raises(ValueError, match="this one is by ML"):
        model.ml().fixef(df="kenward-roger")
    with pytest.raises(ValueError, match="MAP estimate is a posterior one"):
        model.map().with_df("kenward-roger")


def test_too_many_effects_that_are_tied_are_refused(monkeypatch):
    from bayeslmm.estimation import row_blocks, variance_forms

    reml = blm.LMM("distance ~ age + (1 | Subject) + (1 | Sex)", small()).reml()
    entry_forms(reml.fit.factorisation)
    assert MOST_TIED == 4000
    monkeypatch.setattr(variance_forms, "MOST_TIED", 5)
    with pytest.raises(DataError, match="done for up to 5"):
        reml.fixef(df="kenward-roger")
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 3)
    structured = blm.LMM("distance ~ age", small(), residual="ar1(age | Subject)").reml()
    with pytest.raises(DataError, match="here 4 of them; it is done for up to 3"):
        structured.fixef(df="kenward-roger")


def test_large_blocks_have_another_root(monkeypatch):
    from bayeslmm.estimation import variance_forms

    data = small()
    formula = "distance ~ age + (age | Subject) + (1 | Sex)"  # all subjects of a sex are tied
    reml = blm.LMM(formula, data).reml()
    by_eigenvalues = reml.fixef(df="kenward-roger")
    monkeypatch.setattr(variance_forms, "LARGE", 2)
    monkeypatch.setattr(variance_forms, "AT_ONCE", 1)  # a block at a time
    pd.testing.assert_frame_equal(reml.fixef(df="kenward-roger"), by_eigenvalues, rtol=1e-9)


def test_it_is_found_from_sums_over_batches():
    data = small()
    formula = "distance ~ age * Sex + (age | Subject)"
    kept = blm.LMM(formula, data).reml().fixef(df="kenward-roger")
    sums = blm.LMM(formula, [data.iloc[:32], data.iloc[32:]]).reml().fixef(df="kenward-roger")
    np.testing.assert_allclose(sums, kept, rtol=1e-6)


def test_ten_thousand_levels_need_no_matrix_of_levels_by_levels():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(10_000), 2)
    x = rng.normal(size=len(g))
    y = x + rng.normal(size=10_000)[g] + rng.normal(size=len(g))
    reml = blm.LMM("y ~ x + (1 | g)", pd.DataFrame({"y": y, "x": x, "g": g})).reml()
    tracemalloc.start()
    table = reml.fixef(df="kenward-roger")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000**2  # bytes: one matrix of the levels has eight times as many
    np.testing.assert_allclose(table["std_error"], reml.fixef()["std_error"], rtol=1e-3)


def test_linear_structures_are_known():
    linear = {"us": True, "cs": True, "toep": True, "csh": False, "ar1": False}
    for name, expected in linear.items():
        assert is_linear(trial(name).fit.plan.residual) is expected
