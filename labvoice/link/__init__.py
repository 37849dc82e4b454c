"""Bad networks on purpose: a relay on the caller's media path, which also dates its packets."""
