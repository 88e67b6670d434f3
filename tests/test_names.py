"""Names of coefficients and grouping factors in R, matched with formulaic's labels."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_data import list_fits, load_fit, load_reference_data

from bayeslmm.comparison.names import from_r, group_from_r, pair_from_r, unmatched_message
from bayeslmm.formula.grammar import parse
from bayeslmm.formula.matrices import evaluate

LABELS = [
    "Intercept",
    "age",
    "Sex[T.Female]",
    "age:Sex[T.Female]",
    "I(day ** 2)",
    "poly(x, 2)[1]",
    "poly(x, 2)[2]",
    "poly(z, 2, raw=True)[0]",
    "poly(z, 2, raw=True)[1]",
    "C(k)[T.2]",
    "C(k)[T.1]",
    "C(w)[T.2.0]",
    "flag[T.True]",
    "C(f, contr.sum)[S.b]",
    "C(f, contr.sum)[S.a]",
    "C(o, contr.poly)[.L]",
    "C(o, contr.poly)[^4]",
    "C(f, contr.sum)[S.b]:age",
    "C(f, contr.sum)[S.a]:age",
    "np.log(x ** 2)",
    "center(x)",
    "my column",
    "my factor[T.v w]",
    "x * 2",
    "site[T.a:b]:age",
    "sin(2 * pi * t)",
    "cells[low]",
]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("(Intercept)", "Intercept"),
        ("SexFemale", "Sex[T.Female]"),
        ("age:SexFemale", "age:Sex[T.Female]"),
        ("SexFemale:age", "age:Sex[T.Female]"),
        ("Sex[T.Female]", "Sex[T.Female]"),
        ("C(Sex)[T.Female]", "Sex[T.Female]"),
        ("age:C(Sex)[T.Female]", "age:Sex[T.Female]"),
        ("C(Sex)[T.Male]", None),
        ("I(day^2)", "I(day ** 2)"),
        ("I(day ^ 2)", "I(day ** 2)"),
        ("poly(x, 2)1", "poly(x, 2)[1]"),
        ("poly(z, 2, raw = TRUE)1", "poly(z, 2, raw=True)[0]"),
        ("poly(z, 2, raw = TRUE)2", "poly(z, 2, raw=True)[1]"),
        ("factor(k)1", "C(k)[T.1]"),
        ("as.factor(k)2", "C(k)[T.2]"),
        ("k2", "C(k)[T.2]"),
        ("factor(w)2", "C(w)[T.2.0]"),
        ("flagTRUE", "flag[T.True]"),
        ("f1", "C(f, contr.sum)[S.b]"),
        ("f2:age", "C(f, contr.sum)[S.a]:age"),
        ("C(f, contr.sum)2", "C(f, contr.sum)[S.a]"),
        ("o.L", "C(o, contr.poly)[.L]"),
        ("o^4", "C(o, contr.poly)[^4]"),
        ("log(x^2)", "np.log(x ** 2)"),
        ("scale(x, scale = FALSE)", "center(x)"),
        ("`my column`", "my column"),
        ("`my factor`v w", "my factor[T.v w]"),
        ("I(x * 2)", "x * 2"),
        ("sitea:b:age", "site[T.a:b]:age"),
        ("sin(2 * pi * t)", "sin(2 * pi * t)"),
        ("cellslow", "cells[low]"),
        ("weight", None),
        ("Sex", None),
        ("", None),
    ],
)
def test_names_of_r(name, label):
    assert from_r(name, LABELS) == label


def test_ambiguous_name():
    with pytest.raises(ValueError, match=r"fits 'f\[T.12\]' and 'f1\[T.2\]'.*names=\{'f12'"):
        from_r("f12", ["f[T.12]", "f1[T.2]"])


def test_names_given_come_first():
    known = ["f[T.12]", "f1[T.2]", "Sex[T.Female]"]
    assert from_r("f12", known, {"f12": "f1[T.2]"}) == "f1[T.2]"
    assert from_r("SexF", known, {"SexF": "Sex[T.Female]"}) == "Sex[T.Female]"
    assert pair_from_r("(Intercept).t", ["Intercept", "Days"], {"t": "Days"}) == (
        "Intercept",
        "Days",
    )
    assert group_from_r("id", ["Subject", "Item"], {"id": "Subject"}) == "Subject"


def test_an_exact_label_is_never_ambiguous():
    assert from_r("f12", ["f12", "f[T.12]"]) == "f12"


@pytest.mark.slow
@given(st.text(max_size=30))
def test_any_text_is_matched_or_not(name):
    assert from_r(name, LABELS[:9]) in (None, *LABELS[:9])


@pytest.mark.reference
@pytest.mark.parametrize("fit", [name for name in list_fits() if "_reml" in name])
def test_every_reference_fit_is_matched(fit):
    record = load_fit(fit)
    if record["contrasts"] or "rankdef" in fit:
        pytest.skip("the formula does not say the contrasts, or columns are dropped")
    frame = load_reference_data(record["dataset"])
    if "temperature" in frame and isinstance(frame["temperature"].dtype, pd.CategoricalDtype):
        pytest.skip("ordered factors have other contrasts in R")
    frame = frame.dropna()
    names = record["fixed"]["names"]
    formula = record["formula"].replace("^2)", "**2)")
    labels = evaluate(parse(formula).fixed, frame).names
    assert sorted(from_r(name, labels) for name in names) == sorted(labels)


@pytest.mark.parametrize(
    ("contrasts", "names"),
    [
        ("contr.sum", ["f1", "f2", "f3"]),
        ("contr.helmert", ["f1", "f2", "f3"]),
        ("contr.poly", ["f.L", "f.Q", "f.C"]),
        ("contr.treatment", ["fb", "fc", "fd"]),
        ("contr.SAS", ["fa", "fb", "fc"]),
    ],
)
def test_contrasts_of_r(contrasts, names):
    frame = pd.DataFrame({"f": list("abcd") * 3, "x": np.arange(12.0) ** 2})
    labels = evaluate(f"1 + C(f, {contrasts}) * x", frame).names
    expected = ["(Intercept)", *names, "x", *(f"{name}:x" for name in names)]
    assert [from_r(name, labels) for name in expected] == list(labels)


def test_pairs():
    known = ["Intercept", "Days", "x.1", "poly(x, 2)[1]"]
    assert pair_from_r("(Intercept).Days", known) == ("Intercept", "Days")
    assert pair_from_r("Days.(Intercept)", known) == ("Intercept", "Days")
    assert pair_from_r("Days.x.1", known) == ("Days", "x.1")
    assert pair_from_r("poly(x, 2)1.(Intercept)", known) == ("Intercept", "poly(x, 2)[1]")
    assert pair_from_r("Days.Days", known) is None
    assert pair_from_r("Days.Nights", known) is None


def test_groups():
    known = ["batch", "batch:cask", "plate"]
    assert group_from_r("cask:batch", known) == "batch:cask"
    assert group_from_r("batch/cask", known) == "batch:cask"
    assert group_from_r("batch", known) == "batch"
    assert group_from_r("cask", known) == "batch:cask"
    assert group_from_r("plate.1", known) == "plate"
    assert group_from_r("site", known) is None
    assert group_from_r("a", ["a:b", "a:c"]) is None


def test_message_lists_both_sides():
    message = unmatched_message(["SexF"], ["beta[Sex[T.Female]]"])
    assert "only in the estimate: SexF\n" in message
    assert "only in the model: beta[Sex[T.Female]]\n" in message
