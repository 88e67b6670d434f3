"""Fits pickle whatever was asked of them before, and say the same afterwards."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
import warnings
from functools import cached_property

import cloudpickle
import numpy as np
import pandas as pd
import pymc as pm
import pytest
import xarray as xr

import bayeslmm as blm

FORMULA = "Reaction ~ Days + (Days | Subject)"
PRIORS = {
    "Days": pm.StudentT.dist(nu=4, mu=0.0, sigma=30.0),
    "sd[Subject]": pm.TruncatedNormal.dist(mu=20.0, sigma=20.0, lower=0.0),
    "sigma": pm.Gamma.dist(2, 0.1),
}

ARGUMENTS = {
    "comparisons": ("Days",),
    "contest": ([[0.0, 1.0]],),
    "contrasts": ("Days",),
    "hypothesis": ("Days > 0",),
    "robust": ("Subject",),
    "slopes": ("Days",),
    "with_df": ("kenward-roger",),
}
OPTIONS = {
    "contrasts": {"at": {"Days": [0, 9]}},
    "bootstrap": {"n": 4, "random_seed": 1},
    "extend": {"draws": 5, "random_seed": 1},
    "predict": {"random_seed": 1},
    "residuals": {"draws": 20, "random_seed": 1},
}
ELSEWHERE = {
    *("save", "report", "compare_reml", "reml", "predict_missing", "with_source"),
    *("heterogeneity", "forest", "impute", "reference_based_effect"),
}
"""They need a file, another fit, rows or another model; the first four are called below."""


@pytest.fixture(scope="module")
def model():
    sleep = blm.load_dataset("sleepstudy")
    return blm.LMM(FORMULA, sleep[sleep["Subject"].isin(sleep["Subject"].unique()[:6])])


@pytest.fixture(scope="module")
def post(model):
    return model.fit(draws=30, random_seed=1)


def use(fit):
    """Call every public method and read every property, of accessors too; the number of them."""
    used = 0
    for name in dir(type(fit)):
        if name.startswith("_") or name in ELSEWHERE:
            continue
        value = getattr(fit, name)
        if name in ("check", "plot"):
            used += use(value)
        elif callable(value):
            known = inspect.signature(value).parameters
            options = OPTIONS.get(name, {})
            if name != "contrasts":  # its picture passes on what the table takes
                options = {k: v for k, v in options.items() if k in known}
            options = dict(options)
            if "backend" in known:
                options["backend"] = "none"
            if "progressbar" in known:
                options["progressbar"] = False
            value(*ARGUMENTS.get(name, ()), **options)
        used += 1
    return used


def same(one, two):
    """Whether two fits have the same values and give the same answers."""
    answers = {"summary": {}, "fixef": {}, "ranef": {}, "predict": {"random_seed": 1}}
    for name, options in answers.items():
        before, after = (getattr(fit, name)(**options) for fit in (one, two))
        before, after = (x if isinstance(x, dict) else {"": x} for x in (before, after))
        for key in before:
            pd.testing.assert_frame_equal(before[key], after[key])
    return repr(one) == repr(two)


def copies(value):
    yield pickle.loads(pickle.dumps(value))
    yield pickle.loads(cloudpickle.dumps(value))
    yield copy.deepcopy(value)
    yield copy.copy(value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["post", "reml"])
def test_fits_pickle_after_everything(kind, post, model, caplog):
    fit = post if kind == "post" else model.reml()
    size = len(pickle.dumps(fit))
    with warnings.catch_warnings(), caplog.at_level(logging.CRITICAL, logger="bayeslmm"):
        warnings.simplefilter("ignore")  # few draws, bad Pareto k
        assert use(fit) > 40
        for other in copies(fit):
            assert same(fit, other)
    assert len(pickle.dumps(fit)) < 1.1 * size


@pytest.mark.parametrize("kind", ["post", "reml"])
def test_fits_pickle_with_all_that_they_have_cached(kind, post, model):
    fit = post if kind == "post" else model.reml()
    names = [name for name, _ in inspect.getmembers_static(type(fit), is_cached)]
    assert names
    for name in names:
        getattr(fit, name)
    for other in copies(fit):
        assert list(vars(other)) == list(fit.__dataclass_fields__)
        assert same(fit, other)


def is_cached(member):
    return isinstance(member, cached_property)


def test_models_pickle_with_priors_of_every_kind(model):
    x = np.array([-1.0, 0.5, 3.0])
    for priors in ("default", "flat", PRIORS):
        own = blm.LMM(FORMULA, model.design.data, priors=priors)
        assert own.system is own.system
        for other in copies(own):
            assert other.priors.table().equals(own.priors.table())
            for one, two in zip(records(own), records(other), strict=True):
                np.testing.assert_array_equal(one.logpdf(x), two.logpdf(x))
    one, two = (m.fit(draws=20, random_seed=1) for m in (model, pickle.loads(pickle.dumps(model))))
    xr.testing.assert_equal(one.data["posterior"].dataset, two.data["posterior"].dataset)


def records(model):
    priors = model.priors
    return [*priors.beta, *(prior for sds in priors.sd for prior in sds), priors.sigma]


def test_priors_that_are_functions_need_cloudpickle(model):
    def logp(value, scale):
        return -value / scale

    prior = pm.CustomDist.dist(10.0, logp=logp, class_name="Mine")
    own = blm.LMM(FORMULA, model.design.data, priors={"Days": prior})
    other = pickle.loads(cloudpickle.dumps(own))
    x = np.array([0.5, 3.0])
    np.testing.assert_array_equal(other.priors.beta[1].logpdf(x), own.priors.beta[1].logpdf(x))


def test_comparisons_after_unpickling(post, model):
    reml = model.reml()
    again, estimate = pickle.loads(pickle.dumps((post, reml)))
    pd.testing.assert_frame_equal(blm.compare_reml(again, estimate), blm.compare_reml(post, reml))
    simpler = model.update("Reaction ~ Days + (1 | Subject)")
    less, ml = simpler.fit(draws=30, random_seed=1), simpler.ml()
    before = blm.lrt(ml, model.ml())
    after = blm.lrt(*pickle.loads(pickle.dumps((ml, model.ml()))))
    pd.testing.assert_frame_equal(after, before)
    one, two = (
        blm.bayes_factor(post, less),
        blm.bayes_factor(again, pickle.loads(pickle.dumps(less))),
    )
    assert repr(one) == repr(two)
