"""Settings that every test shares."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples in every automatic run; new ones whenever a person runs the tests.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
