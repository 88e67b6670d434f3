"""What users hold: estimates, posteriors and their tables."""
