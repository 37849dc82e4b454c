from typing import Final

SUFFIX: Final = ".scenario.yaml"
"""How the names of scenario files end where a tool looks for them."""
