"""The agent to measure: labvoice's own, or another program's, unmodified."""
