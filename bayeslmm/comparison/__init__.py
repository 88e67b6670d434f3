"""Fits side by side: posterior beside REML, likelihood-ratio tests, pictures."""
