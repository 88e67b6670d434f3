"""What users hold: the model, its estimates and its posteriors."""
