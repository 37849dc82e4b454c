"""The recording of a call: where frames lie on the time axis, and what is written."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from labvoice.caller.recorder import SAMPLE_RATE_HZ, Recorder, frame_times
from labvoice.errors import LabvoiceError

FRAME_S = 0.01
SENT_HZ = 48000


def frame(rate: int, level: int = 0) -> npt.NDArray[np.int16]:
    """A frame of one level."""
    return np.full(round(rate * FRAME_S), level, np.int16)


def onset_s(samples: npt.NDArray[np.int16]) -> float:
    """When something is first heard, in seconds."""
    return float(np.flatnonzero(np.abs(samples) > 3000)[0]) / SAMPLE_RATE_HZ


def test_frames_that_a_stalled_host_handles_late_are_not_moved() -> None:
    """Frames that come late and then several at once lie where they would have come in time."""
    at_s = 5.0 + np.arange(300) * FRAME_S
    late = at_s.copy()
    late[100:130] = at_s[130]
    np.testing.assert_allclose(frame_times(list(late), FRAME_S), at_s, atol=1e-9)


def test_frames_after_a_gap_are_moved() -> None:
    """Frames that are late for good lie where they come."""
    at_s = 5.0 + np.arange(300) * FRAME_S
    at_s[120:] += 0.7
    np.testing.assert_allclose(frame_times(list(at_s), FRAME_S), at_s, atol=1e-9)


def test_jitter_tears_no_sound() -> None:
    """Frames whose arrivals jitter by some milliseconds follow each other without a gap."""
    rng = np.random.default_rng(1)
    at_s = 5.0 + np.arange(3000) * FRAME_S + rng.uniform(0, 0.006, 3000)
    times = frame_times(list(at_s), FRAME_S)
    np.testing.assert_allclose(np.diff(times), FRAME_S, atol=1e-9)
    assert np.abs(times - at_s).max() < 0.007


@pytest.mark.parametrize("suffix", [".ogg", ".wav"])
def test_the_sample_of_an_instant_is_its_index(tmp_path: Path, suffix: str) -> None:
    """What is sent at an instant is on the left at its index, what is heard on the right."""
    recorder = Recorder(SENT_HZ, SAMPLE_RATE_HZ)
    for number in range(300):
        recorder.sent(frame(SENT_HZ, 8000 if number >= 100 else 0), 10.0 + number * FRAME_S)
    for number in range(200):
        at_s = 10.5 + number * FRAME_S
        recorder.heard("track", frame(SAMPLE_RATE_HZ, 8000 if number >= 150 else 0), at_s)
    recording = recorder.recording()
    assert recording is not None
    assert recording.start_s == pytest.approx(10.0)
    path = tmp_path / f"call{suffix}"
    recording.write(path)
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == SAMPLE_RATE_HZ
    assert onset_s(samples[:, 0]) == pytest.approx(1.0, abs=0.01)
    assert onset_s(samples[:, 1]) == pytest.approx(2.0, abs=0.01)


def test_tracks_are_mixed_and_gaps_kept() -> None:
    """Two tracks at once add up; between a lost agent's track and the next there is silence."""
    recorder = Recorder(SENT_HZ, SAMPLE_RATE_HZ)
    for number in range(100):
        recorder.heard("voice", frame(SAMPLE_RATE_HZ, 4000), number * FRAME_S)
        recorder.heard("music", frame(SAMPLE_RATE_HZ, 500), number * FRAME_S)
        recorder.heard("next voice", frame(SAMPLE_RATE_HZ, 3000), 2.0 + number * FRAME_S)
    recording = recorder.recording()
    assert recording is not None
    assert not recording.samples[:, 0].any()
    heard = recording.samples[:, 1]
    assert len(heard) == 3 * SAMPLE_RATE_HZ
    seconds = heard.reshape(3, SAMPLE_RATE_HZ)
    assert [set(second) for second in seconds.tolist()] == [{4500}, {0}, {3000}]
    assert set(recording.heard(1.5, 2.5).tolist()) == {0, 3000}
    assert len(recording.heard(2.0, float("inf"))) == SAMPLE_RATE_HZ


def test_nothing_sent_or_heard_is_no_recording() -> None:
    """A call that never connected has no recording."""
    assert Recorder(SENT_HZ, SAMPLE_RATE_HZ).recording() is None


def test_a_recording_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    """A folder that cannot be made ends in one error with a hint."""
    recorder = Recorder(SENT_HZ, SAMPLE_RATE_HZ)
    recorder.sent(frame(SENT_HZ, 1), 0.0)
    recording = recorder.recording()
    assert recording is not None
    (tmp_path / "file").touch()
    with pytest.raises(LabvoiceError, match="cannot be written") as caught:
        recording.write(tmp_path / "file" / "call.wav")
    assert "LABVOICE_RECORDING=none" in caught.value.hint


@pytest.mark.parametrize(
    "notebook", sorted((Path(__file__).parents[2] / "notebooks").glob("*.py")), ids=lambda p: p.stem
)
def test_every_call_of_a_notebook_is_kept(notebook: Path) -> None:
    """A notebook writes each call that it makes as a run, with its recording."""
    source = notebook.read_text(encoding="utf-8")
    assert source.count("bench.record(") >= source.count("lab.call(")
