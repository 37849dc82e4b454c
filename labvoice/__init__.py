"""labvoice: launch, dispatch, prove and measure LiveKit voice agents from a notebook."""
