"""What the report says of a run: sentences, key figures and tables, ready for the template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from labvoice.protocol.vocabulary import HEARD_STAGES
from labvoice.report.glossary import PHRASES
from labvoice.runs import statistics
from labvoice.runs.run import Run
from labvoice.runs.statistics import StageSummary, milliseconds
from labvoice.runs.turn_ends import recommendation
from labvoice.runs.turn_taking import FIGURES

_KEY_STAGES: Final = (
    "instrument_error",
    "voice_to_voice_error",
    "recovery",
    "voice_to_voice",
    "yield_latency",
    "interruption_recovery",
    "connection",
    "join",
    "time_to_greeting",
)
_RECORDING: Final = ("recording", "recording_start_s")
_TEXTS: Final = ("said", "transcript", "reply", "wer")


class Tile(NamedTuple):
    """A key figure: its name, its value with unit, and the text below it."""

    name: str
    figure: str
    unit: str
    below: str


class Row(NamedTuple):
    """A stage's line in the table; `share50` and `share95` are widths of its bar, in per cent.

    The last cell is the instrument's error, in a run that knows it.
    """

    stage: str
    arm: str
    cells: list[str]
    share50: float
    share95: float


def headline(run: Run) -> str:
    """Returns a summary of a run as text: successes, the main stage, the word error rate.

    What shows that the machine is the limit stands first.
    """
    attempts = run.attempts
    ok = int((attempts["outcome"] == "ok").sum())
    turns = attempts["turn"].notna().any()
    done = "turns were answered" if turns else "connections ended with an agent that listens"
    if run.header.kind == "interrupt":
        done = "probes were measured, whatever the agent did"
    if run.turn_ends:
        done = "turns were not cut in on"
    words = f"{run.overload} {ok} of {len(attempts)} {done}.".lstrip()
    if run.turn_ends:
        return " ".join([words, *recommendation(run.turn_ends)])
    if run.sizing:
        return f"{words} {run.sizing}"
    stage = main_stage(run)
    if stage is None:
        return words
    what = PHRASES.get(stage, stage)
    figures = []
    for arm in run.arms:
        summary = run.stage_summaries.get((stage, arm))
        if summary is None or not summary.n:
            continue
        of_arm = f"{arm}: " if len(run.arms) > 1 else ""
        low, high = summary.ci95_s
        interval = (
            ""
            if math.isnan(low)
            else f", 95 % interval {milliseconds(low)} to {milliseconds(high)}"
        )
        figures.append(
            f"{of_arm}{milliseconds(summary.p50_s)} ms at the median{interval}, "
            f"{milliseconds(summary.p95_s)} ms at the 95th percentile"
        )
    if figures:
        words += f" {what[0].upper()}{what[1:]}: {'; '.join(figures)}."
        if stage in HEARD_STAGES and run.instrument_error_s is not None:
            words += f" {instrument_words(run)}."
    rate = run.word_error_rate()
    if rate is not None:
        words += f" Word error rate of what the agent understood: {rate:.1%}."
    return words


def instrument_words(run: Run) -> str:
    """Says what the instrument's own error is; for a run that knows it."""
    error_s = run.instrument_error_s
    assert error_s is not None
    return (
        f"The instrument's own error is {milliseconds(error_s)} ms at the 95th percentile "
        f"({run.header.host.get('calibration')})"
    )


def title(runs: Sequence[Run]) -> str:
    """Says in one line what the runs together show: the first median of each sort."""
    found: dict[str, str] = {}
    for run in runs:
        stage = main_stage(run)
        summary = run.stage_summaries.get((stage or "", run.arms[0]))
        if stage in PHRASES and summary is not None and summary.n:
            found.setdefault(stage, f"{PHRASES[stage]}: {milliseconds(summary.p50_s)} ms")
    words = "; ".join(found.values())
    return f"{words[0].upper()}{words[1:]}" if words else "Recorded runs of a voice agent"


def main_stage(run: Run) -> str | None:
    """Returns the stage that a run is about; None where nothing was measured."""
    measured = {stage for (stage, _), summary in run.stage_summaries.items() if summary.n}
    ordered = (*_KEY_STAGES, *sorted(measured, key=statistics.stage_order))
    return next((stage for stage in ordered if stage in measured), None)


def tiles(run: Run) -> list[Tile]:
    """Returns the key figures of a run: its main stage by arm, others, successes, error rate."""
    attempts = run.attempts
    ok = int((attempts["outcome"] == "ok").sum())
    found = []
    first = main_stage(run)
    several = len(run.arms) > 1
    for stage in dict.fromkeys((first, *_KEY_STAGES)):
        for arm in run.arms:
            summary = run.stage_summaries.get((stage or "", arm))
            if summary is None or not summary.n or (several and stage != first):
                continue
            below = f"p95 {milliseconds(summary.p95_s)} ms"
            if stage in HEARD_STAGES and run.instrument_error_s is not None:
                below += f"; instrument ± {milliseconds(run.instrument_error_s)} ms"
            found.append(
                Tile(
                    f"{stage}, {arm}" if several else str(stage),
                    milliseconds(summary.p50_s),
                    "ms",
                    f"median; {below}",
                )
            )
    for name, share in run.shares().items() if not several else ():
        figure = next(each for each in FIGURES if each.name == name)
        found.append(Tile(name, f"{share.k} of {share.n}", "", figure.phrase))
    done = "turns answered" if attempts["turn"].notna().any() else "agents listened"
    done = "probes measured" if run.header.kind == "interrupt" else done
    found.append(Tile("succeeded", f"{ok} of {len(attempts)}", "", done))
    rate = run.word_error_rate()
    if rate is not None:
        found.append(Tile("word error rate", f"{rate * 100:.1f}", "%", "of what was understood"))
    return found


def stage_rows(run: Run) -> list[Row]:
    """Returns the lines of the table of stages, in milliseconds."""
    longest_s = max((s.p95_s for s in run.stage_summaries.values() if s.n), default=0.0)

    def share(value_s: float) -> float:
        if math.isnan(value_s) or longest_s <= 0:
            return 0.0
        return max(0.0, min(100.0, value_s / longest_s * 100))

    return [
        Row(
            stage,
            arm,
            _cells(summary) + _instrument_cell(run, stage),
            share(summary.p50_s),
            share(summary.p95_s),
        )
        for (stage, arm), summary in run.stage_summaries.items()
    ]


def _instrument_cell(run: Run, stage: str) -> list[str]:
    if run.instrument_error_s is None:
        return []
    return [f"± {milliseconds(run.instrument_error_s)}" if stage in HEARD_STAGES else "–"]


def _cells(summary: StageSummary) -> list[str]:
    low, high = summary.ci95_s
    return [
        f"{summary.n:,}",
        f"{summary.failed:,}" if summary.failed else "–",
        milliseconds(summary.mean_s),
        milliseconds(summary.p50_s),
        "–" if math.isnan(low) else f"{milliseconds(low)} to {milliseconds(high)}",
        milliseconds(summary.p95_s),
        milliseconds(summary.p99_s),
    ]


def ratio_rows(run: Run) -> list[list[str]]:
    """Returns how each further arm compares with the first, stage by stage."""
    rows = []
    for pair, stages in run.ratios().items():
        for stage, ratio in stages.items():
            low, high = ratio.ci95
            interval = "–" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
            p_value = "–" if math.isnan(ratio.p_value) else f"{ratio.p_value:.2g}"
            factor = "–" if math.isnan(ratio.ratio) else f"{ratio.ratio:.3f}"
            rows.append([pair, stage, factor, interval, p_value])
    return rows


def share_rows(run: Run) -> list[list[str]]:
    """Returns the shares of turn-taking by arm: figure, arm, count, share, interval, meaning."""
    rows = []
    of_arms = {arm: run.shares(arm) for arm in run.arms}
    for figure in FIGURES:
        for arm, found in of_arms.items():
            if (share := found.get(figure.name)) is not None:
                low, high = share.ci95
                count = [
                    f"{share.k} of {share.n}",
                    f"{share.share:.0%}",
                    f"{low:.0%} to {high:.0%}",
                ]
                rows.append([figure.name, arm, *count, figure.phrase])
    return rows


def outcome_rows(run: Run) -> list[tuple[str, int]]:
    """Returns each outcome with its count, warm-ups left out."""
    return [(str(name), int(n)) for name, n in run.attempts["outcome"].value_counts().items()]


def turn_rows(run: Run) -> list[dict[str, Any]]:
    """Returns utterance, transcript and reply of each turn, with its latency and outcome."""
    outcomes, notes = run.outcomes, run.notes
    notes = notes[[name for name in notes if name in ("trial", "turn", *_TEXTS)]]
    # Turns without notes stay.
    rows = outcomes[outcomes["turn"].notna()].merge(notes, on=["trial", "turn"], how="left")
    heard = run.frame.query("stage == 'voice_to_voice'").set_index(["trial", "turn"])["duration_s"]
    details = []
    for row in rows.to_dict("records"):
        unit = (int(row["trial"]), int(row["turn"]))
        texts = {name: _text(row.get(name)) for name in _TEXTS[:3]}
        wer = row.get("wer")
        rate = float(wer) if isinstance(wer, int | float) and not math.isnan(wer) else None
        details.append(
            {
                "trial": unit[0],
                "turn": unit[1],
                "arm": row["arm"],
                "warmup": row["warmup"],
                "outcome": row["outcome"],
                "wer": rate,
                "heard": milliseconds(float(heard.get(unit, math.nan))),
                **texts,
            }
        )
    return details


def connection_rows(run: Run) -> tuple[list[str], list[list[str]]]:
    """Returns each connection with its stages and facts: the headings, and the rows."""
    frame = run.frame
    frame = frame[frame["turn"].isna()]
    outcomes = run.outcomes
    outcomes = outcomes[outcomes["turn"].isna()]
    notes = run.notes
    notes = notes[notes["turn"].isna()].set_index("trial")
    stages = sorted(set(frame["stage"]), key=statistics.stage_order)
    times = frame[frame["plausible"]].set_index(["trial", "stage"])["duration_s"]
    facts = [
        str(name)
        for name in notes.columns
        if name not in ("run_id", "room", "turn", *_RECORDING) and notes[name].notna().any()
    ]
    heads = ["trial", "room", "arm", "outcome", *(f"{name} ms" for name in stages), *facts]
    rows = []
    for line in outcomes.to_dict("records"):
        trial = line["trial"]
        outcome = f"{line['outcome']}: {line['detail']}" if line["detail"] else line["outcome"]
        rows.append(
            [
                f"{trial} (warm-up)" if line["warmup"] else str(trial),
                str(line["room"]),
                str(line["arm"]),
                str(outcome),
                *(milliseconds(float(times.get((trial, stage), math.nan))) for stage in stages),
                *(_text(notes.at[trial, name]) if trial in notes.index else "–" for name in facts),
            ]
        )
    return heads, rows


def facts(values: dict[str, Any], skip: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Flattens host facts or a configuration into names and words."""
    found = []
    for name, value in values.items():
        if name in skip or value is None:
            continue
        if isinstance(value, dict):
            found += [(str(key), _text(inner)) for key, inner in value.items()]
        elif name == "memory_bytes":
            found.append(("memory", f"{value / 2**30:.1f} GiB"))
        elif name == "load_1m":
            found.append(("load at the start", f"{value:g}"))
        else:
            found.append((name, _text(value)))
    return found


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
