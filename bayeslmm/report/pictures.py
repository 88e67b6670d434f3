"""Pictures as part of a page: drawn by Matplotlib, in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html import escape
from typing import Any

from bayeslmm._optional import require
from bayeslmm.exceptions import BayesLMMError
from bayeslmm.report.page import absent

RESOLUTION = 130
"""Dots per inch: sharp at the width of the page on a screen of two dots per pixel and in print."""

WIDE = 680
"""Pixels of the page above which a picture scrolls on a narrow screen rather than shrink."""


def picture(draw: Callable[[], Any], *, what: str, alt: str, caption: str) -> str:
    """HTML of a figure; words in its place where it cannot be drawn.

    Parameters
    ----------
    draw : callable
        Returns a plot collection of ArviZ on Matplotlib.
    what : str
        Name of the picture.
    alt : str
        What is to be seen, for those who do not see it.
    caption : str
        How to read it.

    Notes
    -----
    Only this package's own errors, which say what does not apply, are put into words; any other
    is a defect and is raised.
    """
    try:
        data, width, height = _png(draw)
    except BayesLMMError as error:
        return absent(what, str(error))
    image = (
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(alt, quote=True)}">'
    )
    if width > WIDE:
        region = f'role="region" aria-label="{escape(what, quote=True)}" tabindex="0"'
        image = f'<div class="scroll wide" {region}>{image}</div>'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _png(draw: Callable[[], Any]) -> tuple[str, int, int]:
    """Base64 of the picture, and its width and height in pixels of the page."""
    pyplot = require("matplotlib.pyplot", "plots")
    buffer = io.BytesIO()
    before = set(pyplot.get_fignums())
    try:
        with pyplot.style.context("default"):
            figure = draw().viz["figure"].item()
            figure.savefig(buffer, format="png", dpi=RESOLUTION, metadata={"Software": None})
            width, height = (round(96 * inches) for inches in figure.get_size_inches())
    finally:
        for number in set(pyplot.get_fignums()) - before:
            pyplot.close(number)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), width, height
