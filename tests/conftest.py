"""Settings that every test shares."""

from __future__ import annotations

import os

# Before NumPy is loaded: workers that each start a thread per core are in each other's way.
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

from hypothesis import settings  # noqa: E402

# The same examples in every automatic run; new ones whenever a person runs the tests.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
