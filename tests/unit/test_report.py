"""The report: one file, no network, everything that was recorded, nothing that runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labvoice.caller.recorder import Recording
from labvoice.errors import RunFileError, UsageError
from labvoice.protocol.vocabulary import (
    AGENT_TURN_STAGES,
    CALIBRATION_STAGES,
    CONNECTION_STAGES,
    FAILOVER_STAGES,
    INSTRUMENT_ERROR,
    INTERRUPTION_STAGES,
    MEMORY_STAGES,
    OUTCOMES,
    OVERLAP,
    PACKETISATION,
    TRANSPORT,
    TRANSPORT_PARTS,
    TURN_STAGES,
    WIRE_STAGES,
    Mark,
)
from labvoice.report import glossary, plots
from labvoice.report.html import write_pictures, write_report
from labvoice.runs import players
from labvoice.runs.frames import UNFINISHED
from labvoice.runs.run import Run, RunWriter
from tests.unit.recorded_runs import connect_run, turns_run

VOID = {"meta", "path", "use", "br"}


class Balance(HTMLParser):
    """Follows the tags of a page: open ones, ids, and addresses that it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a tag that opens."""
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.references += [v or "" for name, v in attrs if name in ("href", "src", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a tag that closes itself."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Checks that the tag that closes is the one last opened."""
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(page: str) -> Balance:
    """Parses a page and checks that every tag is closed."""
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    return balance


def test_the_report_is_one_file_without_network_references(tmp_path: Path) -> None:
    """Nothing in the page points outside of it, and it holds no script."""
    runs = [connect_run(tmp_path / "c.jsonl"), turns_run(tmp_path / "t.jsonl")]
    page = write_report(runs, tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    for reference in ("http://", "https://", "src=", "@import", "//www", "url(h"):
        assert reference not in page
    balance = parsed(page)
    assert "script" not in balance.tags
    assert "link" not in balance.tags
    assert balance.references
    assert all(reference.startswith("#") for reference in balance.references)
    assert {reference[1:] for reference in balance.references} <= set(balance.ids)
    assert len(balance.ids) == len(set(balance.ids))


def test_the_report_shows_what_was_recorded(tmp_path: Path) -> None:
    """Figures, texts, failures, warnings, host, command and every definition are in it."""
    run = turns_run(tmp_path / "t.jsonl", failures={(1, 2): "no_reply"})
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    median_ms = run.to_json()["stages"]["voice_to_voice"]["p50_s"] * 1e3
    for words in (
        "19 of 20 turns were answered",
        f"{median_ms:,.0f} ms at the median",
        "How far away is the moon?",
        "I am happy to tell you about it",
        "1 × no_reply",
        "Only 5 calls were measured",
        "Example CPU @ 2.5 GHz",
        "labvoice bench turns --trials 5 --llm paced",
        run.header.run_id,
    ):
        assert words in page
    assert all(name in page for name in glossary.STAGES)
    assert page.count("<svg") == 3


def test_a_run_with_arms_shows_how_they_compare(tmp_path: Path) -> None:
    """Each arm has its lines, and the further arms their ratios to the first."""
    arms = {"defaults": {"tuned": False}, "tuned": {"tuned": True}}
    run = turns_run(tmp_path / "t.jsonl", calls=20, arms=arms, faster_arm_s=0.3)
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Arms compared with defaults" in page
    assert "tuned/defaults" in page


def test_links_and_sounds_are_one_picture_of_what_each_does(tmp_path: Path) -> None:
    """Every stage has its difference to the first arm; arms without either have no such picture."""
    arms = {"good": {}, "bad": {"link": "4g", "voice": "noise street at 10 dB"}}
    run = turns_run(tmp_path / "t.jsonl", calls=6, arms=arms, faster_arm_s=-0.3)
    texts = {text.get_text() for text in plots.what_it_does(run).axes[0].texts}
    assert any(re.search(r"\(\+[23]\d\d\)", text) for text in texts)
    assert "What each does to every stage" in write_report([run], tmp_path / "r.html").read_text()
    with pytest.raises(RunFileError, match="neither"):
        plots.what_it_does(turns_run(tmp_path / "u.jsonl", calls=2, arms={"a": {}, "b": {}}))


def test_what_was_said_cannot_act_in_the_page(tmp_path: Path) -> None:
    """Markup in an utterance, a room, an arm's name or a failure is shown, never obeyed."""
    evil = "<script>alert(1)</script><img onerror=x>"
    run = turns_run(tmp_path / "t.jsonl", calls=2, turns=1, said=evil, arms={evil: {evil: evil}})
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    balance = parsed(page)
    assert not {"script", "img"} & balance.tags
    assert "&lt;script&gt;alert(1)" in page
    assert not {"script", "img"} & parsed(run._repr_html_()).tags


def test_a_run_in_which_everything_failed_still_has_a_report(tmp_path: Path) -> None:
    """Nothing measured means no distributions, but outcomes and words."""
    failures = dict.fromkeys(range(4), "no_worker")
    run = connect_run(tmp_path / "c.jsonl", trials=3, failures=failures)
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0 of 3 connections ended with an agent that listens" in page
    assert glossary.OUTCOMES["no_worker"] in page


def test_a_run_that_crashed_at_once_still_has_a_report(tmp_path: Path) -> None:
    """A header and a trial that never went anywhere are enough."""
    writer = RunWriter(tmp_path / "c.jsonl", kind="connect")
    writer.trial(1, "room", "default")
    run = Run.load(tmp_path / "c.jsonl")
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The run did not end in order" in page
    assert UNFINISHED in page
    writer.close()


def test_every_stage_and_outcome_is_defined() -> None:
    """The glossary has exactly the vocabulary's stages and outcomes."""
    derived = CONNECTION_STAGES + FAILOVER_STAGES + TURN_STAGES + INTERRUPTION_STAGES
    assert set(glossary.STAGES) == {
        *(stage.name for stage in derived),
        OVERLAP,
        *AGENT_TURN_STAGES,
        *(stage.name for stage in WIRE_STAGES),
        *CALIBRATION_STAGES,
        INSTRUMENT_ERROR,
        PACKETISATION,
        TRANSPORT,
        *TRANSPORT_PARTS,
        *MEMORY_STAGES,
    }
    assert set(glossary.OUTCOMES) == set(OUTCOMES)


def test_a_connection_is_drawn_with_all_its_marks(tmp_path: Path) -> None:
    """The waterfall names every mark of the trial nearest the median, on an axis with its unit."""
    run = connect_run(tmp_path / "c.jsonl")
    (axes,) = plots.connection_waterfall(run).axes
    labels = {label.get_text() for label in axes.get_yticklabels()}
    assert set(run.marks["mark"]) <= labels
    assert "milliseconds" in axes.get_xlabel()
    frame = run.frame[(run.frame["stage"] == "connection") & ~run.frame["warmup"]]
    nearest = (frame["duration_s"] - frame["duration_s"].median()).abs().argmin()
    assert f"trial {frame['trial'].tolist()[nearest]}" in axes.get_title(loc="left")


def test_a_turn_is_drawn_with_its_rest(tmp_path: Path) -> None:
    """Transport is a bar from where LiveKit's figures end to where the ear hears the reply."""
    run = turns_run(tmp_path / "t.jsonl")
    (axes,) = plots.turn_waterfall(run, trial=1, turn=2).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    bars = dict(zip(labels, axes.patches, strict=True))
    rest, whole, agent = (
        bars[name].get_extents().transformed(axes.transData.inverted())
        for name in ("transport (the rest)", "voice_to_voice", "e2e_latency")
    )
    assert rest.x0 == pytest.approx(agent.x1)
    assert rest.x1 == pytest.approx(whole.x1)
    assert whole.x0 == pytest.approx(0)


def test_a_picture_of_one_trial_names_its_arm(tmp_path: Path) -> None:
    """Of a run with several arms a reader sees whose turn it is, and may ask for another's."""
    run = turns_run(tmp_path / "t.jsonl", arms={"old": {}, "new": {}})
    for arm in run.arms:
        (axes,) = plots.turn_waterfall(run, arm=arm).axes
        assert axes.get_title(loc="left").endswith(f", arm {arm}")
    (axes,) = plots.connection_waterfall(run).axes
    assert ", arm " in axes.get_title(loc="left")
    with pytest.raises(RunFileError, match="no such turn"):
        plots.turn_waterfall(run, arm="another")


def test_pictures_show_themselves_in_a_notebook(tmp_path: Path) -> None:
    """A picture gives IPython a PNG and the size to show it at."""
    data, size = plots.distributions(connect_run(tmp_path / "c.jsonl", trials=3))._repr_png_()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") == pytest.approx(2 * size["width"], abs=2)


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    """A trial that does not exist, or a run without turns, is an error in words."""
    run = connect_run(tmp_path / "c.jsonl", trials=2)
    with pytest.raises(RunFileError, match="no connection in trial 99"):
        plots.connection_waterfall(run, trial=99)
    with pytest.raises(RunFileError, match="no such turn"):
        plots.turn_waterfall(run)


def test_bad_report_requests_are_named(tmp_path: Path) -> None:
    """No run, or a place that cannot be written, ends in one error."""
    with pytest.raises(UsageError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    run = connect_run(tmp_path / "c.jsonl", trials=2)
    with pytest.raises(RunFileError, match=re.escape("cannot be written")):
        write_report([run], tmp_path)


def test_pictures_are_written_by_kind(tmp_path: Path) -> None:
    """Each picture of a run becomes a PNG that names the run's kind."""
    run = turns_run(tmp_path / "t.jsonl")
    names = {path.name for path in write_pictures(run, tmp_path / "pictures")}
    assert {"turns-turn-waterfall.png", "turns-distributions.png"} <= names
    for name in names:
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def recorded_run(path: Path) -> Run:
    """Five calls of one turn, the third slow and the fifth failed, each with its recording."""
    with RunWriter(path, kind="turns", host_facts={}) as run:
        for trial, reply_s in enumerate((1.0, 1.1, 3.0, 1.2, None)):
            run.trial(trial, f"room-{trial}", "default")
            run.mark(trial, Mark("click", 100.0))
            run.outcome(trial, "ok")
            for name, at_s in (("user_speech_start", 101.0), ("user_speech_end", 102.0)):
                run.mark(trial, Mark(name, at_s), turn=0)
            if reply_s is not None:
                run.mark(trial, Mark("reply_heard", 102.0 + reply_s), turn=0)
            run.outcome(trial, "no_reply" if reply_s is None else "ok", turn=0)
            place = Path(path.stem) / f"{trial:04}.ogg"
            Recording(np.full((24000 * 6, 2), 900, np.int16), 100.5).write(path.parent / place)
            run.note(trial, recording=place.as_posix(), recording_start_s=0.5)
    return Run.load(path)


def test_the_median_the_slowest_and_the_failed_call_can_be_listened_to(tmp_path: Path) -> None:
    """They are embedded with their marks on the recording's time axis, and the others linked."""
    run = recorded_run(tmp_path / "runs" / "run.jsonl")
    shown = players.players(run)
    assert [player.title for player in shown] == [
        "Call 1: median",
        "Call 2: slowest",
        "Call 4: no_reply",
    ]
    marks = {mark.name: mark.at_s for mark in shown[0].marks}
    assert marks == {
        "user_speech_start, turn 0": pytest.approx(0.5),
        "user_speech_end, turn 0": pytest.approx(1.5),
        "reply_heard, turn 0": pytest.approx(2.6),
    }
    assert shown[0].length_s == pytest.approx(6.0, abs=0.05)
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:audio/ogg;base64,') == len(shown)
    assert 'href="runs/run/0003.ogg"' in page
    assert "http" not in page
    parsed(page)


@pytest.mark.parametrize(
    ("said_at", "reply_at"),
    [("user_speech_start", "reply_heard"), ("interruption_start", "new_reply_heard")],
)
def test_a_player_has_words_and_interruptions_on_its_axis(
    tmp_path: Path, said_at: str, reply_at: str
) -> None:
    """Each side's words begin at their marks, and where both sides sound is told."""
    at_s = np.arange(24000 * 6) / 24000
    hum = 6000 * sum(np.sin(2 * np.pi * 120 * n * at_s) / n for n in range(1, 6))
    samples = np.stack([hum * ((at_s > 1) & (at_s < 3)), hum * ((at_s > 2.5) & (at_s < 5))], axis=1)
    path = tmp_path / "run.jsonl"
    with RunWriter(path, kind="call", host_facts={}) as run:
        run.trial(0, "room", "default")
        run.mark(0, Mark("click", 100.0))
        run.mark(0, Mark("greeting_heard", 100.6))
        run.outcome(0, "ok")
        run.note(0, greeting="Hello!")
        for name, instant_s in ((said_at, 101.5), (reply_at, 103.0)):
            run.mark(0, Mark(name, instant_s), turn=0)
        run.note(0, 0, said="Are <you> there?", reply="Yes, I am.")
        run.outcome(0, "interrupted", turn=0)
        Recording(samples.astype(np.int16), 100.5).write(path.with_suffix("") / "0000.wav")
        run.note(0, recording="run/0000.wav", recording_start_s=0.5)
    player = Run.load(path).listen()
    words: Any = [(one.who, one.text, one.at_s, one.cut) for one in player.words]
    assert words == [
        ("agent", "Hello!", pytest.approx(0.1), False),
        ("caller", "Are <you> there?", pytest.approx(1.0), False),
        ("agent", "Yes, I am.", pytest.approx(2.5), True),
    ]
    both: Any
    (both,) = player.both
    assert both == (pytest.approx(2.5 * 150, abs=3), pytest.approx(0.5 * 150, abs=4))
    shown = player._repr_html_()
    parsed(shown)
    assert "Are &lt;you&gt; there?" in shown
    assert "data:audio/wav;base64," in shown
    assert "3.0 s  agent: Yes, I am. (interrupted)" in repr(player)
    with pytest.raises(RunFileError, match="call 7 has no recording"):
        Run.load(path).listen(7)


def test_a_recording_that_is_gone_or_broken_is_no_trouble(tmp_path: Path) -> None:
    """The report is made without it."""
    run = recorded_run(tmp_path / "run.jsonl")
    (tmp_path / "run" / "0001.ogg").unlink()
    (tmp_path / "run" / "0002.ogg").write_bytes(b"no sound")
    assert [player.title for player in players.players(run)] == [
        "Call 3: median",
        "Call 4: no_reply",
    ]
