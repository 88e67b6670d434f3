"""The main paths of the package, as a script: with ``python -W error`` it must be silent.

Arguments: a folder for files, then samplers. A warning that reaches users is a traceback here.
With ``--all`` every step is tried, and what failed is listed.
"""

import functools
import logging
import sys
import traceback
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import polars as pl

import bayeslmm as blm
from bayeslmm.__main__ import main

QUIET = {"draws": 50, "chains": 2, "random_seed": 1, "progressbar": False}
STILL = {"progressbar": False}


def estimate_steps(fit):
    yield from (fit.summary, fit.tidy, fit.glance, fit.augment, fit.predict, fit.r2)
    yield functools.partial(repr, fit)
    yield functools.partial(fit.predict, fit.design.data, target="new")
    yield functools.partial(fit.slopes, "Days")
    yield functools.partial(fit.comparisons, "Days")
    yield functools.partial(fit.hypothesis, "Days = 0")
    yield functools.partial(fit.simulate, 3, random_seed=1)
    yield functools.partial(fit.contest, [[0.0, 1.0]])
    yield from (fit.average_predictions, fit.means, fit.check.influence, fit.check.residuals)
    yield from (fit.check.singularity, fit.methods_paragraph, fit.to_html, fit.ranef, fit.confint)
    yield from (fit.plot.caterpillar, fit.plot.covariance, fit.plot.fitted, fit.plot.residuals)


def posterior_steps(post, folder):
    yield from (post.summary, post.tidy, post.glance, post.augment, post.predict)
    yield from (functools.partial(repr, post), post._repr_html_, post.to_html, post.to_latex)
    yield functools.partial(post.predict, post.design.data, target="new", random_seed=1)
    yield functools.partial(post.loo, **STILL)
    yield functools.partial(post.loo, by="Subject", **STILL)
    yield functools.partial(post.check.influence, **STILL)
    yield functools.partial(post.slopes, "Days")
    yield functools.partial(post.comparisons, "Days")
    yield functools.partial(post.hypothesis, "Days = 0")
    yield functools.partial(post.simulate, 3, random_seed=1)
    yield functools.partial(post.check.predictive, random_seed=1)
    yield functools.partial(post.check.residuals, random_seed=1)
    yield from (post.check.loo_pit, post.means, post.average_predictions, post.check.sensitivity)
    reml = blm.LMM(post.design.formula.source, post.design.data).reml()
    yield functools.partial(post.compare_reml, reml)
    yield functools.partial(post.plot.reml, reml)
    yield functools.partial(repr, post.diagnostics)
    yield from (post.methods_paragraph, post.check.singularity, post.r2, post.ranef)
    yield from (post.plot.caterpillar, post.plot.covariance, post.plot.fitted)
    yield from (post.plot.predictive, post.plot.prior_posterior)
    yield from (post.plot.residuals, post.plot.shrinkage)
    for kind in ("nc", "zarr"):
        yield functools.partial(post.save, folder / f"post.{kind}")
        yield lambda kind=kind: blm.load(folder / f"post.{kind}").summary()
    yield functools.partial(post.report, folder / "report.html")
    if post.method != "laplace":
        yield functools.partial(post.extend, 20, **STILL)


def factor_steps():
    data = pl.from_pandas(blm.load_dataset("Machines"))
    model = blm.LMM("score ~ Machine + (1 | Worker)", data)
    smaller = blm.LMM("score ~ 1 + (1 | Worker)", data)
    post = model.fit(method="laplace", **QUIET)
    other = smaller.fit(method="laplace", **QUIET)
    for fit in (model.reml(), post):
        yield functools.partial(fit.means, "Machine")
        yield functools.partial(fit.contrasts, "Machine")
        yield functools.partial(fit.comparisons, "Machine")
    yield model.reml().anova
    yield functools.partial(blm.compare, {"machine": post, "none": other}, **STILL)
    yield lambda: blm.lrt(smaller.ml(), model.ml())
    yield lambda: blm.model_table([model.reml(), post])
    yield functools.partial(model.prior_predictive, 10, random_seed=1)
    yield lambda: model.update("score ~ 1 + (1 | Worker)")
    yield model.implied_priors


def steps(folder, methods):
    model = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
    if "estimates" in methods:
        for estimate in (model.reml(), model.ml(), model.map()):
            yield from estimate_steps(estimate)
        yield functools.partial(model.ml().bootstrap, 5, random_seed=1, **STILL)
        yield from factor_steps()
        options = ["--draws", "50", "--chains", "2", "--seed", "1", "--quiet"]
        yield lambda: main(["Yield ~ 1 + (1 | Batch)", "Dyestuff", *options])
    for method in [name for name in methods if name in ("collapsed", "laplace", "nuts")]:
        (folder / method).mkdir()
        yield from posterior_steps(model.fit(method=method, **QUIET), folder / method)


if __name__ == "__main__":
    logging.getLogger("bayeslmm").setLevel(logging.CRITICAL)  # 50 draws are few, and it says so
    lenient = "--all" in sys.argv
    for step in steps(Path(sys.argv[1]), sys.argv[2:]):
        try:
            step()
        except Exception:
            if not lenient:
                raise
            traceback.print_exc(limit=-3)
        plt.close("all")
