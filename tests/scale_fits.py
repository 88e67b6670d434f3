"""Posteriors of models with Student-t residuals or predictors of sigma, made without sampling."""

import numpy as np

from bayeslmm.fits.posterior import Posterior
from bayeslmm.sampling.tree import posterior_tree

CHAINS, DRAWS = 2, 100


def made_up(model, seed=0):
    """A posterior whose draws are noise around a sensible point: what verbs do with draws."""
    design, size = model.design, CHAINS * DRAWS
    rng = np.random.default_rng(seed)
    prior = model.prior_predictive(size, random_seed=seed)["prior"].dataset
    values = {str(k): v[0].to_numpy() for k, v in prior.variables.items() if "draw" in v.dims}
    start = np.linalg.lstsq(design.X, design.y, rcond=None)[0]
    spread = np.std(design.y - design.X @ start)
    values = {k: v for k, v in values.items() if k != "draw" and not k.startswith("corr_")}
    for name, value in values.items():
        noise, of_scale = rng.normal(size=value.shape), "_sigma_" in name
        if name == "beta":
            values[name] = start + 0.1 * spread * noise
        elif name == "beta_sigma":
            values[name] = 0.05 * noise
            values[name][:, 0] += np.log(spread)
        elif name == "sigma":
            values[name] = spread * np.exp(0.1 * noise)
        elif name == "nu":
            values[name] = 3.0 + np.exp(noise)
        elif name.startswith("sd_"):
            values[name] = (0.4 if of_scale else 0.3 * spread) * np.exp(0.2 * noise)
        elif name.startswith("u_"):
            values[name] = (0.3 if of_scale else 0.3 * spread) * noise.swapaxes(-1, -2)
    chains = {k: v.reshape(CHAINS, DRAWS, *v.shape[1:]) for k, v in values.items()}
    stats = {"lp": rng.normal(size=(CHAINS, DRAWS)), "diverging": np.zeros((CHAINS, DRAWS), bool)}
    attrs = {"method": "nuts", "form": "noncentered"}
    return Posterior(model.model, posterior_tree(design, model.priors, chains, stats, attrs))
