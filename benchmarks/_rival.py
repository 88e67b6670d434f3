"""One fit by one rival, in its own process and perhaps by another interpreter.

    python benchmarks/_rival.py {glmm,statsmodels,bambi} FILE [--priors JSON] [--draws FILE]

Needs nothing of the other scripts nor of bayeslmm. The last line printed is JSON: seconds of
reading and of fitting, the criterion and the estimates; Bambi's draws go to a file.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from importlib.metadata import version

import numpy as np
import pyarrow.parquet as pq

COLUMNS = ["g", "x", "y"]


def fit_glmm(file, options):
    """REML without degrees of freedom, which lme4 and we do not compute either."""
    import glmm

    start = time.perf_counter()
    table = pq.read_table(file, columns=COLUMNS)
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    read = time.perf_counter()
    fit = glmm.fit(columns, "y ~ x + (1 + x | g)", satterthwaite=False)
    done = time.perf_counter()
    ((a, b, c),) = fit.varcorr
    return {
        "read": read - start,
        "fit": done - read,
        "criterion": -2.0 * fit.loglik,
        "estimates": [*fit.beta, a**0.5, c**0.5, b / (a * c) ** 0.5, fit.dispersion**0.5],
    }


def fit_statsmodels(file, options):
    """REML of MixedLM."""
    import statsmodels.formula.api as smf

    start = time.perf_counter()
    frame = pq.read_table(file, columns=COLUMNS).to_pandas()
    read = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = smf.mixedlm("y ~ x", frame, groups="g", re_formula="~x").fit(reml=True)
    done = time.perf_counter()
    (a, b), (_, c) = np.asarray(fit.cov_re)
    return {
        "read": read - start,
        "fit": done - read,
        "criterion": -2.0 * fit.llf,
        "estimates": [*fit.fe_params, a**0.5, c**0.5, b / (a * c) ** 0.5, fit.scale**0.5],
    }


def fit_bambi(file, options):
    """Posterior by nutpie with given priors; Bambi has no correlations of random effects."""
    import bambi as bmb

    logging.getLogger("pymc").setLevel(logging.ERROR)
    start = time.perf_counter()
    frame = pq.read_table(file, columns=COLUMNS).to_pandas()
    frame["g"] = frame["g"].astype("category")
    read = time.perf_counter()
    given = {}
    for name, (family, parameters) in json.loads(options.priors).items():
        given[name] = bmb.Prior(family, auto_scale=False, **parameters)
    for term in ("1|g", "x|g"):
        given[term] = bmb.Prior("Normal", auto_scale=False, mu=0, sigma=given.pop(f"{term}_sigma"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = bmb.Model("y ~ x + (x | g)", frame, priors=given)
        tree = model.fit(inference_method="nutpie", random_seed=1, progressbar=False)
    done = time.perf_counter()
    posterior = tree["posterior"].dataset
    names = ["Intercept", "x", "1|g_sigma", "x|g_sigma", "sigma"]
    np.savez(options.draws, **{name: posterior[name].to_numpy() for name in names})
    return {"read": read - start, "fit": done - read}


RIVALS = {"glmm": fit_glmm, "statsmodels": fit_statsmodels, "bambi": fit_bambi}


def main():
    """Run one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("file")
    parser.add_argument("--priors")
    parser.add_argument("--draws")
    options = parser.parse_args()
    result = RIVALS[options.rival](options.file, options)
    print(json.dumps({"version": version(options.rival), **result}, default=float))


if __name__ == "__main__":
    main()
