"""Rows that lack the response alone, kept and predicted in the same fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import bayeslmm as blm
from bayeslmm.exceptions import DataError

FORMULA = "Reaction ~ Days + (1 | Subject)"
AR1 = "ar1(Days | Subject)"


@pytest.fixture(scope="module")
def gappy():
    """Days 4 and 5 of two subjects and all of a third lack the response, two rows a covariate."""
    data = blm.load_dataset("sleepstudy").assign(w=lambda d: 1.0 + d["Days"] % 2)
    gone = data["Subject"].isin(["308", "309"]) & data["Days"].isin([4, 5])
    data.loc[gone | (data["Subject"] == "372"), "Reaction"] = np.nan
    data["Days"] = data["Days"].astype("Int64")
    data.loc[data.index[[20, 31]], "Days"] = pd.NA
    data.loc[data.index[31], "Reaction"] = np.nan
    return data.set_index(data.index + 1000)


def test_they_do_not_count_and_are_predicted_from_all_that_does(gappy):
    kept = blm.LMM(FORMULA, gappy, residual=AR1, missing="keep")
    dropped = blm.LMM(FORMULA, gappy, residual=AR1)
    assert (kept.design.n_unobserved, kept.dropped, dropped.dropped) == (14, 2, 16)
    assert "(2 incomplete rows dropped, 14 without response to predict)" in repr(kept)
    one, two = kept.reml(), dropped.reml()
    assert one.criterion == two.criterion
    found = one.predict_missing(uncertainty="plugin", draws=50, random_seed=1)
    rows = gappy[gappy["Reaction"].isna() & gappy["Days"].notna()]
    assert found.index.equals(rows.index)
    told = two.predict(
        rows, target="new", kind="response", uncertainty="plugin", draws=50, random_seed=1
    )
    pd.testing.assert_frame_equal(found, told)
    # between two observed neighbours there is more to know than in a group without any
    assert found["std_error"].iloc[:4].max() < found["std_error"].iloc[4:].min()


def test_they_survive_files_and_updates(gappy, tmp_path):
    model = blm.LMM(FORMULA, gappy, residual=AR1, weights="w", missing="keep")
    post = model.fit(draws=50, chains=2, random_seed=1)
    post.save(tmp_path / "kept.nc")
    loaded = blm.load(tmp_path / "kept.nc")
    tables = [p.predict_missing(random_seed=1) for p in (post, loaded)]
    pd.testing.assert_frame_equal(*tables)
    assert len(tables[0]) == 14
    tree = loaded.predict_missing(random_seed=1, summary=False)
    assert dict(tree["predictions"]["y"].sizes) == {"chain": 2, "draw": 50, "pred_id": 14}
    updated = blm.LMM.from_fit(loaded).update(". ~ . + I(Days ** 2)")
    design = updated.design
    assert (design.n_unobserved, design.n_dropped, design.spec.residual.formula.source) == (
        14,
        2,
        AR1,
    )
    np.testing.assert_array_equal(design.dropped, model.design.dropped)
    np.testing.assert_array_equal(design.unobserved.rows, model.design.unobserved.rows)
    np.testing.assert_array_equal(design.unobserved.weights, model.design.unobserved.weights)
    fresh = blm.LMM(
        "Reaction ~ Days + I(Days ** 2) + (1 | Subject)", gappy, residual=AR1, weights="w"
    )
    assert updated.reml().criterion == pytest.approx(fresh.reml().criterion, abs=1e-9)
    assert model.update(missing="drop").design.unobserved is None
    assert model.update(missing="drop").dropped == 16
    assert model.update(data=gappy.head(60)).design.n_unobserved == 4
    plain = model.update(residual=False)
    assert plain.design.spec.residual is None
    assert plain.design.n_unobserved == 14
    with pytest.raises(DataError, match="does not have the 16 rows that it dropped"):
        fresh.update(missing="keep")
    with pytest.raises(DataError, match="14 rows without a response, which need weights"):
        model.update(weights=np.ones(model.nobs))


def test_what_cannot_be_predicted_is_refused_when_the_model_is_made(gappy):
    data = blm.load_dataset("sleepstudy").query("Days < 5").assign(visit=lambda d: d["Days"])
    data.loc[data["visit"] == 4, "Reaction"] = np.nan
    with pytest.raises(DataError, match=r'missing="keep": 18 rows.*`4.0` of `visit` is not an occ'):
        blm.LMM("Reaction ~ 1", data, residual="cs(visit | Subject)", missing="keep")
    with pytest.raises(DataError, match="takes the order of the rows for times"):
        blm.LMM("Reaction ~ 1", data, residual="ar1(1 | Subject)", missing="keep")
    twice = pd.concat([data.query("Days < 4"), data.head(3).assign(Reaction=np.nan)])
    with pytest.raises(DataError, match="the data of the model have a row of `308`"):
        blm.LMM("Reaction ~ 1", twice, residual="cs(visit | Subject)", missing="keep")
    with pytest.raises(ValueError, match="'drop', 'keep', 'raise'"):
        blm.LMM(FORMULA, data, missing="yes")
    with pytest.raises(DataError, match='missing="keep"'):
        blm.LMM(FORMULA, data).reml().predict_missing()
    whole = blm.LMM(FORMULA, data.dropna(), missing="keep")
    with pytest.raises(DataError, match="there are none"):
        whole.reml().predict_missing()
    assert whole.update(data=data).design.n_unobserved == 18
    with pytest.raises(ValueError, match="'response' or 'epred'"):
        whole.update(data=data).reml().predict_missing(kind="linpred")


# --- no row may be incomplete ----------------------------------------------------------


def test_incomplete_rows_can_be_an_error(gappy):
    words = (
        r'missing="raise": 16 of 180 rows are incomplete, first at position 4 \(index 1004\) '
        r"\(missing values: `Days` 2, `Reaction` 15\).*missing=\"drop\" leaves them out"
    )
    with pytest.raises(DataError, match=words):
        blm.LMM(FORMULA, gappy, missing="raise")
    with pytest.raises(DataError, match=r"1 of 180 rows .*`weights` 1"):
        weights = np.where(np.arange(180) == 3, np.nan, 1.0)
        blm.LMM("w ~ 1 + (1 | Subject)", gappy, weights=weights, missing="raise")
    with pytest.raises(ValueError, match="missing='fail': one of 'drop', 'keep', 'raise' is exp"):
        blm.LMM(FORMULA, gappy, missing="fail")
    whole = blm.LMM("w ~ 1 + (1 | Subject)", gappy, missing="raise")  # what counts is the formula
    assert whole.dropped == 0
    assert whole.update(data=gappy.iloc[:90], missing="raise").design.n == 90
    with pytest.raises(DataError, match="16 of 180 rows are incomplete, first at position 4"):
        whole.update(FORMULA, data=gappy, missing="raise")


def test_a_model_that_dropped_rows_does_not_have_them_all(gappy):
    dropped = blm.LMM(FORMULA, gappy)
    with pytest.raises(DataError, match=r"16 of 180 rows are incomplete\. Fill them in"):
        dropped.update("~ 1 + (1 | Subject)", missing="raise")


def test_rows_beyond_memory_must_be_complete_too(gappy):
    parts = [gappy.iloc[:100], gappy.iloc[100:]]
    with pytest.raises(DataError, match=r"16 of 180 rows are incomplete\. Fill them in"):
        blm.LMM(FORMULA, parts, missing="raise")
    with pytest.raises(ValueError, match="missing='yes': one of 'drop'"):
        blm.LMM(FORMULA, parts, missing="yes")
    streamed = blm.LMM(FORMULA, parts)
    for changes in ({"data": parts}, {"priors": "flat"}, {"formula": "~ . + w"}):
        with pytest.raises(ValueError, match="missing='yes': one of 'drop'"):
            streamed.update(**changes, missing="yes")
        with pytest.raises(DataError, match=r"1[0-9] of 180 rows are incomplete\."):
            streamed.update(**changes, missing="raise")
    whole = blm.LMM("w ~ 1 + (1 | Subject)", parts, missing="raise")
    assert whole.update(priors="flat", missing="raise").dropped == 0
