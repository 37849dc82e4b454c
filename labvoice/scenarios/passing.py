"""Pass rates of a scenario: pass^1 and pass^k with 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labvoice.runs.exact import exact_interval


@dataclass(frozen=True)
class PassRate:
    """How many calls of a scenario passed.

    Attributes:
        k: How many shall pass in a row.
    """

    passed: int
    calls: int
    k: int

    @property
    def share(self) -> float:
        """Share of the calls that passed: pass^1; NaN of no calls."""
        return self.passed / self.calls if self.calls else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share, by Clopper and Pearson (exact)."""
        return exact_interval(self.passed, self.calls)

    @property
    def pass_k(self) -> float:
        """Pass^k: the probability that k calls drawn from these all passed.

        0 where one has failed and fewer than k were made: then k can no longer pass. NaN of no
        calls (tau-bench, https://arxiv.org/abs/2406.12045, section 3).
        """
        if not self.calls:
            return math.nan
        if self.calls < self.k:
            return 0.0 if self.passed < self.calls else math.nan
        return math.comb(self.passed, self.k) / math.comb(self.calls, self.k)

    @property
    def pass_k_interval(self) -> tuple[float, float]:
        """The 95 % interval of pass^k: that of the share, to the power of k."""
        low, high = self.interval
        return low**self.k, high**self.k
