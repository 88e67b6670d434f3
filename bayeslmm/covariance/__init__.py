"""Covariance parameters: their structure, coordinates and names."""
