"""Sphinx configuration; build with ``sphinx-build -W -b html docs docs/_build/html``."""

import os
import shutil
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import outside_names  # noqa: E402
from api_tables import Verbs, listed_classes, page_groups  # noqa: E402

# Read by the kernels that execute the pages.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

project = "bayeslmm"
author = "bayeslmm developers"
copyright = "bayeslmm developers"
release = installed_version("bayeslmm")
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx-mathjax-offline",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "numpydoc",
    "myst_nb",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "*.py", "jupyter_execute"]
nitpicky = True
default_role = "code"  # single backticks in docstrings

# --- API reference -----------------------------------------------------------------------

autosummary_generate = True
autosummary_context = {"page_groups": page_groups()}
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "none"  # numpydoc's Parameters say it
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False  # the class template lists them
numpydoc_class_members_toctree = False

# --- links ---------------------------------------------------------------------------------

intersphinx_mapping = outside_names.mapping()
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"  # but what is listed here: types in docstrings are half prose
numpydoc_xref_aliases = {
    **outside_names.links(),
    **listed_classes(),
    "DataFrame": "pandas.DataFrame",
    "Executor": "concurrent.futures.Executor",
    "LinAlgError": "numpy.linalg.LinAlgError",
    "MixedLMResults": "statsmodels.regression.mixed_linear_model.MixedLMResults",
    "Series": "pandas.Series",
    "mapping": ":term:`python:mapping`",
    "path": ":class:`path <os.PathLike>`",
}

# --- executed pages ----------------------------------------------------------------------

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "inline"  # a cache would not notice that the package changed
nb_eval_name_regex = ".+"  # {eval} takes an expression
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # log messages of samplers; the notes of a fit say what matters

# --- appearance --------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "bayeslmm"
html_static_path = ["_static"]
html_css_files = ["bayeslmm.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "bayeslmm"},
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def copy_notebooks(app: Sphinx, config: Config) -> None:
    """Put the notebooks beside the tutorials, since Sphinx reads only its source folder."""
    target = HERE / "tutorials" / "notebooks"
    target.mkdir(exist_ok=True)
    kept = {path.name for path in (HERE.parent / "notebooks").glob("*.py")}
    for path in target.glob("*.py"):
        if path.name not in kept:
            path.unlink()
    for name in sorted(kept):
        shutil.copy2(HERE.parent / "notebooks" / name, target / name)


def write_idioms(app: Sphinx, config: Config) -> None:
    """Make the page of idioms."""
    from idiom_table import idioms_page

    page = idioms_page(HERE / "reference" / "idioms")
    (HERE / "reference" / "idioms.md").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Register what is put beside the pages before they are read."""
    # It copies files once all is built, but does not declare that `-j 2` is safe.
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True
    outside_names.write_inventories()
    app.add_directive("verbs", Verbs)
    app.add_css_file("reference.css")
    app.connect("config-inited", copy_notebooks)
    app.connect("config-inited", write_idioms)
