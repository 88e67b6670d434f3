"""Diagnostics of a fit, with advice in words."""
