"""The sleepstudy model as PyMC's documentation writes it, with our priors, sampled by nutpie."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pymc as pm
from _common import CORES

from bayeslmm.data.design import Design
from bayeslmm.priors.record import Priors


def textbook_model(design: Design, priors: Priors) -> pm.Model:
    """Noncentered random slopes with ``LKJCholeskyCov``; one grouping factor, one covariate.

    Its standard deviations are multiplied by their prior scales afterwards, which gives the priors
    that the table shows.
    """
    (factor,), (sds,), ((lkj,),) = design.random, priors.sd, priors.cor
    scale = np.array([sd.sigma for sd in sds])
    level, y = np.array(factor.codes), np.array(design.y)
    x = np.array(design.X[:, 1])
    with pm.Model() as model:
        intercept = pm.Normal("intercept", priors.beta[0].mu, priors.beta[0].sigma)
        slope = pm.Normal("slope", priors.beta[1].mu, priors.beta[1].sigma)
        sd_dist = pm.HalfStudentT.dist(sds[0].nu, sigma=1.0, shape=2)
        chol, cor, unit = pm.LKJCholeskyCov("chol", n=2, eta=lkj.eta, sd_dist=sd_dist)
        pm.Deterministic("sd", unit * scale)
        pm.Deterministic("cor", cor[1, 0])
        z = pm.Normal("z", 0.0, 1.0, shape=(factor.n_levels, 2))
        u = pm.Deterministic("u", z @ chol.T * scale)
        sigma = pm.HalfStudentT("sigma", priors.sigma.nu, priors.sigma.sigma)
        mean = intercept + slope * (x - x.mean()) + u[level, 0] + u[level, 1] * x
        pm.Normal("y", mean, sigma, observed=y)
    return model


def sample_textbook(design: Design, priors: Priors, seed: int, target_accept: float) -> Any:
    """Posterior by nutpie on all cores."""
    logging.getLogger("pymc").setLevel(logging.ERROR)
    names = ["intercept", "slope", "sd", "cor", "u", "sigma"]
    options = {"nuts_sampler": "nutpie", "chains": 4, "cores": CORES, "progressbar": False}
    with textbook_model(design, priors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pm.sample(random_seed=seed, var_names=names, target_accept=target_accept, **options)


def draws_of_textbook(tree: Any, design: Design) -> dict[str, np.ndarray]:
    """Draws (chain, draw) by our names."""
    posterior = {name: array.to_numpy() for name, array in tree["posterior"].dataset.items()}
    (factor,), coefs = design.random, design.coefs
    centre = posterior["slope"] * design.X[:, 1].mean()
    draws = {
        f"beta[{coefs[0]}]": posterior["intercept"] - centre,
        f"beta[{coefs[1]}]": posterior["slope"],
        f"cor[{factor.name}, {', '.join(factor.coefs)}]": posterior["cor"],
        "sigma": posterior["sigma"],
    }
    for c, coef in enumerate(factor.coefs):
        draws[f"sd[{factor.name}, {coef}]"] = posterior["sd"][..., c]
        for j, level in enumerate(factor.levels):
            draws[f"u[{factor.name}, {level}, {coef}]"] = posterior["u"][..., j, c]
    return draws
