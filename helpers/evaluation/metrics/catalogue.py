"""The columns of the table of scores, and what each of them means."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COLUMNS", "FINISH_REASONS", "METRICS", "Metric"]

FINISH_REASONS = ("eos", "stop", "length")


@dataclass(frozen=True)
class Metric:
    """What a column of the table means.

    Args:
        label: What reports call it.
        definition: One sentence.
        higher_is_better: True, False, or None for what is neither good nor bad in itself.
        unit: The unit of the value, "" for none; "yes/no" is 1 or 0.
    """

    label: str
    definition: str
    higher_is_better: bool | None = None
    unit: str = ""


METRICS: dict[str, Metric] = {
    "tokens": Metric("Tokens", "Tokens generated, the closing EOS included.", None, "tokens"),
    "truncated": Metric("Cut at the limit", "Ended at the length limit (finish reason length).", None, "yes/no"),
    "empty": Metric("Empty answers", "Shows nothing but white space and invisible characters.", False, "yes/no"),
    "words": Metric("Words", "Runs between white space with a letter or digit.", None, "words"),
    "headings": Metric("Headings", "Lines that begin with one to six # and a space.", None, "headings"),
    "bold": Metric("Bold", "Spans in ** or __.", None, "spans"),
    "list_items": Metric("List items", "Numbered and bulleted lines.", None, "items"),
    "numbered_items": Metric("Numbered items", "Lines that begin with a number.", None, "items"),
    "bulleted_items": Metric("Bulleted items", "Lines that begin with a bullet.", None, "items"),
    "nested_items": Metric("Nested items", "Items indented against the outermost one.", None, "items"),
    "items_met": Metric("Asked-for items met", "As many main list items as the prompt asks for.", True, "yes/no"),
    "rep_4": Metric("Repeated 4-grams", "1 - unique / total 4-grams of words.", False, "share"),
    "prompt_echo": Metric("Prompt echo", "Repeats the prompt, or begins with its first 12 words.", False, "yes/no"),
    "template_leak": Metric("Template leak", "Holds control tokens or headers of a template.", False, "yes/no"),
    "refusal": Metric("Refusal (heuristic)", "Opens with a phrase that refusals use.", None, "yes/no"),
    "rouge_l": Metric("ROUGE-L", "F1 of the longest common subsequence with the reference, stemmed.", True, "share"),
    "rouge_lsum": Metric("ROUGE-Lsum", "ROUGE-L by sentence, united over the answer.", True, "share"),
    "chrf": Metric("chrF++", "F2 of character 1- to 6-grams and word 1- and 2-grams.", True, "0-100"),
    "nll": Metric("NLL of the reference", "Mean -log p of its tokens, EOS left out.", False, "nats/token"),
    "nll_with_eos": Metric("NLL with EOS", "Mean -log p of its tokens and the EOS.", False, "nats/token"),
    "bits_per_byte": Metric("Bits per byte", "-log2 p of the reference over its UTF-8 bytes.", False, "bits/byte"),
}

COLUMNS = ("prompt_id", "category", "source", "arm", "finish_reason", "asked_items", *METRICS)
