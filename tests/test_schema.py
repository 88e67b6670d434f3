"""Names in the posterior, exception texts, optional imports."""

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayeslmm import schema
from bayeslmm.exceptions import BayesLMMError, FormulaError, OptionalDependencyError, require


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Subject", "Subject"),
        ("batch:cask", "batch_cask"),
        ("my group", "my_group"),
        ("a.b", "a_b"),
        ("_g_", "g"),
        ("2nd", "g_2nd"),
        ("Schüler", "Schüler"),
        ("--", "group"),
        ("", "group"),
    ],
)
def test_sanitise(name, key):
    assert schema.sanitise(name) == key


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        ([], ()),
        (["g", "h"], ("g", "h")),
        (["a:b", "a_b", "a.b"], ("a_b", "a_b_2", "a_b_3")),
        (["sigma", "draw", "coef", "obs_id"], ("sigma", "draw", "coef", "obs_id")),
        (["g", "g_coef"], ("g", "g_coef_2")),
        (["g_coef", "g"], ("g_coef", "g_2")),
        (["g", "sd_g"], ("g", "sd_g_2")),
        (["u_g", "g"], ("u_g", "g_2")),
    ],
)
def test_group_keys(names, keys):
    assert schema.group_keys(names) == keys


def names_of(key):
    return [
        schema.level_dim(key),
        schema.coef_dim(key),
        schema.coef_bis_dim(key),
        schema.sd_name(key),
        schema.cor_name(key),
        schema.corr_name(key),
        schema.pair_dim(key),
        schema.u_name(key),
    ]


def test_derived_names():
    assert names_of("g") == [
        *("g", "g_coef", "g_coef_bis", "sd_g", "cor_g", "corr_g", "g_pair", "u_g")
    ]


awkward = st.sampled_from(["a", "a_coef", "sd_a", "cor_a", "u_a", "a_2", "a:2", "corr_a", "a_pair"])


@given(st.lists(st.one_of(awkward, st.text(max_size=6)), max_size=8))
def test_group_keys_never_clash(names):
    keys = schema.group_keys(names)
    derived = [name for key in keys for name in names_of(key)]
    assert len(set(derived)) == len(derived)
    assert schema.RESERVED.isdisjoint(derived)
    assert all(re.fullmatch(r"\w+", key) for key in keys)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FormulaError("Wrong."), "Wrong."),
        (FormulaError("Wrong.", "y ~ x"), "Wrong.\n  y ~ x"),
        (FormulaError("Wrong.", "y ~ x", 4), "Wrong.\n  y ~ x\n      ^"),
        (FormulaError("Wrong.", "y ~ abc", 4, 7), "Wrong.\n  y ~ abc\n      ^^^"),
        (FormulaError("Wrong.", "y ~\n\tx + z", 5, 6), "Wrong.\n  y ~\n  \tx + z\n  \t^"),
        (FormulaError("Wrong.", "a\nb", 0, 3), "Wrong.\n  a\n  ^\n  b"),
    ],
)
def test_formula_error_text(error, text):
    assert str(error) == text


def test_formula_error_survives_pickling():
    error = pickle.loads(pickle.dumps(FormulaError("Wrong.", "y ~ x", 4, 5)))
    assert (error.message, error.source, error.start, error.end) == ("Wrong.", "y ~ x", 4, 5)
    assert isinstance(error, BayesLMMError) and isinstance(error, ValueError)


def test_require_imports_what_is_there():
    assert require("json.decoder", "x").__name__ == "json.decoder"


def test_require_names_the_extra():
    with pytest.raises(OptionalDependencyError) as caught:
        require("no_such_package.part", "plots")
    assert str(caught.value) == (
        "This feature needs 'no_such_package', which is not installed. "
        'Install it with: pip install "bayeslmm[plots]"'
    )
    assert isinstance(caught.value, ImportError)


def test_require_does_not_hide_a_broken_package(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import missing_dependency_of_it")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="missing_dependency_of_it"):
        require("broken_package", "plots")


def test_levels_of_a_reserved_name_have_a_dimension_of_their_own():
    assert schema.level_dim("sample") == "sample_level"
    assert schema.level_dim("Subject") == "Subject"
