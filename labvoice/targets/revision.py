"""A script as it was at a git revision: in a worktree of its own, which is removed afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from labvoice.concurrency import run
from labvoice.errors import UsageError

_TIMEOUT_S: Final = 60.0


@asynccontextmanager
async def checked_out(script: Path, revision: str, folder: Path) -> AsyncIterator[Path]:
    """Checks a revision out, and removes what was checked out when the block is left.

    What git does not know, `.env` and `.env.local` beside the script, is linked there: the agent
    reads its keys from it.

    Args:
        script: The script; it need not be there today.
        revision: What git knows as a commit, such as `main`, `HEAD~2`, a tag or a hash.
        folder: Where to check out; it must not be there yet.

    Yields:
        The script at that revision.

    Raises:
        UsageError: There is no repository, no such revision, or no such script in it.
    """
    beside = next(each for each in script.parents if each.is_dir())
    root = await _git(beside, "rev-parse", "--show-toplevel", what=f"{script} is in no repository")
    commit = await _git(
        beside,
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        f"{revision}^{{commit}}",
        what=f"there is no revision {revision!r} in {root}",
    )
    repository = Path(root)
    # git names the folder by its real path; the script's may lead through a symbolic link.
    place = (beside.resolve() / script.relative_to(beside)).relative_to(repository)
    try:
        await _git(
            repository,
            "worktree",
            "add",
            "--detach",
            str(folder),
            commit,
            what=f"revision {revision!r} cannot be checked out",
        )
        found = folder / place
        if not found.is_file():
            raise UsageError(
                f"there is no {place} at revision {revision!r}",
                f"`git -C {repository} ls-tree -r --name-only {revision}` lists what is there",
            )
        for name in (".env", ".env.local"):
            theirs = script.parent / name
            if theirs.is_file() and not (found.parent / name).exists():
                (found.parent / name).symlink_to(theirs.resolve())
        yield found
    finally:
        words = ("worktree", "remove", "--force", str(folder))
        await asyncio.shield(asyncio.to_thread(run, ["git", "-C", repository, *words], _TIMEOUT_S))


async def _git(folder: Path, *words: str, what: str) -> str:
    """Runs git and returns what it printed.

    Raises:
        UsageError: It fails.
    """
    done = await asyncio.to_thread(run, ["git", "-C", folder, *words], _TIMEOUT_S)
    if done.returncode:
        said = f": {done.stderr.strip().splitlines()[-1]}" if done.stderr.strip() else ""
        raise UsageError(f"{what}{said}", "AGENT is path/agent.py@REVISION, such as agent.py@main")
    return done.stdout.strip()
