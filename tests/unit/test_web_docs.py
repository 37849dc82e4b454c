"""What is written about the HTTP service agrees with what is there."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_line_of_the_threat_model_names_a_test_that_exists() -> None:
    """Each threat names a test, and each name is a test of this repository."""
    lines = Path("docs/security.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert len(rows) >= 20
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path("tests").rglob("test_*.py"))
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row.split("|")[3])
        assert names, row
        for name in names:
            assert f"def {name}(" in tests, name
