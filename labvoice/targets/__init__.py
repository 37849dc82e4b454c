"""Whose agent is measured: labvoice's own, or somebody else's, as it is."""
