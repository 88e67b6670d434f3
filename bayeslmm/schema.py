"""Names of variables and dimensions in the posterior, decided in one place."""

import re
from collections.abc import Iterable, Sequence

BETA = "beta"
SIGMA = "sigma"
BETA_SIGMA = "beta_sigma"
NU = "nu"
POWER_RESIDUAL = "power_residual"
COR_RESIDUAL = "cor_residual"
STRATUM_DIM = "stratum"
OCCASION_DIM = "occasion"
POWER_DIM = "residual_power"
PAIR_DIM = "residual_pair"
COEF_DIM = "coef"
SIGMA_COEF_DIM = "coef_sigma"
OBS_DIM = "obs_id"
SAMPLE_DIMS = ("chain", "draw")

RESERVED = frozenset(
    {
        BETA,
        SIGMA,
        BETA_SIGMA,
        SIGMA_COEF_DIM,
        POWER_RESIDUAL,
        COR_RESIDUAL,
        STRATUM_DIM,
        OCCASION_DIM,
        POWER_DIM,
        PAIR_DIM,
        "residual",
        COEF_DIM,
        OBS_DIM,
        "chain",
        "draw",
        "sample",
        "pred_id",
        "mu",
        NU,
        "y",
        "offset",
        "weights",
        "X",
        "Z",
    }
)


def sanitise(name: str) -> str:
    """Replace every run of characters other than letters, digits and ``_`` by one ``_``.

    Parameters
    ----------
    name : str
        A grouping factor as written, for example ``"batch:cask"``.

    Returns
    -------
    str
        A name that PyMC, xarray and netCDF accept; never empty, never starting with a digit.

    Examples
    --------
    >>> sanitise("batch:cask")
    'batch_cask'
    >>> sanitise("2nd group")
    'g_2nd_group'
    """
    key = re.sub(r"\W+", "_", name).strip("_")
    if not key:
        return "group"
    return f"g_{key}" if key[0].isdigit() else key


def group_keys(names: Sequence[str]) -> tuple[str, ...]:
    """Give every grouping factor a unique sanitised key.

    No variable or dimension derived from a key equals a reserved name or one derived
    from another key: xarray rejects a variable named like a coordinate.

    Parameters
    ----------
    names : sequence of str
        Grouping factors as written, in order.

    Returns
    -------
    tuple of str
        One key per name, in order. A key that would clash gets ``_2``, ``_3``, ...

    Examples
    --------
    >>> group_keys(["a:b", "a_b", "sigma"])
    ('a_b', 'a_b_2', 'sigma')
    """
    taken = set(RESERVED)
    keys: list[str] = []
    for name in names:
        key = _free_key(sanitise(name), taken)
        taken.update(_derived(key))
        keys.append(key)
    return tuple(keys)


def _free_key(base: str, taken: set[str]) -> str:
    key, count = base, 1
    while not taken.isdisjoint(_derived(key)):
        count += 1
        key = f"{base}_{count}"
    return key


def _derived(key: str) -> Iterable[str]:
    variables = (sd_name(key), cor_name(key), corr_name(key), u_name(key))
    dims = (level_dim(key), coef_dim(key), coef_bis_dim(key), pair_dim(key), effect_dim(key))
    return (*dims, *variables)


def sd_name(key: str) -> str:
    """Return the variable holding the random-effect sds of the grouping factor `key`."""
    return f"sd_{key}"


def cor_name(key: str) -> str:
    """Return the correlation matrix of the random effects of the grouping factor `key`."""
    return f"cor_{key}"


def corr_name(key: str) -> str:
    """Return the variable holding the correlations that are estimated, one entry per pair."""
    return f"corr_{key}"


def u_name(key: str) -> str:
    """Return the variable holding the random effects of the grouping factor `key`."""
    return f"u_{key}"


def level_dim(key: str) -> str:
    """Return the dimension of the levels of the grouping factor `key`.

    It is the key itself, but for names that ArviZ or this package reserves: stacking chains and
    draws makes a dimension ``sample``, so a grouping factor of that name has ``sample_level``.
    """
    return f"{key}_level" if key in RESERVED else key


def coef_dim(key: str) -> str:
    """Return the dimension of the coefficients of the grouping factor `key`."""
    return f"{key}_coef"


def effect_dim(key: str) -> str:
    """Return the dimension of the coefficients of one level, where strata have their own ones."""
    return f"{key}_effect"


def coef_bis_dim(key: str) -> str:
    """Return the second dimension of the correlation matrix of the grouping factor `key`."""
    return f"{key}_coef_bis"


def pair_dim(key: str) -> str:
    """Return the dimension of the pairs of correlated coefficients of the grouping factor `key`."""
    return f"{key}_pair"
