"""How much of the held-out gain an export keeps."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.core.paired import Estimate, estimate
from helpers.model.scoring import RowScore

__all__ = ["gain_lines"]

CLEARLY_LESS = 0.9
"""An export whose whole interval, or share without one, lies below this is said to have lost something."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows, and their losses without the adapter and with it.

    Args:
        rows: With `input_ids` and `completion_mask`.
        sources: Rows that share one count once; None if no two do.
    """

    rows: Iterable[Mapping[str, Any]]
    base: Sequence[RowScore]
    tuned: Sequence[RowScore]
    sources: Sequence[Hashable] | None = None

    def request(self) -> list[dict[str, Any]]:
        """Return the rows as JSON values, without what scoring does not need."""
        return [{name: list(row[name]) for name in ("input_ids", "completion_mask")} for row in self.rows]


@dataclass(frozen=True)
class GainKept:
    """The share of the tuned model's held-out gain that an export has.

    Args:
        share: (NLL base - NLL export) / (NLL base - NLL tuned); None unless the gain's own interval lies above 0.
        low: Lower end of its 95 % interval, for the gain as it was measured; None without one, or where the rows cannot
            bear a verdict on the gain.
        gain: The mean of base minus tuned, in nats a token.
    """

    share: float | None
    low: float | None
    high: float | None
    gain: Estimate
    rows: int

    @property
    def text(self) -> str:
        """The result as one line."""
        if self.share is None:
            why = self.gain.why_no_interval and f"not known, because {self.gain.why_no_interval}"
            return f"Held-out gain kept: {why or 'no gain to keep (its interval includes 0, or lies below it)'}."
        between = "" if self.low is None else f" (95 % interval {self.low:.1%} to {self.high:.1%})"
        doubt = self.gain.why_no_verdict and f", without an interval: {self.gain.why_no_verdict}"
        less = ""
        if (self.share if self.high is None else self.high) < CLEARLY_LESS:
            less = f" Part of what was learned {'may be' if self.high is None else 'is'} missing."
        return (
            f"Held-out gain kept: {self.share:.1%}{between} of {self.gain.mean:.3f} nats a token, "
            f"{self.rows} rows{doubt}.{less}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        gain = {name: getattr(self.gain, name) for name in ("mean", "low", "high")}
        return {**{name: getattr(self, name) for name in ("share", "low", "high", "rows", "text")}, "gain": gain}


def share_of_gain_kept(
    base: Sequence[RowScore],
    tuned: Sequence[RowScore],
    export: Sequence[RowScore],
    sources: Sequence[Hashable] | None = None,
) -> GainKept:
    """Compare an export's held-out losses with those of the base and of the tuned model, on the same rows.

    The share is a ratio of two means over the same rows, so its interval is that of the mean of each row's
    (base - export) - share * (base - tuned), divided by the gain (Fieller's linear form, the delta method).
    """
    gains = [a.mean() - b.mean() for a, b in zip(base, tuned, strict=True)]
    kept = [a.mean() - b.mean() for a, b in zip(base, export, strict=True)]
    gain = estimate(gains, sources)
    if gain.low is None or gain.low <= 0:
        return GainKept(None, None, None, gain, len(gains))
    share = sum(kept) / sum(gains)
    rest = estimate([k - share * g for k, g in zip(kept, gains, strict=True)], sources)
    if gain.why_no_verdict or rest.low is None or rest.high is None:
        return GainKept(share, None, None, gain, len(gains))
    return GainKept(share, share + rest.low / gain.mean, share + rest.high / gain.mean, gain, len(gains))


def gain_lines(numbers: Mapping[str, Any]) -> list[str]:
    """Return what a verification's numbers say of the held-out gain that an export keeps, a sentence each."""
    measured = (numbers.get(name) for name in ("gain_kept", "gain_kept_16bit"))
    return [each["text"] for each in measured if isinstance(each, dict) and "text" in each]
