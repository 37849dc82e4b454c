"""Conditions of the caller's speech: background noise and telephone band."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from labvoice.errors import UsageError
from labvoice.speech.detection import find_speech, resample
from labvoice.speech.utterances import SAMPLE_RATE, Pcm, Utterance, load_wav

NOISES: Final = {
    "street": "city-ambience.ogg",
    "crowd": "crowded-room.ogg",
    "office": "office-ambience.ogg",
    "forest": "forest-ambience.ogg",
    "keyboard": "keyboard-typing.ogg",
}
"""Recordings that livekit-agents ships (`livekit/agents/resources`, with their licences in its
NOTICE); they are read from there."""

_LINE_RATE: Final = 8000
_LINE_BAND_HZ: Final = (300.0, 3400.0)
_MU: Final = 255.0
_FULL_SCALE: Final = 32767.0


def noise(kind: str, folder: Path | None = None) -> Pcm:
    """Returns noise, shape (n,), at :data:`labvoice.speech.utterances.SAMPLE_RATE`.

    Blocks: call it in a thread.

    Args:
        kind: One of :data:`NOISES`, or the path of a recording of any rate.
        folder: Where a path is looked for first; then it is the working directory.

    Raises:
        UsageError: There is no such noise and no such file.
        AudioFormatError: The file cannot be read, or is silent.
    """
    if kind in NOISES:
        from livekit.agents import resources

        return load_wav(Path(str(resources.__path__[0])) / NOISES[kind], "mix").samples
    for path in ([] if folder is None else [folder / kind]) + [Path(kind)]:
        if path.is_file():
            return load_wav(path).samples
    raise UsageError(
        f"there is no noise {kind!r} and no such file",
        f"one of {', '.join(NOISES)}, or the path of a recording",
    )


def at_snr(noise: Pcm, speech: Utterance, snr_db: float) -> Pcm:
    """Returns the noise at a level below that of the speech.

    Args:
        noise: Shape (n,).
        speech: Its level is the RMS from its first to its last voiced sample.
        snr_db: How many decibels the speech is above the noise.
    """
    found = find_speech(speech.samples, SAMPLE_RATE)
    voiced = speech.samples if found is None else speech.samples[found.first : found.last + 1]
    level, own = _rms(voiced), _rms(noise)
    if not own:
        return noise
    scaled = noise * (level / own * 10 ** (-snr_db / 20))
    return np.asarray(np.clip(np.round(scaled), -32768, 32767), np.int16)


def _rms(samples: Pcm) -> float:
    return float(np.sqrt(np.mean(np.square(samples.astype(np.float64))))) if len(samples) else 0.0


def telephone(samples: Pcm) -> Pcm:
    """Returns samples as a telephone line carries them: 300 to 3400 Hz, G.711's mu-law.

    Args:
        samples: Shape (n,), at :data:`labvoice.speech.utterances.SAMPLE_RATE`.

    Returns:
        The same number of samples at the same rate.
    """
    from scipy.signal import butter, sosfiltfilt

    if not len(samples):
        return samples
    narrow = resample(samples, SAMPLE_RATE, _LINE_RATE)
    band = butter(4, _LINE_BAND_HZ, "bandpass", fs=_LINE_RATE, output="sos")
    # Forwards and backwards: nothing moves, so the marks of the speech stay where they are.
    pad = min(len(narrow) - 1, _LINE_RATE // 10)
    filtered = np.asarray(sosfiltfilt(band, narrow.astype(np.float64), padlen=max(0, pad)))
    coded = _mu_law(np.clip(filtered / _FULL_SCALE, -1, 1))
    wide = resample(coded * _FULL_SCALE, _LINE_RATE, SAMPLE_RATE)
    result = np.zeros(len(samples), np.int16)
    count = min(len(samples), len(wide))
    result[:count] = wide[:count]
    return result


def _mu_law(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rounds samples, full scale 1.0, to the 256 levels of the mu-law."""
    pressed = np.sign(samples) * np.log1p(_MU * np.abs(samples)) / np.log1p(_MU)
    rounded = np.round(pressed * 127) / 127
    return np.asarray(np.sign(rounded) * np.expm1(np.abs(rounded) * np.log1p(_MU)) / _MU)
