"""Pictures, on the backend that draws nothing and on matplotlib."""

import sys

import arviz as az
import matplotlib
import numpy as np
import pytest
from arviz_plots import PlotCollection

from bayeslmm import LMM, OptionalDependencyError, compare_reml, load_dataset

SLOPE = "Reaction ~ Days + (Days | Subject)"


def fitted(formula, data):
    model = LMM(formula, data)
    return model.fit(method="laplace", draws=250, random_seed=1), model.reml()


@pytest.fixture(scope="module")
def sleep():
    return fitted(SLOPE, load_dataset("sleepstudy"))


@pytest.fixture
def canvas():
    matplotlib.use("Agg")
    yield
    matplotlib.pyplot.close("all")


def drawn(collection, visual):
    """What a visual was drawn with, by parameter."""
    return {name: value.item() for name, value in collection.viz[visual].dataset.data_vars.items()}


def test_one_plot_per_parameter(sleep):
    post, reml = sleep
    collection = post.plot.reml(reml, backend="none")
    assert isinstance(collection, PlotCollection)
    table = compare_reml(post, reml)
    lines, bands = drawn(collection, "estimate"), drawn(collection, "confidence_interval")
    assert list(lines) == list(bands) == list(table.index) == list(drawn(collection, "dist"))
    for label, row in table.iterrows():
        assert lines[label]["x"] == pytest.approx(row["estimate"])
        assert bands[label]["xmin"] == pytest.approx(row["conf_low"])
        assert bands[label]["xmax"] == pytest.approx(row["conf_high"])


def test_the_posterior_interval_is_that_of_the_table(sleep):
    post, reml = sleep
    with az.rc_context({"stats.ci_kind": "hdi"}):
        collection = post.plot.reml(reml, prob=0.5, backend="none", labels="sigma")
        row = compare_reml(post, reml, prob=0.5).loc["sigma"]
    limits = drawn(collection, "credible_interval")["sigma"]["x"]
    assert list(limits) == pytest.approx([row["hdi50_lb"], row["hdi50_ub"]], rel=0.01)


def test_labels(sleep):
    post, reml = sleep
    collection = post.plot.reml(reml, labels=["sigma", "beta[Days]"], backend="none")
    assert set(drawn(collection, "estimate")) == {"sigma", "beta[Days]"}
    with pytest.raises(ValueError, match=r"no 'Days'. Its parameters are: beta\[Intercept\], beta"):
        post.plot.reml(reml, labels="Days", backend="none")


def test_visuals_can_be_changed_and_left_out(sleep):
    post, reml = sleep
    visuals = {"estimate": {"color": "red"}, "confidence_interval": False, "title": False}
    collection = post.plot.reml(reml, labels="sigma", backend="none", visuals=visuals)
    assert drawn(collection, "estimate")["sigma"]["color"] == "red"
    assert not {"confidence_interval", "title"} & set(collection.viz.children)
    collection = post.plot.reml(reml, labels="sigma", backend="none", visuals={"estimate": False})
    assert "estimate" not in collection.viz.children


def test_no_band_at_a_boundary():
    post, reml = fitted("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2"))
    collection = post.plot.reml(reml, backend="none")
    assert set(drawn(collection, "confidence_interval")) == {"beta[Intercept]", "sigma"}
    assert drawn(collection, "estimate")["sd[Batch, Intercept]"]["x"] == 0.0


def test_a_label_with_a_slash():
    post, reml = fitted("Reaction ~ I(Days / 10) + (1 | Subject)", load_dataset("sleepstudy"))
    collection = post.plot.reml(reml, backend="none")
    assert "beta[I(Days \N{DIVISION SLASH} 10)]" in drawn(collection, "estimate")


def test_method_of_the_posterior(sleep):
    post, reml = sleep
    assert "estimate" in post.plot.reml(reml, backend="none", labels="sigma").viz.children


def test_matplotlib_writes_a_file(sleep, canvas, tmp_path):
    post, reml = sleep
    labels = ["beta[Days]", "sd[Subject, Days]", "cor[Subject, Intercept, Days]", "sigma"]
    post.plot.reml(reml, labels=labels, backend="matplotlib", col_wrap=3).savefig(
        tmp_path / "plot.png"
    )
    image = matplotlib.image.imread(tmp_path / "plot.png")
    colors = np.unique(image.reshape(-1, image.shape[-1]), axis=0)
    assert len(colors) > 50


def test_the_backend_is_that_of_arviz(sleep, canvas):
    post, reml = sleep
    with az.rc_context({"plot.backend": "none"}):
        assert post.plot.reml(reml, labels="sigma").backend == "none"
    with az.rc_context({"plot.backend": "matplotlib"}):
        assert post.plot.reml(reml, labels="sigma").backend == "matplotlib"


@pytest.mark.parametrize("backend", ["none", "matplotlib"])
def test_without_matplotlib(sleep, monkeypatch, backend):
    post, reml = sleep
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with (
        az.rc_context({"plot.backend": backend}),
        pytest.raises(OptionalDependencyError, match=r"pip install \"bayeslmm\[plots\]\""),
    ):
        post.plot.reml(reml)
    post.plot.reml(reml, backend="none", labels="sigma")
