"""Several optimisers for one criterion."""

import numpy as np
import pandas as pd
import pytest
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.estimation.searches import OPTIMISERS, OWN
from bayeslmm.selection.all_fit import AllFit

DEVIANCE = 1e-4
"""What SciPy's optimisers leave of the criterion, in deviance units."""

CASES = {
    "slopes": ("Reaction ~ Days + (Days | Subject)", {}),
    "known sigma": ("Reaction ~ Days + (Days | Subject)", {"fixed": {"sigma": 25.0}}),
    "structure": ("Reaction ~ Days + (1 | Subject)", {"residual": "ar1(Days | Subject)"}),
}


@pytest.mark.parametrize(
    ("method", "case"),
    [
        ("REML", "slopes"),
        ("ML", "known sigma"),
        ("REML", "structure"),
        slow("ML", "slopes"),
        slow("REML", "known sigma"),
        slow("ML", "structure"),
    ],
)
def test_optimisers_agree(sleepstudy, method, case):
    formula, options = CASES[case]
    model = blm.LMM(formula, sleepstudy, **options)
    own = [OPTIMISERS[i] for i in (1, 2, 3, 6)]
    found = model.all_fit(method, optimisers=own)
    fit = getattr(model, method.lower())()
    assert list(found.table.index) == [OWN, *own]
    np.testing.assert_allclose(found.table["criterion"], fit.criterion, atol=DEVIANCE)
    assert found.agree
    assert found.verdict.startswith("No search found a lower criterion than the estimate; 4 of 4")
    values = [fit.beta["Days"], fit.sds["Subject"].iloc[0]]
    for _, row in found.parameters.iterrows():
        np.testing.assert_allclose(row[["beta[Days]", "sd[Subject, Intercept]"]], values, rtol=1e-3)
    assert found.verdict in repr(found)


def test_every_optimiser_at_a_boundary():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2"))
    found = model.all_fit()
    assert list(found.table.index) == list(OPTIMISERS)
    assert (found.table["above_best"] < DEVIANCE).all()
    assert (found.parameters["sd[Batch, Intercept]"] < 1e-3).all()
    assert (found.table["evaluations"] > 0).all() and (found.table["seconds"] > 0).all()


def made(gaps, betas):
    names = [OWN, "BFGS", "Powell"]
    table = pd.DataFrame(
        {"criterion": 10.0 + np.array(gaps), "above_best": np.subtract(gaps, min(gaps))},
        index=names,
    )
    table["message"] = ""
    parameters = pd.DataFrame({"beta[x]": betas}, index=names)
    return AllFit("REML", table, parameters, pd.Series({"beta[x]": 1.0}))


def test_verdicts():
    found = made([0.0, 0.5, 0.0], [1.0, 2.0, 1.0])
    assert "1 of 2 others" in found.verdict and "BFGS stopped early" in found.verdict
    found = made([0.5, 0.0, 0.5], [1.0, 2.0, 1.0])
    assert not found.agree
    assert found.verdict.startswith("BFGS found a criterion 0.5 below that of the estimate")
    found = made([0.0, 0.0, 0.0], [1.0, 1.3, 1.0])
    assert "beta[x] differ by more than 0.1 standard errors" in found.verdict
    assert "stopped early" in made([0.0, np.nan, 0.0], [1.0, np.nan, 1.0]).verdict


def test_what_cannot_be_asked_for(sleepstudy):
    model = blm.LMM("Reaction ~ Days + (1 | Subject)", sleepstudy)
    with pytest.raises(ValueError, match="method='MAP'"):
        model.all_fit("MAP")
    with pytest.raises(ValueError, match="optimisers='bobyqa'"):
        model.all_fit(optimisers=["bobyqa"])
    with pytest.raises(ValueError, match="optimisers='BFGS': a list"):
        model.all_fit(optimisers="BFGS")
    with pytest.raises(blm.DataError, match="no parameters to search for"):
        blm.LMM("Reaction ~ Days", sleepstudy).all_fit()
