"""Imports of packages that only some features need."""

import importlib
from types import ModuleType

from bayeslmm.exceptions import OptionalDependencyError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module or say which extra installs it.

    Parameters
    ----------
    module : str
        Dotted name of the module, for example ``"matplotlib.pyplot"``.
    extra : str
        The extra of bayeslmm that installs it, for example ``"plots"``.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    OptionalDependencyError
        If the package is not installed. A failure inside an installed package is not hidden.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise OptionalDependencyError(
            f"This feature needs {top!r}, which is not installed. "
            f'Install it with: pip install "bayeslmm[{extra}]"',
            name=top,
        ) from error
