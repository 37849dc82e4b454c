"""Network impairment: a relay on the caller's media path, which also timestamps packets."""
