"""Fits side by side: posterior beside REML, models by evidence, likelihood-ratio tests."""
