"""Per-answer metrics, the table of scores, and paired differences."""

import math
import subprocess
import sys

import pytest

from helpers.core.errors import EvaluationError
from helpers.evaluation.metrics.asked import asked_items, gives_items
from helpers.evaluation.metrics.catalogue import COLUMNS, METRICS
from helpers.evaluation.metrics.reference import chrf, chrf_signature, reference_metrics, rouge, sentence_lines
from helpers.evaluation.metrics.structure import (
    ListItems,
    count_bold,
    count_headings,
    count_words,
    echoes_prompt,
    is_empty,
    list_items,
    looks_like_refusal,
    repetition,
    template_leaks,
)
from helpers.evaluation.metrics.table import paired, score_table
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, ReferenceScore, RunInfo
from helpers.evaluation.stats.summaries import summarise

INFO = RunInfo("Demo", "base", "adapter", "", 64, 0, "2025-01-01T00:00:00Z")
ARMS = (Arm("base", "Base", adapter=False), Arm("tuned", "Tuned", adapter=True))
PROMPTS = (
    Prompt("ways", "Give three ways to sell.", "sales", "manual", "Sell online. Sell abroad. Sell more."),
    Prompt("ai", "What is AI good for?", "operations", "manual"),
    Prompt("plan", "Write a plan.", "operations"),
)
ARABIC = "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645"


def compare(texts, prompts=PROMPTS, references=(), finish="eos"):
    """Build a comparison from {(prompt, arm): answer}."""
    answers = tuple(Answer(prompt, arm, text, len(text.split()) + 1, finish) for (prompt, arm), text in texts.items())
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
    ("text", "headings"),
    [
        ("# A\n###### B\n   ## C", 3),
        ("#hashtag\n####### seven\n    # code\na # b", 0),
        ("```python\n# comment\n```\n# Heading", 1),
        ("```\n# never closed", 0),
        ("**Bold line**", 0),
    ],
)
def test_headings_are_lines_with_hashes(text, headings):
    """Comments in code are none."""
    assert count_headings(text) == headings


@pytest.mark.parametrize(
    ("text", "bold"),
    [
        ("**a** and __b c__", 2),
        ("2 ** 3 ** 4", 0),
        ("`**code**`", 0),
        ("**not\nclosed**", 0),
        ("snake__case__name", 0),
        ("****", 0),
    ],
)
def test_bold_spans_stay_within_a_line(text, bold):
    """Powers, code and names with underscores are none."""
    assert count_bold(text) == bold


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1. A\n2) B\n(3) C", ListItems(3, 0, 0, 3)),
        ("- A\n* B\n+ C\n\u2022 D\n\u2013 E", ListItems(0, 5, 0, 5)),
        ("1. A\n   - x\n   - y\n2. B\n   - z", ListItems(2, 3, 3, 2)),
        ("1. A\n- x\n- y\n2. B\n- z", ListItems(2, 3, 0, 2)),
        ("- A\n  - x\n- B", ListItems(0, 3, 1, 2)),
        ("- A\n\t- x\n- B", ListItems(0, 3, 1, 2)),
        ("**1. A**\ntext\n**2. B**\n### 3. C", ListItems(3, 0, 0, 3)),
        ("1. **A**: text\n2. __B__", ListItems(2, 0, 0, 2)),
        ("First, A. Second, B. Third, C.", ListItems(0, 0, 0, 0)),
        ("2024. A year\n3.5 percent\n-5 degrees\n- - -\n***\n1.\n*emphasis* only", ListItems(0, 0, 0, 0)),
        ("```\n- code\n```", ListItems(0, 0, 0, 0)),
        ("- `code`", ListItems(0, 1, 0, 1)),
        ("", ListItems(0, 0, 0, 0)),
    ],
)
def test_list_items_are_lines_with_a_marker(text, items):
    """Numbered, bulleted and nested are told apart."""
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
        ("", None),
    ],
)
def test_asked_items_finds_a_single_count_of_items(prompt, asked):
    """Units, years, shares, ranges and two different counts are not one count of items."""
    assert asked_items(prompt) == asked


def test_an_answer_gives_the_items_only_if_exactly_as_many():
    """Sub-items do not count; nothing asked for is neither met nor missed."""
    answer = "1. A\n   - x\n2. B"
    assert (gives_items(answer, 2), gives_items(answer, 3), gives_items(answer, None)) == (True, False, None)


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
    scores = rouge("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.")
    assert scores == pytest.approx((10 / 17, 10 / 17))


def test_rouge_is_stemmed_and_ignores_case():
    """Selling and SELL are one word."""
    assert rouge("Selling machines", "SELL machine") == (1.0, 1.0)


def test_rouge_lsum_does_not_mind_the_order_of_sentences():
    """Two swapped sentences share all their words by sentence, but only half in sequence."""
    assert rouge("Sell it now. Rent them out.", "Rent them out. Sell it now.") == (0.5, 1.0)


def test_rouge_cannot_score_a_reference_without_latin_letters():
    """None is not 0."""
    assert rouge(ARABIC, ARABIC) is None
    assert rouge("Sell", "") == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("1. Sell it. Why not?", "1. Sell it.\nWhy not?"),
        ('He said "no." Then left!  Yes', 'He said "no."\nThen left!\nYes'),
        ("A\n\n  B  \r\nC", "A\nB\nC"),
        ("\u597d\u3002\u4e0d\u597d\u3002", "\u597d\u3002\n\u4e0d\u597d\u3002"),
        ("Version 3.5 works.", "Version 3.5 works."),
        ("", ""),
    ],
)
def test_sentences_get_their_own_lines(text, lines):
    """The numbers of a list stay with their items."""
    assert sentence_lines(text) == lines


def test_chrf_runs_from_0_to_100_in_any_script():
    """The same text scores 100, an empty one 0, and a blank reference cannot be scored."""
    assert (chrf(ARABIC, ARABIC), chrf("Sell it", ""), chrf(" ", "Sell it")) == (pytest.approx(100), 0.0, None)


def test_chrf_is_the_plus_plus_variant_and_says_so():
    """Word 1- and 2-grams are counted; sacrebleu's signature names the settings."""
    assert chrf("a b d", "a b c") == pytest.approx(46.6667, abs=1e-3)
    assert chrf_signature().startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:")


def test_perplexity_weighs_tokens_not_prompts():
    """8 nats over 4 tokens are exp(2), with 2 EOS of 2 nats each exp(12 / 6); 8 nats over 8 bytes are 1 / ln 2 bits."""
    scores = [ReferenceScore("p1", "base", 6.0, 2.0, 1, 2), ReferenceScore("p2", "base", 2.0, 2.0, 3, 6)]
    found = reference_metrics(scores)
    assert (found.arm, found.prompts, found.tokens) == ("base", 2, 4)
    assert found.perplexity() == pytest.approx(7.38905609893065)
    assert found.perplexity_with_eos() == pytest.approx(7.38905609893065)
    assert found.bits_per_byte() == pytest.approx(1.4426950408889634)


def test_a_model_that_guesses_bytes_needs_eight_bits():
    """One token a byte, each with probability 1 / 256."""
    found = reference_metrics([ReferenceScore("p1", "base", 10 * math.log(256), 0.0, 10, 10)])
    assert found.bits_per_byte() == pytest.approx(8.0)
    assert found.perplexity() == pytest.approx(256.0)


def test_a_reference_of_zero_tokens_has_only_its_eos():
    """Perplexity without EOS is undefined, with it exp(NLL of the EOS)."""
    found = reference_metrics([ReferenceScore("p1", "base", 0.0, 1.0, 0, 0)])
    assert (found.perplexity(), found.bits_per_byte()) == (None, None)
    assert found.perplexity_with_eos() == pytest.approx(math.e)


def test_a_hopeless_model_has_infinite_perplexity():
    """The exponential does not overflow."""
    assert reference_metrics([ReferenceScore("p1", "base", 9000.0, 1.0, 1, 4)]).perplexity() == math.inf


def test_the_table_has_a_row_for_each_prompt_and_arm(comparison):
    """Keys come in one order, and every metric is one of them."""
    table = score_table(comparison)
    assert [(row["prompt_id"], row["arm"]) for row in table] == [
        *(("ways", "base"), ("ways", "tuned"), ("ai", "base"), ("ai", "tuned"), ("plan", "base"), ("plan", "tuned"))
    ]
    assert {tuple(row) for row in table} == {COLUMNS}
    assert set(METRICS) < set(COLUMNS)


def test_a_row_of_the_table_holds_literal_values(comparison):
    """The tuned answer to "three ways" is a list of three that matches its reference."""
    assert score_table(comparison)[1] == {
        "prompt_id": "ways",
        "category": "sales",
        "source": "manual",
        "arm": "tuned",
        "finish_reason": "eos",
        "asked_items": 3,
        "tokens": 10,
        "truncated": 0,
        "empty": 0,
        "words": 9,
        "headings": 0,
        "bold": 0,
        "list_items": 3,
        "numbered_items": 3,
        "bulleted_items": 0,
        "nested_items": 0,
        "items_met": 1,
        "rep_4": 0.0,
        "prompt_echo": 0,
        "template_leak": 0,
        "refusal": 0,
        "rouge_l": pytest.approx(0.8),
        "rouge_lsum": pytest.approx(0.8),
        "chrf": pytest.approx(85.348, abs=1e-3),
        "nll": 2.0,
        "nll_with_eos": 2.0,
        "bits_per_byte": pytest.approx(14 / math.log(2) / 36),
    }


def test_what_does_not_apply_is_none(comparison):
    """A prompt without a reference, without a count and with an empty answer has a row all the same."""
    row = score_table(comparison)[2]
    assert (row["items_met"], row["rouge_l"], row["chrf"], row["nll"]) == (None, None, None, None)
    assert (row["empty"], row["words"], row["rep_4"]) == (1, 0, 0.0)


def test_expected_items_override_what_the_prompt_seems_to_ask(comparison):
    """A person knows better."""
    prompts = (Prompt("ways", "Give three ways to sell.", expected_items=1),)
    table = score_table(compare({("ways", arm): "- Sell" for arm in ("base", "tuned")}, prompts))
    assert [(row["asked_items"], row["items_met"]) for row in table] == [(1, 1), (1, 1)]


def test_references_may_be_scored_for_prompts_that_nobody_answered():
    """Their rows hold the reference's figures and nothing else."""
    prompts = (*PROMPTS, Prompt("held", "Say it.", reference="It."))
    scores = [ReferenceScore("held", arm, 3.0, 1.0, 3, 3) for arm in ("base", "tuned")]
    row = score_table(compare({("ai", arm): "Mail." for arm in ("base", "tuned")}, prompts, scores))[-1]
    assert (row["prompt_id"], row["nll"], row["words"], row["finish_reason"]) == ("held", 1.0, None, None)


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
    """20,000 characters, markup without end, emoji and right-to-left text all get a full row."""
    row = score_table(compare({("ways", arm): text for arm in ("base", "tuned")}))[0]
    assert all(row[name] is not None for name in METRICS if name not in ("nll", "nll_with_eos", "bits_per_byte"))


def test_paired_subtracts_base_from_tuned(comparison):
    """Prompts keep their order, a shared source its name, and a prompt without one stands alone."""
    found = paired(comparison, "words")
    assert (found.prompt_ids, found.differences) == (("ways", "ai", "plan"), (7.0, 3.0, 1.0))
    assert found.categories == ("sales", "operations", "operations")
    assert found.clusters == ("source:manual", "source:manual", "prompt:plan")
    assert paired(comparison, "words", a="base", b="tuned").differences == (-7.0, -3.0, -1.0)


def test_paired_takes_only_prompts_that_have_the_metric(comparison):
    """Only one prompt asks for a number of items."""
    found = paired(comparison, "items_met", table=score_table(comparison))
    assert (found.prompt_ids, found.differences) == (("ways",), (1.0,))


def test_pairs_with_a_truncated_answer_can_be_left_out(comparison):
    """One cut answer is enough."""
    answers = [*comparison.answers]
    answers[2] = Answer("ai", "base", "It", 64, "length")
    found = paired(Comparison(INFO, PROMPTS, ARMS, tuple(answers)), "words")
    assert found.truncated == (False, True, False)
    assert found.without_truncated().prompt_ids == ("ways", "plan")
    assert found.keep([False] * 3).differences == ()


def test_paired_differences_go_straight_into_a_summary(comparison):
    """Two prompts share a source, so three prompts are two observations."""
    found = paired(comparison, "words")
    assert summarise(found.differences, found.clusters).clusters == 2


def test_one_prompt_is_a_comparison():
    """Its difference is a list of one."""
    texts = {("ai", "base"): "Mail.", ("ai", "tuned"): "Sorting mail."}
    assert paired(compare(texts, PROMPTS[1:2]), "words").differences == (1.0,)


GOOD = {("ai", "base"): "Mail.", ("ai", "tuned"): "Mail."}


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: score_table(compare({}, ())), "prompts"),
        (lambda: score_table(compare(GOOD, (*PROMPTS, PROMPTS[0]))), "prompts"),
        (lambda: score_table(Comparison(INFO, PROMPTS, (), ())), "arms"),
        (lambda: score_table(Comparison(INFO, PROMPTS, (*ARMS, ARMS[0]), ())), "arms"),
        (lambda: score_table(compare(GOOD | {("other", "base"): ""})), "answers"),
        (lambda: score_table(compare(GOOD | {("ai", "third"): ""})), "answers"),
        (lambda: score_table(compare({("ai", "base"): ""})), "answers['ai']"),
        (lambda: score_table(Comparison(INFO, PROMPTS, ARMS, compare(GOOD).answers * 2)), "answers"),
        (lambda: score_table(compare(GOOD, finish="eot")), "answers['ai', 'base'].finish_reason"),
        (
            lambda: score_table(
                compare(GOOD, references=[ReferenceScore("ai", arm, math.nan, 0, 1, 1) for arm in ("base", "tuned")])
            ),
            "references['ai', 'base'].nll",
        ),
        (lambda: paired(compare(GOOD), "bleu"), "metric"),
        (lambda: paired(compare(GOOD), "rouge_l"), "metric"),
        (lambda: paired(compare(GOOD), "words", a="third"), "a"),
        (lambda: paired(compare(GOOD), "words").keep([True, False]), "wanted"),
        (lambda: reference_metrics([]), "references"),
        (lambda: reference_metrics([ReferenceScore("p", arm, 1, 1, 1, 1) for arm in "ab"]), "references"),
        (lambda: reference_metrics([ReferenceScore("p", "a", 1, 1, 1, 1)] * 2), "references['p']"),
        (lambda: reference_metrics([ReferenceScore("p", "a", 1, 1, -1, 1)]), "references['p', 'a'].tokens"),
    ],
)
def test_bad_comparisons_are_refused_by_name(call, field):
    """Each is an EvaluationError that names what is wrong."""
    with pytest.raises(EvaluationError) as caught:
        call()
    assert caught.value.field == field


def test_importing_the_modules_loads_no_heavy_library():
    """numpy, scipy, nltk, sacrebleu and rouge-score are imported when first needed."""
    modules = (
        "metrics.asked metrics.catalogue metrics.reference metrics.structure metrics.table stats.agreement "
        "stats.intervals stats.preferences stats.resampling stats.summaries stats.tests stats"
    )
    code = (
        f"import sys, importlib; names = '{modules}.verdicts'.split(); "
        "[importlib.import_module('helpers.evaluation.' + name) for name in names]; "
        "print({'numpy', 'scipy', 'nltk', 'sacrebleu', 'rouge_score', 'torch'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "set()"
