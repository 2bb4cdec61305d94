"""From distances to a verdict: PASS, FAIL, or CANNOT TELL where the adapter's effect is within rounding."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from helpers.core.errors import ExportError
from helpers.core.runs import finite
from helpers.export.gain import gain_lines
from helpers.export.reference import Reference
from helpers.model.distance import Check, Distance, word

LIMITS = {
    "visible": 4.0,  # the adapter moves the logits at least this many times as far as precision does
    "close": 2.0,  # the export lies within this many times what precision does
    "most_ratio": 0.4,  # nothing farther than this share of the adapter's effect is ever close
    "smallest_ratio": 0.02,  # a distance below this share of the adapter's effect is always close
    "same_base": 0.1,  # a base whose logits are farther off than this share of their spread over the vocabulary ...
    "base_noise": 8.0,  # ... and than this many times what precision does is another model
    "near_tie": 4.0,  # greedy answers may part where two tokens are within this many times precision's largest change
}
"""Why these: two independent roundings of the same model lie one noise apart (measured for each verification), so a
correct export shows about 1 and a limit of 2 leaves room for kernels that round in another order. Rounding merged
weights is not only noise: where the adapter adds less than half a step, it drops the change, the same way everywhere.
How much, is measured on the weights (`lost`), and allowed for. An adapter merged at half or twice its scale, or not at
all, lies at half the effect or farther, which is never close; every smaller fault is found by comparing the files."""


@dataclass(frozen=True)
class Verification:
    """Whether an export is the tuned model.

    Args:
        name: "adapter" or "merged".
    """

    name: str
    checks: tuple[Check, ...]
    numbers: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """Whether it is the tuned model; None if no check failed and one could not be told."""
        results = [check.passed for check in self.checks]
        return False if False in results else None if None in results else True

    @property
    def result(self) -> str:
        """PASS, FAIL or CANNOT TELL."""
        return word(self.passed)

    @property
    def explanation(self) -> str:
        """The result in plain words: the checks that did not pass, or all."""
        shown = [c for c in self.checks if c.passed is self.passed] if not self.passed else self.checks
        return " ".join(check.detail for check in shown)

    def lines(self) -> str:
        """Return the result and every check, one a line."""
        marks = {True: "ok  ", False: "FAIL", None: "?   "}
        return "\n".join(
            [
                f"{self.result}: {self.name}",
                *(f"  {marks[c.passed]} {c.name}: {c.detail}" for c in self.checks),
                *(f"       {line}" for line in gain_lines(self.numbers)),
            ]
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; numbers that are not finite become None."""
        plain = {k: finite(v) if isinstance(v, float) else v for k, v in self.numbers.items()}
        checks = [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in self.checks]
        content = {
            "name": self.name,
            "result": self.result,
            "passed": bool(self.passed),
            "explanation": self.explanation,
            "checks": checks,
            "numbers": plain,
            "thresholds": self.thresholds,
        }
        return json.loads(json.dumps(content, allow_nan=False))

    def require(self) -> Verification:
        """Return itself unless it failed; what cannot be told is marked as not proven, and may be used with care."""
        if self.passed is False:
            raise ExportError(self.name, "an export that is the tuned model", "FAIL", self.explanation)
        return self


def judge_base(bare: Distance, reference: Reference) -> Check:
    """Judge whether the fresh process found the base model that the adapter was trained on.

    Args:
        bare: From the base in memory to the one in the fresh process.
    """
    import torch

    spread = torch.cat([logits.float() for logits in reference.base]).std(-1).mean().item()
    same = bare.rms <= max(LIMITS["same_base"] * spread, LIMITS["base_noise"] * reference.noise.rms)
    detail = f"Without the adapter, its logits are {bare.rms:.2g} from those in memory, which spread by {spread:.2g}"
    return Check("base model", same, f"{detail}{'.' if same else ': the adapter belongs to another base.'}")


def judge_distance(
    tuned: Distance, base: Distance, export_base: Distance, noise: tuple[float, float], lost: float = 0.0
) -> tuple[list[Check], dict[str, float]]:
    """Judge whether an export is close to the tuned model and far from the base.

    Args:
        tuned: From the tuned model in memory to the export.
        base: From the tuned model to its base, both in memory: the adapter's effect.
        export_base: From the base in memory to the export.
        noise: What precision alone does to the logits: (rms, largest).
        lost: Share of the adapter's change that rounding to 16 bit drops in a correct merge, from 0 to 1.

    Returns:
        The checks, and the limits that were used.
    """
    floor, effect = max(noise[0], 1e-12), max(base.rms, 1e-12)
    visible, ratio = base.rms >= LIMITS["visible"] * floor, tuned.rms / effect
    share = math.hypot(LIMITS["close"] * floor / effect, max(lost, 0.0))
    limit = min(max(LIMITS["smallest_ratio"], share), LIMITS["most_ratio"])
    seen = (
        f"The adapter moves the logits by {base.rms:.2g} (root mean square); rounding alone, measured, by "
        f"{noise[0]:.2g}."
    )
    if not visible:
        seen += f" Below {LIMITS['visible']:.0f} times that, adapter and base cannot be told apart: train longer."
    most = limit * effect if visible else LIMITS["close"] * floor + effect
    near = tuned.rms <= most
    apart = f"The export is {tuned.rms:.2g} from the tuned model, {ratio:.1%} of the adapter's effect"
    told = visible or not near
    apart += f"; at most {most / effect:.1%} may be rounding." if told else "; cannot tell whether that is close."
    far = math.isfinite(export_base.rms) and export_base.rms > tuned.rms
    away = (
        f"It is {export_base.rms:.2g} from the base, {'farther' if far else 'not farther'} than from the tuned model."
    )
    checks = [
        Check("effect of the adapter", True if visible else None, seen),
        Check("close to the tuned model", near if told else None, apart),
        Check("far from the base", far if visible else None, away),
    ]
    return checks, {**LIMITS, "largest_ratio": limit}


def judge_answers(
    reference: Reference, answers: Sequence[Sequence[int]], noise_largest: float
) -> tuple[Check, dict[str, int]]:
    """Judge greedy answers: equal, or parting where the tuned model itself had two tokens nearly tied.

    Args:
        answers: The export's answers, as token ids.
        noise_largest: Largest change of a logit by precision alone.
    """
    limit = max(LIMITS["near_tie"] * noise_largest, 1e-3)
    wanted = reference.answers()
    equal = sum(tuple(a) == b for a, b in zip(answers, wanted, strict=True))
    worst = max(
        (_margin(a, b, logits) for a, b, logits in zip(answers, wanted, reference.tuned, strict=True)), default=0.0
    )
    as_base = sum(tuple(a) == b for a, b in zip(reference.base_answers, wanted, strict=True))
    detail = (
        f"{equal} of {len(wanted)} greedy answers are the tuned model's, token for token (the base gives {as_base})."
    )
    if equal < len(wanted):
        detail += f" Where others diverge, the logits are up to {worst:.2g} apart; up to {limit:.2g} is a near tie."
    return Check("greedy answers", worst <= limit, detail), {
        "answers": len(wanted),
        "answers_equal": equal,
        "answers_base_equal": as_base,
    }


def judge_tokenizer(reference: Reference, result: Mapping[str, Any], eos_token_id: int) -> Check:
    """Judge the tokenizer that stands beside the weights.

    Args:
        result: The worker's `template_sha256`, `prompt_ids` and `eos_token_id`.
    """
    if result["template_sha256"] is None:
        return Check("tokenizer", False, "The tokenizer has no chat template.")
    if [tuple(ids) for ids in result["prompt_ids"]] != list(reference.prompt_ids):
        return Check("tokenizer", False, "The tokenizer beside the weights renders the prompts as different tokens.")
    if result["template_sha256"] != reference.template_sha256 or result["eos_token_id"] != eos_token_id:
        return Check("tokenizer", False, "The tokenizer beside the weights has another chat template or another EOS.")
    return Check("tokenizer", True, "The tokenizer beside the weights renders the prompts as the same tokens.")


def _margin(answer: Iterable[int], wanted: Sequence[int], logits: Any) -> float:
    """Return how far apart the two tokens were for the tuned model where the answers part; 0 if they are equal."""
    answer = list(answer)
    for place, token in enumerate(wanted):
        if place >= len(answer):
            return math.inf
        if answer[place] != token:
            return (logits[place][token] - logits[place][answer[place]]).item()
    return math.inf if len(answer) > len(wanted) else 0.0
