"""R's natural cubic splines."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from bayeslmm.formula.transforms import natural_spline_basis, place_knots

X = np.array([0.0, 0.5, 1.0, 2.0, 3.5, 4.0, 6.0, 7.5, 9.0, 10.0])


@pytest.mark.reference
def test_basis_is_that_of_r():
    from reference_data import FOLDER, load_reference_data

    columns = np.loadtxt(FOLDER / "data" / "sim_design_basis.csv.gz", delimiter=",", skiprows=1)
    x = load_reference_data("sim_design")["x"].to_numpy()
    spline = place_knots(x, 3)
    np.testing.assert_allclose(spline.interior, [3.3220333333333323, 7.128566666666666], rtol=1e-14)
    np.testing.assert_allclose(natural_spline_basis(x, spline), columns[:, 2:5], atol=1e-14)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("df", [2, 3, 5])
def test_basis_spans_natural_splines(df, intercept):
    spline = place_knots(X, df, intercept=intercept)
    basis = natural_spline_basis(X, spline)
    assert basis.shape == (X.size, df)
    knots = np.array([spline.boundary[0], *spline.interior, spline.boundary[1]])
    target = CubicSpline(knots, np.sin(knots), bc_type="natural")(X)
    columns = basis if intercept else np.column_stack([np.ones(X.size), basis])
    fitted = columns @ np.linalg.lstsq(columns, target)[0]
    np.testing.assert_allclose(fitted, target, atol=1e-10)


def test_basis_is_linear_outside_the_boundary():
    spline = place_knots(X, 4)
    outside = natural_spline_basis(np.array([-3.0, -2.0, -1.0, 0.0, 10.0, 11.0, 12.0]), spline)
    np.testing.assert_allclose(np.diff(outside[:4], 2, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.diff(outside[4:], 2, axis=0), 0, atol=1e-12)


def test_given_knots_take_precedence():
    spline = place_knots(X, 2, knots=[6.0, 3.0], boundary_knots=[12.0, -1.0])
    assert (spline.interior, spline.boundary) == ((3.0, 6.0), (-1.0, 12.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X, "df": 0}, "ns() needs df >= 1, got df=0"),
        ({"x": X, "df": 1, "intercept": True, "knots": [11.0]}, "strictly between the boundary"),
        ({"x": np.ones(4), "df": 2}, "is the covariate constant?"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError) as caught:
        place_knots(**arguments)
    assert message in str(caught.value)
