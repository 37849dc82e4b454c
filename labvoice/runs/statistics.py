"""Statistics of a run: percentiles, intervals with the call as the unit, words of warning.

The unit of resampling is what was repeated: a call (a trial in one room), or an event of which
several calls are part, such as a burst. Its turns share the room, the process and the moment, so
they are not independent: intervals resample whole units, and tests compare one value per unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from labvoice.protocol.vocabulary import (
    AGENT_TURN_STAGES,
    CALIBRATION_STAGES,
    CONNECTION_STAGES,
    FAILOVER_STAGES,
    INSTRUMENT_ERROR,
    INTERRUPTION_STAGES,
    MEMORY_STAGES,
    OVERLAP,
    PACKETISATION,
    READY_MARKS,
    TRANSPORT,
    TRANSPORT_PARTS,
    TURN_STAGES,
    WIRE_STAGES,
)
from labvoice.runs.exact import mann_whitney, signed_rank

Floats = npt.NDArray[np.float64]

HEADLINE: Final = tuple(
    stage.name for stage in CONNECTION_STAGES + FAILOVER_STAGES + TURN_STAGES + INTERRUPTION_STAGES
)
"""The stages that a gate judges and that warnings speak of."""

_ORDER: Final = {
    name: i
    for i, name in enumerate(
        (
            *HEADLINE,
            OVERLAP,
            *(stage.name for stage in WIRE_STAGES),
            *CALIBRATION_STAGES,
            PACKETISATION,
            INSTRUMENT_ERROR,
            *AGENT_TURN_STAGES,
            TRANSPORT,
            *TRANSPORT_PARTS,
            *MEMORY_STAGES,
        )
    )
}
SUMMARISED: Final = (
    "stage",
    "arm",
    "warmup",
    "outcome",
    "duration_s",
    "plausible",
    "upset",
    "unit",
)
"""The columns of the frame that a summary looks at."""
_RESAMPLES: Final = 2000
_SEED: Final = 20261
_MIN_N_FOR_P99: Final = 100
FEW_CALLS: Final = 10
_EXAMPLES: Final = 4
_MANY_UNITS: Final = 1000
"""From here on the limit of the bootstrap is used: a draw costs resamples × units."""
_BLOCK: Final = 4096
"""Values whose counts are cumulated at once: 64 MB for 2000 resamples."""
_LOADED: Final = 0.7
_FULL: Final = 0.9
"""Share of all cores' time from which a call's machine was busy."""
_OFTEN: Final = 0.2
"""Share of calls or turns from which the machine is named as the limit."""
_RISE: Final = 0.2
"""By so much of all cores' time the load has risen, from the first third of calls to the last."""
_TREND_CALLS: Final = 3
_WIDE: Final = 0.2
_WIDE_S = 0.01  # nobody argues over less than 10 ms


def finite(value: float) -> float | None:
    """Rounds a figure for JSON, to microseconds where it is a time; None where it is none."""
    return round(value, 6) if math.isfinite(value) else None


def figures(value: Any) -> Any:
    """Returns a value for JSON: numbers as :func:`finite` has them, tuples as lists."""
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {name: figures(each) for name, each in value.items()}
    return [figures(each) for each in value] if isinstance(value, tuple) else value


class StageSummary(NamedTuple):
    """One stage in figures, in seconds; NaN where there is nothing to compute from.

    Attributes:
        n: Measurements: units that ended ok and have this stage, warm-ups left out.
        failed: Units that did not end ok.
        mean_s: Arithmetic mean.
        p50_s: Median.
        p95_s: 95th percentile.
        p99_s: 99th percentile; NaN where n is below 100.
        ci95_s: 95 % bootstrap interval of the median.
    """

    n: int
    failed: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    ci95_s: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Returns the figures under their names; None where there is none."""
        return {name: figures(each) for name, each in self._asdict().items() if name != "failed"}


class Ratio(NamedTuple):
    """How one configuration compares with another.

    Attributes:
        ratio: The new median over the base median; of configurations that were measured round by
            round, the median of the rounds' ratios.
        ci95: 95 % bootstrap interval of the ratio.
        p_value: Two-sided Mann–Whitney U on the units' medians; of rounds, the Wilcoxon
            signed-rank test on the logarithms of their ratios.
    """

    ratio: float
    ci95: tuple[float, float]
    p_value: float

    def __str__(self) -> str:
        low, high = self.ci95
        words = [f"{self.ratio:.2f}"]
        if not math.isnan(low):
            words.append(f"95 % interval {low:.2f} to {high:.2f}")
        if not math.isnan(self.p_value):
            words.append(f"p {self.p_value:.2g}")
        return ", ".join(words)

    def to_json(self) -> dict[str, Any]:
        """Returns the figures under their names; None where there is none."""
        found: dict[str, Any] = figures(self._asdict())
        return found


def percentile(values: npt.ArrayLike, q: float) -> float:
    """Returns a percentile, linear between the two nearest values (NumPy's `linear`).

    This is method 7 of Hyndman and Fan, also the default of R and of spreadsheets.

    Args:
        values: Shape (n,).
        q: In [0, 100].
    """
    array = np.asarray(values, dtype=np.float64)
    return float(np.percentile(array, q, method="linear")) if array.size else math.nan


def bootstrap_percentiles(
    values: npt.ArrayLike,
    units: npt.ArrayLike,
    q: float = 50.0,
    *,
    resamples: int = _RESAMPLES,
    seed: int = _SEED,
) -> Floats:
    """Resamples whole units with replacement and takes a percentile of each resample.

    From :data:`_MANY_UNITS` on, the resamples are drawn from the distribution that they tend
    to (Woodruff 1952, doi:10.1080/01621459.1952.10483443): the share of values below the
    percentile is normal, with the variance between units. Memory is bounded in both cases.

    Args:
        values: Shape (n,).
        units: Shape (n,): which unit each value belongs to.
        q: Percentile, in [0, 100].
        resamples: How many.
        seed: The same seed gives the same result.

    Returns:
        Shape (resamples,).
    """
    array = np.asarray(values, dtype=np.float64)
    member, names = pd.factorize(_labels(units), sort=True)
    rng = np.random.default_rng(seed)
    if len(names) >= _MANY_UNITS:
        shares = rng.normal(q / 100, _share_error(array, member, q), resamples)
        places = np.clip(shares, 0, 1) * (array.size - 1)
        return np.asarray(np.interp(places, np.arange(array.size), np.sort(array)), np.float64)
    order = np.argsort(array, kind="stable")
    array, member = array[order], member[order]
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    # A unit drawn k times contributes each of its values k times. The sorted values are cut
    # into blocks: the counts of whole blocks tell where to look value by value.
    counts = np.zeros((len(names), -(-array.size // _BLOCK)))
    np.add.at(counts, (member, np.arange(array.size) // _BLOCK), 1)
    ends = np.cumsum(draws.astype(np.float64) @ counts, axis=1)  # exact, and many times faster
    position = (ends[:, -1] - 1) * (q / 100)
    below = np.floor(position)
    lower = _ranked(array, member, draws, ends, below)
    upper = _ranked(array, member, draws, ends, np.ceil(position))
    return np.asarray(lower + (position - below) * (upper - lower), dtype=np.float64)


def _labels(units: npt.ArrayLike) -> Any:
    """The unit of each value; numbers in place of a category's words, in the same order."""
    return units.codes if isinstance(units, pd.Categorical) else np.asarray(units)


def _share_error(array: Floats, member: npt.NDArray[np.intp], q: float) -> float:
    """Standard error of the share of values that are at most the percentile, between units."""
    sizes = np.bincount(member)
    at_most = np.bincount(member, weights=array <= np.percentile(array, q))
    residuals = at_most - sizes * (at_most.sum() / array.size)
    return float(np.sqrt(np.square(residuals).sum())) / array.size


def _ranked(
    array: Floats,
    member: npt.NDArray[np.intp],
    draws: npt.NDArray[np.int64],
    ends: Floats,
    rank: Floats,
) -> Floats:
    """Finds the value of a rank (from 0) in each resample.

    Args:
        array: Shape (n,): sorted values.
        member: Shape (n,): the unit of each, from 0.
        draws: Shape (resamples, units): how often each unit is drawn.
        ends: Shape (resamples, blocks): how many values lie before the end of each block.
        rank: Shape (resamples,).

    Returns:
        Shape (resamples,).
    """
    home = np.argmax(ends > rank[:, None], axis=1)
    found = np.empty(len(rank))
    for number in np.unique(home):
        rows = np.flatnonzero(home == number)
        inside = slice(number * _BLOCK, (number + 1) * _BLOCK)
        within = rank[rows] - (ends[rows, number - 1] if number else 0)
        cumulated = np.cumsum(draws[np.ix_(rows, member[inside])], axis=1)
        found[rows] = array[inside][np.argmax(cumulated > within[:, None], axis=1)]
    return found


def bootstrap_interval(
    values: npt.ArrayLike, units: npt.ArrayLike, q: float = 50.0
) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of a percentile; NaN where units are below two.

    Args:
        values: Shape (n,).
        units: Shape (n,): which unit each value belongs to.
        q: Percentile, in [0, 100]; the median when not given.
    """
    if pd.unique(_labels(units)).size < 2:
        return math.nan, math.nan
    return _interval(bootstrap_percentiles(values, units, q))


def mean_intervals(values: npt.ArrayLike) -> Floats:
    """Returns the 95 % bootstrap interval of each column's mean; NaN where rows are below two.

    Args:
        values: Shape (n, m): each row is one unit of resampling.

    Returns:
        Shape (m, 2).
    """
    array = np.asarray(values, dtype=np.float64)
    count, columns = array.shape
    if count < 2:
        return np.full((columns, 2), math.nan)
    draws = np.random.default_rng(_SEED).multinomial(
        count, np.full(count, 1 / count), size=_RESAMPLES
    )
    bounds = np.percentile(draws @ array / count, (2.5, 97.5), axis=0)
    return np.asarray(bounds.T, np.float64)


def compare_medians(
    base: npt.ArrayLike,
    base_units: npt.ArrayLike,
    new: npt.ArrayLike,
    new_units: npt.ArrayLike,
) -> Ratio:
    """Compares two medians: their ratio, its bootstrap interval, and a rank test.

    Args:
        base: Shape (n,).
        base_units: Shape (n,): which unit each value belongs to.
        new: Shape (m,).
        new_units: Shape (m,).
    """
    base_median, new_median = percentile(base, 50), percentile(new, 50)
    ratio = new_median / base_median if base_median > 0 else math.nan
    enough = min(np.unique(np.asarray(s)).size for s in (base_units, new_units)) >= 2
    if not enough or math.isnan(ratio):
        return Ratio(ratio, (math.nan, math.nan), math.nan)
    below = bootstrap_percentiles(base, base_units)
    above = bootstrap_percentiles(new, new_units, seed=_SEED + 1)
    p_value = mann_whitney(_unit_medians(base, base_units), _unit_medians(new, new_units))
    # LiveKit reports delays of exactly zero; a median that may be zero bounds no ratio.
    interval = _interval(above / below) if below.min() > 0 else (math.nan, math.nan)
    return Ratio(ratio, interval, p_value)


def compare_rounds(
    base: npt.ArrayLike,
    base_rounds: npt.ArrayLike,
    new: npt.ArrayLike,
    new_rounds: npt.ArrayLike,
) -> Ratio:
    """Compares two configurations of which each round measured both, at one time and alike.

    What the rounds differ by, such as the words that the caller says, does not count then. A
    round of which one side failed is left out.

    Args:
        base: Shape (n,).
        base_rounds: Shape (n,): the round of each value; several values are one by their median.
        new: Shape (m,).
        new_rounds: Shape (m,).
    """
    medians = [
        pd.Series(np.asarray(values, dtype=np.float64)).groupby(np.asarray(rounds)).median()
        for values, rounds in ((base, base_rounds), (new, new_rounds))
    ]
    pairs = pd.concat(medians, axis=1, join="inner").to_numpy(np.float64)
    if not len(pairs) or pairs.min() <= 0:  # LiveKit reports delays of exactly zero
        return Ratio(math.nan, (math.nan, math.nan), math.nan)
    ratios = pairs[:, 1] / pairs[:, 0]
    interval = bootstrap_interval(ratios, range(len(ratios)))
    if len(ratios) < 2:
        return Ratio(float(ratios[0]), interval, math.nan)
    return Ratio(percentile(ratios, 50), interval, signed_rank(np.log(ratios)))


def summarise(rows: pd.DataFrame) -> StageSummary:
    """Summarises the rows of one stage; warm-ups are left out, failures are counted.

    Args:
        rows: Rows of :attr:`labvoice.runs.run.Run.frame` with one stage.
    """
    failed = ~rows["warmup"] & (rows["outcome"] != "ok")
    good = measured(rows)
    values = good["duration_s"].to_numpy(np.float64)
    p50_s, p95_s, p99_s = np.percentile(values, (50, 95, 99)) if values.size else [math.nan] * 3
    return StageSummary(
        n=len(values),
        failed=int(failed.sum()),
        mean_s=float(values.mean()) if values.size else math.nan,
        p50_s=float(p50_s),
        p95_s=float(p95_s),
        p99_s=float(p99_s) if values.size >= _MIN_N_FOR_P99 else math.nan,
        ci95_s=bootstrap_interval(values, good["unit"].array),
    )


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows that count: ended ok, have a duration that can be, are no warm-up.

    Of a turn that a stall of this machine has upset nothing counts, as long as others are left.
    """
    good = ~rows["warmup"] & (rows["outcome"] == "ok") & rows["duration_s"].notna()
    good &= rows["plausible"]
    sound = good & ~rows["upset"]
    return rows[sound if sound.any() else good]


def stage_order(name: str) -> tuple[int, str]:
    """Sorts stages: headline stages, then the agent's own, then the rest, then others by name."""
    return _ORDER.get(name, len(_ORDER)), name


def milliseconds(value_s: float) -> str:
    """Formats seconds as milliseconds, with a decimal where it matters; a dash for NaN."""
    if math.isnan(value_s):
        return "–"
    return f"{value_s * 1e3:,.{1 if abs(value_s) < 0.01 else 0}f}"


def overload(frame: pd.DataFrame, notes: pd.DataFrame) -> str:
    """Says what shows that the machine, not the agent, is the limit; empty where nothing does.

    Args:
        frame: :attr:`labvoice.runs.run.Run.frame`.
        notes: :attr:`labvoice.runs.run.Run.notes`; `host_busy` is the share of all cores that were
            busy in a call.
    """
    causes = []
    counted = frame.loc[~frame["warmup"], "trial"].unique()
    known = notes.reindex(columns=["trial", "host_busy"]).dropna()
    known = known[known["trial"].isin(counted)].sort_values("trial")
    busy = known["host_busy"].to_numpy(np.float64)
    full = int((busy >= _FULL).sum())
    if full and full >= _OFTEN * len(busy):
        causes.append(f"all cores were busy in {full} of {len(busy)} calls")
    third = len(busy) // 3
    if third >= _TREND_CALLS:
        first, last = float(np.median(busy[:third])), float(np.median(busy[-third:]))
        if last - first >= _RISE:
            causes.append(f"its load rose through the run, from {first:.0%} to {last:.0%}")
    upset, turns = _upset_turns(frame)
    if upset and upset >= _OFTEN * turns:
        causes.append(f"{upset} of {turns} turns had late frames or a swollen jitter buffer")
    if not causes:
        return ""
    return f"The machine, not the agent, may be the limit: {'; '.join(causes)}."


def instability_warnings(
    frame: pd.DataFrame,
    attempts: pd.DataFrame,
    host: Mapping[str, Any],
    summaries: Mapping[tuple[str, str], StageSummary],
) -> list[str]:
    """Says in words why the figures of a run should be taken with care.

    Args:
        frame: :attr:`labvoice.runs.run.Run.frame`.
        attempts: :attr:`labvoice.runs.run.Run.attempts`, warm-ups left out.
        host: The run's host facts.
        summaries: The figures of each (stage, arm).
    """
    sentences = []
    failures = attempts.loc[attempts["outcome"] != "ok", "outcome"].value_counts()
    if len(failures):
        kinds = ", ".join(f"{count} × {name}" for name, count in failures.items())
        sentences.append(
            f"{failures.sum()} of {len(attempts)} attempts failed ({kinds}); "
            "they are in the data and not in the percentiles."
        )
    impossible = frame[~frame["plausible"] & ~frame["warmup"]]
    if len(impossible):
        examples = ", ".join(
            f"{row.stage} {row.duration_s:,.1f} s in trial {row.trial}"
            for row in impossible.head(_EXAMPLES).itertuples()
        )
        more = ", …" if len(impossible) > _EXAMPLES else ""
        sentences.append(
            f"{len(impossible)} figures cannot be (negative, or the agent's own and longer than "
            f"the turn) and are left out of the summaries: {examples}{more}."
        )
    untold = frame.loc[frame["ready_by"] == READY_MARKS[1], "arm"].unique()
    if len(untold):
        sentences.append(
            f"The agent of {', '.join(untold)} tells no state: its ready and connection end when "
            "its audio is subscribed."
        )
    sentences += _upset(frame)
    load, cores = host.get("load_1m"), host.get("cores")
    if isinstance(load, int | float) and isinstance(cores, int) and load / cores > _LOADED:
        sentences.append(
            f"The host was busy when the run began: a load of {load:.1f} on {cores} cores."
        )
    arms = list(frame["arm"].unique())
    good = measured(frame[list(SUMMARISED)])
    for arm in arms:
        of_arm = f" of {arm}" if len(arms) > 1 else ""
        units = good.loc[good["arm"] == arm, "unit"].nunique()
        if 0 < units < FEW_CALLS:
            were = "call was" if units == 1 else "calls were"
            trials = frame.loc[(frame["arm"] == arm) & ~frame["warmup"], "trial"].nunique()
            if trials > units:  # a burst: its rooms share their fate
                were = f"{'event' if units == 1 else 'events'} of {trials} calls together were"
            sentences.append(
                f"Only {units} {were} measured{of_arm}; below {FEW_CALLS}, percentiles "
                "and intervals are rough."
            )
        for stage in HEADLINE:
            summary = summaries.get((stage, arm))
            if summary is None:
                continue
            low, high = summary.ci95_s
            if high - low > max(_WIDE * summary.p50_s, _WIDE_S) and summary.p50_s > 0:
                sentences.append(
                    f"{stage}{of_arm} is uncertain: its median's 95 % interval, "
                    f"{milliseconds(low)} to {milliseconds(high)} ms, spans "
                    f"{(high - low) / summary.p50_s:.0%} of the median."
                )
    return sentences


def _upset_turns(frame: pd.DataFrame) -> tuple[int, int]:
    """Counts the turns that a stall of the machine has upset, and all, warm-ups aside."""
    turns = frame.loc[frame["turn"].notna() & ~frame["warmup"], ["trial", "turn", "upset"]]
    turns = turns.drop_duplicates()
    return int(turns["upset"].sum()), len(turns)


def _upset(frame: pd.DataFrame) -> list[str]:
    """Says how many turns a stall of the machine has upset."""
    upset, turns = _upset_turns(frame)
    if not upset:
        return []
    of_all = f"{upset} of {turns} turns were upset by a stall of this machine"
    if upset == turns:
        return [f"{of_all}: the figures are of the machine as much as of the agent."]
    return [f"{of_all} (late frames, or a swollen jitter buffer) and are left out of the figures."]


def _interval(replicates: Floats) -> tuple[float, float]:
    low, high = np.percentile(replicates, (2.5, 97.5))
    return float(low), float(high)


def _unit_medians(values: npt.ArrayLike, units: npt.ArrayLike) -> Floats:
    series = pd.Series(np.asarray(values, dtype=np.float64))
    return np.asarray(series.groupby(np.asarray(units)).median(), dtype=np.float64)
