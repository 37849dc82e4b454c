"""The committed JavaScript loads nothing from elsewhere; `tests/registry` builds it again."""

from __future__ import annotations

from pathlib import Path

from labvoice.widgets.connect import STATIC

JS = Path(__file__).parents[2] / "js"
BUNDLES = ("call.js", "monitor.js")


def test_the_lock_file_names_no_registry() -> None:
    """Packages come from whatever registry npm is set to, with the hashes of the lock."""
    lock = (JS / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert '"integrity"' in lock


def test_the_bundles_load_nothing_from_elsewhere() -> None:
    """No import, font or script of another host: notebooks work without a network."""
    for name in BUNDLES:
        text = (STATIC / name).read_text(encoding="utf-8")
        assert 'from"http' not in text
        assert "@import" not in text
