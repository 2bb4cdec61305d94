"""Per-answer metrics, the table of scores, and paired differences."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from helpers.core.errors import EvaluationError
from helpers.evaluation.metrics.reference import chrf, chrf_signature, rouge_l
from helpers.evaluation.metrics.table import (
    METRICS,
    estimate_difference,
    means_by_arm,
    paired_differences,
    score_table,
    scores_by_answer,
)
from helpers.evaluation.metrics.text import (
    ListItems,
    asked_items,
    count_words,
    echoes_prompt,
    is_empty,
    list_items,
    looks_like_refusal,
    repetition,
    template_leaks,
)
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, ReferenceScore, RunInfo
from helpers.evaluation.show import reference_table

INFO = RunInfo("Demo", "base", "adapter", "", 64, 0, "2025-01-01T00:00:00Z")
ARMS = (Arm("base", "Base", adapter=False), Arm("tuned", "Tuned", adapter=True))
PROMPTS = (
    Prompt("ways", "Give three ways to sell.", "sales", "manual", "Sell online. Sell abroad. Sell more."),
    Prompt("ai", "What is AI good for?", "operations", "manual"),
    Prompt("plan", "Write a plan.", "operations"),
)
ARABIC = "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645"


def compare(texts, prompts=PROMPTS, references=()):
    """Build a comparison from {(prompt, arm): answer}."""
    answers = tuple(Answer(prompt, arm, text, len(text.split()) + 1, "eos") for (prompt, arm), text in texts.items())
    return Comparison(INFO, prompts, ARMS, answers, tuple(references))


@pytest.fixture
def comparison():
    """Three prompts under two arms, one reference scored by both."""
    texts = {
        ("ways", "base"): "Sell online.",
        ("ways", "tuned"): "1. Sell online.\n2. Sell abroad.\n3. Sell more.",
        ("ai", "base"): "",
        ("ai", "tuned"): "It sorts **mail**.",
        ("plan", "base"): "## Plan\n- sell",
        ("plan", "tuned"): "## Plan\n- sell\n- rent",
    }
    return compare(texts, references=[ReferenceScore("ways", arm, 14.0, 2.0, 7, 36) for arm in ("base", "tuned")])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("Two words.", 2),
        ("- state-of-the-art, isn't it?", 3),
        ("\U0001f600 \u2014 **", 0),
        (ARABIC, 2),
    ],
)
def test_words_are_runs_with_a_letter_or_digit(text, words):
    """Bullets, dashes and emoji are no words."""
    assert count_words(text) == words


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1. A\n2) B\n(3) C", ListItems(3, 3)),
        ("- A\n* B\n+ C\n\u2022 D\n\u2013 E", ListItems(5, 5)),
        ("1. A\n   - x\n   - y\n2. B\n   - z", ListItems(5, 2)),
        ("1. A\n- x\n- y\n2. B\n- z", ListItems(5, 2)),
        ("- A\n  - x\n- B", ListItems(3, 2)),
        ("- A\n\t- x\n- B", ListItems(3, 2)),
        ("**1. A**\ntext\n**2. B**\n### 3. C", ListItems(3, 3)),
        ("1. **A**: text\n2. __B__", ListItems(2, 2)),
        ("First, A. Second, B. Third, C.", ListItems(0, 0)),
        ("2024. A year\n3.5 percent\n-5 degrees\n- - -\n***\n1.\n*emphasis* only", ListItems(0, 0)),
        ("```\n- code\n```", ListItems(0, 0)),
        ("- `code`", ListItems(1, 1)),
        ("`1. code`", ListItems(0, 0)),
        ("`- a` and - b\n-`x`- y", ListItems(0, 0)),
        ("  ```python\n- code\n  ```\n- a", ListItems(1, 1)),
        ("~~~\n- code\n```\n- code\n~~~\n- a", ListItems(1, 1)),
        ("```\n- code\n```\n- a\n```\n- code\n```\n- b", ListItems(2, 2)),
        ("```\n- code without an end", ListItems(0, 0)),
        ("- X\n- -", ListItems(1, 1)),
        ("    - deep\n    - deep", ListItems(2, 2)),
        ("", ListItems(0, 0)),
    ],
)
def test_list_items_are_lines_with_a_marker(text, items):
    """All are counted, and those of the outermost level answer "give me N"."""
    assert list_items(text) == items


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("Give me three ways to use AI.", 3),
        ("5 ideas for a bakery", 5),
        ("Write a list of four companies in Berlin.", 4),
        ("What are the top 10 risks?", 10),
        ("Rank the top three.", 3),
        ("List five innovative, low-cost ideas.", 5),
        ("Name three of the most important benefits.", 3),
        ("Write a five-step plan.", 5),
        ("Summarise it in 5 bullet points.", 5),
        ("In two sentences, suggest THREE use cases.", 3),
        ("A company of 50 people needs 4 ideas.", 4),
        ("List three ways. For each of the three ways, be brief.", 3),
        ("Identify two potential applications of computer vision.", 2),
        ("Explain it in two sentences.", None),
        ("Describe it in three words.", None),
        ("What happened in 2024?", None),
        ("List the 2024 ideas.", None),
        ("Name the top 10% of firms.", None),
        ("List 3-5 ideas.", None),
        ("List three to five ideas.", None),
        ("Give at least three examples.", None),
        ("Name three benefits and two risks.", None),
        ("I have 12 employees and 3 machines.", None),
        ("Write an idea for the next 10 years.", None),
        ("Give one idea.", None),
        ("Write 1,000 ideas.", None),
        ("Name the top 500 companies.", None),
        ("Name the top 100 companies.", 100),
        ("Name the top 101 companies.", None),
        ("-3 ideas", None),
        ("Give approximately three ideas.", None),
        ("Give me three ideas. Three Ideas!", 3),
        ("Rank the top three, and again the top three.", 3),
        ("", None),
    ],
)
def test_asked_items_finds_a_single_count_of_items(prompt, asked):
    """Units, years, shares, ranges and two different counts are not one count of items."""
    assert asked_items(prompt) == asked


def test_repetition_is_one_minus_the_unique_share_of_4_grams():
    """Eight words hold five 4-grams; if the first four come twice, four are unique."""
    assert repetition("a b c d A B C D") == pytest.approx(0.2)
    assert (repetition("a b c d e"), repetition("a b c"), repetition("")) == (0.0, 0.0, 0.0)
    assert repetition("go " * 100) == pytest.approx(1 - 1 / 97)


@pytest.mark.parametrize(
    ("text", "prompt", "echo"),
    [
        ("What is AI? It is maths.", "what  is\nAI?", True),
        ("You ask: What is AI? Well.", "What is AI?", True),
        ("AI is maths.", "What is AI?", False),
        ("Somewhat is AI? no", "What is AI?", False),
        ("Yes, AI.", "AI?", False),
        ("a b c d e f g h i j k l and so on", "a b c d e f g h i j k l m n", True),
        ("", "What is AI?", False),
    ],
)
def test_prompt_echo_is_the_whole_prompt_or_its_beginning(text, prompt, echo):
    """Case and spaces do not matter."""
    assert echoes_prompt(text, prompt) is echo


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("Sure.</s> [INST] More? [/INST]", ("</s>", "[INST]", "[/INST]")),
        ("Hi<|im_end|>\n<|im_start|>user", ("<|im_end|>", "<|im_start|>")),
        ("Done.\n### Instruction:\nNext", ("### Instruction:",)),
        ("Below is an instruction that describes a task.", ("Below is an instruction that describes a task",)),
        ("<<SYS>> x <</SYS>>", ("<<SYS>>", "<</SYS>>")),
        ("### Responses\na < b | c > d [institute] <strong>", ()),
    ],
)
def test_template_leaks_are_control_tokens_and_headers(text, leaks):
    """Ordinary headings, brackets and tags are none."""
    assert template_leaks(text) == leaks


@pytest.mark.parametrize(
    ("text", "empty"), [("", True), (" \n\t\u200b\ufeff", True), (".", False), ("\U0001f600", False)]
)
def test_an_answer_of_invisible_characters_is_empty(text, empty):
    """An emoji is not."""
    assert is_empty(text) is empty


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I'm sorry, but I can\u2019t help with that.", True),
        ("As an AI language model, I have no opinion.", True),
        ("I am unable to answer.", True),
        ("I won\u2019t say.", True),
        ("I won't say.", True),
        ("x" * 190 + " I refuse", True),
        ("x" * 191 + " I refuse", True),
        ("x" * 192 + " I refuse", False),
        ("Machines cannot do it all.", False),
        ("Sell online. " * 30 + "I cannot say more.", False),
        ("", False),
    ],
)
def test_refusal_is_a_phrase_in_the_opening(text, refusal):
    """Later on it is an aside."""
    assert looks_like_refusal(text) is refusal


def test_rouge_l_is_the_published_example():
    """The example in rouge-score's README has 5 of 8 and 5 of 9 words in common: F1 = 10 / 17."""
    score = rouge_l("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.")
    assert score == pytest.approx(10 / 17)


def test_rouge_is_stemmed_and_ignores_case():
    """Selling and SELL are one word."""
    assert rouge_l("Selling machines", "SELL machine") == 1.0


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (ARABIC, ARABIC),
        ("\u516c\u53f8\u6210\u7acb\u4e8e1990\u5e74\u3002", "\u5979\u51fa\u751f\u4e8e1990\u5e74\u3002"),
        ("\u041e\u0442\u0432\u0435\u0442: 42 GB", "42 GB"),
        ("...", "..."),
    ],
    ids=["arabic", "chinese-with-a-year", "russian-with-a-unit", "dots"],
)
def test_rouge_has_no_value_for_a_reference_it_can_hardly_read(reference, text):
    """Two Chinese sentences that share only "1990" are not the same; None is not 0 either."""
    assert rouge_l(reference, text) is None


def test_rouge_reads_latin_letters_with_accents_among_others():
    """French counts, and an empty answer scores 0."""
    assert rouge_l("L'\u00e9t\u00e9 est beau.", "L'\u00e9t\u00e9 est beau.") == 1.0
    assert rouge_l("Sell", "") == 0.0


def test_chrf_runs_from_0_to_100_in_any_script():
    """The same text scores 100, an empty one 0, and a blank reference cannot be scored."""
    assert (chrf(ARABIC, ARABIC), chrf("Sell it", ""), chrf(" ", "Sell it")) == (pytest.approx(100), 0.0, None)


def test_chrf_is_the_plus_plus_variant_and_says_so():
    """Word 1- and 2-grams are counted; sacrebleu's signature names the settings."""
    assert chrf("a b d", "a b c") == pytest.approx(46.6667, abs=1e-3)
    assert chrf_signature().startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:")


def references(*scores):
    """Return reference scores of the base: NLL, NLL of EOS, tokens and bytes each."""
    return [ReferenceScore(f"p{place}", "base", *each) for place, each in enumerate(scores)]


def test_perplexity_weighs_tokens_not_prompts():
    """12 nats over 4 tokens and 2 EOS are exp(2); 8 nats without the EOS are 2 a token and 1 / ln 2 bits a byte."""
    (row,) = reference_table(references((6.0, 2.0, 1, 2), (2.0, 2.0, 3, 6)), ARMS)
    assert row == {
        "arm": "Base",
        "good answers": 2,
        "NLL with EOS, nats/token": 2.0,
        "NLL of the words": 2.0,
        "perplexity": pytest.approx(7.38905609893065),
        "bits per byte": pytest.approx(1.4426950408889634),
    }


def test_a_model_that_guesses_bytes_needs_eight_bits():
    """One token a byte, each with probability 1 / 256."""
    (row,) = reference_table(references((10 * math.log(256), 0.0, 10, 10)), ARMS)
    assert row["bits per byte"] == pytest.approx(8.0)


def test_a_reference_of_zero_tokens_has_only_its_eos():
    """Its words have no NLL a token, and no bytes."""
    (row,) = reference_table(references((0.0, 1.0, 0, 0)), ARMS)
    assert (row["NLL of the words"], row["bits per byte"]) == (None, None)
    assert row["perplexity"] == pytest.approx(math.e)


def test_the_table_has_a_row_for_each_prompt_arm_and_measure(comparison):
    """What reports name is measured, and nothing else."""
    table = score_table(comparison)
    assert list(table.columns) == ["prompt_id", "category", "source", "arm", "metric", "value"]
    assert list(dict.fromkeys(zip(table["prompt_id"], table["arm"], strict=True))) == [
        *(("ways", "base"), ("ways", "tuned"), ("ai", "base"), ("ai", "tuned"), ("plan", "base"), ("plan", "tuned"))
    ]
    raw = {"asked_items", "reference_nll", "reference_eos_nll", "reference_tokens", "reference_bytes"}
    assert set(table["metric"]) == (set(METRICS) | raw) - {"other_task_nll"}


def test_the_scores_of_an_answer_are_literal_values(comparison):
    """The tuned answer to "three ways" is a list of three that matches its reference."""
    assert scores_by_answer(score_table(comparison))["ways", "tuned"] == {
        "asked_items": 3,
        "tokens": 10,
        "truncated": 0,
        "empty": 0,
        "words": 9,
        "list_items": 3,
        "items_met": 1,
        "rep_4": 0.0,
        "prompt_echo": 0,
        "template_leak": 0,
        "refusal": 0,
        "rouge_l": pytest.approx(0.8),
        "chrf": pytest.approx(85.348, abs=1e-3),
        "nll": 2.0,
        "nll_with_eos": 2.0,
        "bits_per_byte": pytest.approx(14 / math.log(2) / 36),
        "reference_nll": 14.0,
        "reference_eos_nll": 2.0,
        "reference_tokens": 7,
        "reference_bytes": 36,
    }


def test_what_does_not_apply_has_no_row(comparison):
    """A prompt without a reference, without a count and with an empty answer."""
    scores = scores_by_answer(score_table(comparison))["ai", "base"]
    assert {"items_met", "rouge_l", "chrf", "nll"} & set(scores) == set()
    assert (scores["empty"], scores["words"], scores["rep_4"]) == (1, 0, 0.0)


def test_expected_items_override_what_the_prompt_seems_to_ask():
    """A person knows better."""
    prompts = (Prompt("ways", "Give three ways to sell.", expected_items=1),)
    table = score_table(compare({("ways", arm): "- Sell" for arm in ("base", "tuned")}, prompts))
    assert table[table["metric"] == "items_met"]["value"].tolist() == [1.0, 1.0]


def test_references_may_be_scored_for_prompts_that_nobody_answered():
    """Their rows hold the reference's figures and nothing else."""
    prompts = (*PROMPTS, Prompt("held", "Say it.", reference="It."))
    scores = [ReferenceScore("held", arm, 3.0, 1.0, 3, 3) for arm in ("base", "tuned")]
    table = score_table(compare({("ai", arm): "Mail." for arm in ("base", "tuned")}, prompts, scores))
    found = scores_by_answer(table)["held", "tuned"]
    assert (found["nll"], found["nll_with_eos"], "words" in found) == (1.0, 1.0, False)


def test_rows_of_the_other_task_have_a_measure_of_their_own():
    """They count neither among the references nor among the prompts."""
    other = tuple(ReferenceScore("other-001", arm.name, 7.0, 1.0, 3, 9) for arm in ARMS)
    table = score_table(Comparison(INFO, PROMPTS, ARMS, (), (), other))
    assert table[["prompt_id", "arm", "metric", "value"]].to_numpy().tolist() == [
        ["other-001", "base", "other_task_nll", 2.0],
        ["other-001", "tuned", "other_task_nll", 2.0],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Sell more. " * 1819,
        "*" * 20_000,
        "1. " * 6667,
        ARABIC + " \U0001f469\u200d\U0001f33e \u202e",
        "`" * 20_000,
        "\x00",
    ],
    ids=["prose", "stars", "numbers", "right-to-left", "ticks", "nul"],
)
def test_odd_answers_are_scored(text):
    """20,000 characters, markup without end, emoji and right-to-left text all get every measure."""
    scores = scores_by_answer(score_table(compare({("ways", arm): text for arm in ("base", "tuned")})))["ways", "base"]
    assert set(METRICS) - set(scores) == {"nll", "nll_with_eos", "bits_per_byte", "other_task_nll"}


def test_means_are_taken_by_arm(comparison):
    """Over the prompts that have the measure."""
    means = means_by_arm(score_table(comparison))
    assert means.loc["words"].to_dict() == {"base": pytest.approx(4 / 3), "tuned": 5.0}
    assert means.loc["nll"].to_dict() == {"base": 2.0, "tuned": 2.0}


def test_paired_differences_subtract_the_base(comparison):
    """Prompts keep their order, a shared source its name, and a prompt without one stands alone."""
    found = paired_differences(score_table(comparison), "words", "tuned", "base")
    assert found["difference"].to_dict() == {"ways": 7.0, "ai": 3.0, "plan": 1.0}
    assert found["category"].tolist() == ["sales", "operations", "operations"]
    assert found["cluster"].tolist() == ["source: manual", "source: manual", "prompt: plan"]
    assert found[["words_a", "words_b"]].to_numpy().tolist() == [[9, 2], [3, 0], [3, 2]]
    assert estimate_difference(found).sources == 2


def test_only_prompts_with_the_measure_in_both_arms_are_paired(comparison):
    """Only one prompt asks for a number of items; an unknown measure has no pairs, and no estimate."""
    table = score_table(comparison)
    assert paired_differences(table, "items_met", "tuned", "base")["difference"].to_dict() == {"ways": 1.0}
    none = paired_differences(table, "bleu", "tuned", "base")
    assert (len(none), estimate_difference(none)) == (0, None)


def test_a_pair_with_one_cut_answer_is_cut(comparison):
    """Rows that nobody answered are not cut."""
    answers = [*comparison.answers]
    answers[2] = Answer("ai", "base", "It", 64, "length")
    table = score_table(Comparison(INFO, PROMPTS, ARMS, tuple(answers)))
    assert paired_differences(table, "words", "tuned", "base")["cut"].tolist() == [False, True, False]
    scored = Comparison(INFO, PROMPTS, ARMS, (), comparison.references)
    assert paired_differences(score_table(scored), "nll", "tuned", "base")["cut"].tolist() == [False]


def test_a_loss_that_is_no_number_is_refused_by_name(comparison):
    """Of a model whose logits overflowed."""
    scores = tuple(ReferenceScore("ways", arm, math.nan, 0, 1, 1) for arm in ("base", "tuned"))
    with pytest.raises(EvaluationError) as caught:
        score_table(replace(comparison, references=scores))
    assert caught.value.field == "references['ways', 'base'].nll"


def test_importing_the_modules_loads_no_heavy_library():
    """Libraries for numbers and metrics are imported when first needed."""
    code = (
        "import sys, importlib; "
        "names = 'metrics.reference metrics.table metrics.text stats.verdicts stats.votes overview files'.split(); "
        "[importlib.import_module('helpers.evaluation.' + name) for name in names]; "
        "print({'numpy', 'scipy', 'pandas', 'nltk', 'sacrebleu', 'rouge_score', 'torch'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "set()"
