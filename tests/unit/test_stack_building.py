"""Locks between processes that build the same thing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from labvoice.errors import BuildError
from labvoice.stack.building import only_builder


async def test_builders_take_turns(tmp_path: Path) -> None:
    """One builds at a time; who waits is told so once, and what."""
    told: list[str] = []
    inside = 0

    async def build() -> None:
        nonlocal inside
        async with only_builder(tmp_path / "made" / "lock", "The thing", 10, told.append):
            inside += 1
            assert inside == 1
            while not told:
                await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(build(), build())
    assert told == ["The thing: another process builds it; waiting"]


async def test_a_builder_that_does_not_end_is_named(tmp_path: Path) -> None:
    """Waiting for another builder ends with the path of the lock file."""
    path = tmp_path / "lock"
    async with only_builder(path, "The thing", 10, print):
        with pytest.raises(BuildError, match="another process has held") as caught:
            async with asyncio.timeout(10), only_builder(path, "The thing", 0, lambda _: None):
                pass
    assert str(path) in caught.value.hint
