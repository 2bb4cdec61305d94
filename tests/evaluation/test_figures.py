"""Pictures: what is drawn, what the captions say, and that any text can be drawn."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from helpers.core.errors import EvaluationError
from helpers.display.style import new_figure, plain_text
from helpers.evaluation.gallery import draw_all, show_picture
from helpers.evaluation.metrics.table import PairedDifferences
from helpers.evaluation.metrics.token_shift import ShiftedToken
from helpers.evaluation.overview import look_over
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, ReferenceScore, RunInfo
from helpers.evaluation.report.figures import draw_categories, draw_differences, draw_ladder, draw_lengths
from helpers.evaluation.report.heatmap import draw_shift, lay_out
from helpers.evaluation.stats.summaries import slices, summarise
from helpers.evaluation.votes.ballots import Vote
from helpers.evaluation.votes.tally import reveal
from helpers.evaluation.votes.votes import KeyItem, VoteKey

VALUES = (-0.3, -0.2, -0.25, 0.1, -0.15, -0.05, 0.0, -0.4)


def differences(values=VALUES, metric="nll"):
    """Return paired differences."""
    names = tuple(f"p{n}" for n in range(len(values)))
    return PairedDifferences(
        metric, "tuned", "base", names, tuple(values), ("x",) * len(values), names, (False,) * len(values)
    )


def summary(values=VALUES, higher_is_better=False):
    """Return their summary."""
    return summarise(list(values), metric="NLL", higher_is_better=higher_is_better, resamples=99)


def example():
    """Return a comparison of four arms on eight rows in two categories."""
    arms = tuple(Arm(n, n.title(), n == "tuned") for n in ("base", "tuned", "base_bare", "base_few_shot"))
    prompts = tuple(Prompt(f"p{n}", f"Q {n}?", "$x$ <b>" if n < 6 else "few", reference="a b c d") for n in range(8))
    shift = {"base": 2.0, "tuned": 1.7, "base_bare": 2.4, "base_few_shot": 1.9}
    references = tuple(
        ReferenceScore(p.id, a.name, 10 * (shift[a.name] + n / 7), 0.1, 10, 40)
        for n, p in enumerate(prompts)
        for a in arms
    )
    answers = tuple(
        Answer(p.id, a.name, "a b c" + " d" * (a.adapter and n % 2), 4, "eos")
        for n, p in enumerate(prompts)
        for a in arms
    )
    return Comparison(RunInfo("t", "b", "a", "", 8, 1, "2026-01-01"), prompts, arms, answers, references)


class TestDrawing:
    """Files of pictures."""

    def test_svg_is_transparent_and_has_no_fonts(self):
        """Letters are shapes, so the picture looks the same inside any page; nothing is painted behind it."""
        svg = draw_differences(differences(), summary()).svg()
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert "<text" not in svg
        assert not re.search(r"fill:\s*#ffffff", svg)

    def test_svg_is_the_same_each_time(self):
        """No date and no random ids."""
        drawing = draw_differences(differences(), summary())
        assert drawing.svg() == drawing.svg()
        assert "<dc:date>" not in drawing.svg()

    def test_png_is_saved_under_its_name(self, tmp_path):
        """The picture shows in a notebook."""
        picture = draw_differences(differences(), summary()).save(tmp_path / "new")
        assert picture.path == tmp_path / "new" / "differences.png"
        assert picture._repr_png_().startswith(b"\x89PNG")

    def test_report_rows_have_all_three_parts(self):
        """Title, caption and SVG text."""
        assert sorted(draw_differences(differences(), summary()).row()) == ["caption", "svg", "title"]

    def test_any_text_can_be_drawn(self):
        """Formulas, line breaks and characters that the font lacks do no harm."""
        assert plain_text("price in $x$\n\u65e5\u672c") == r"price in \$x\$ □□"
        assert plain_text("a long name", 6) == "a lon…"
        figure, axes = new_figure(1.0)
        axes.set_title(plain_text("$\\frac{$"))
        figure.savefig("/dev/null", format="svg")


class TestFigures:
    """What each picture says."""

    def test_differences_count_both_sides(self):
        """Six of eight rows fell, one rose, one stayed; the mean's interval is stated."""
        caption = draw_differences(differences(), summary()).caption
        assert caption.startswith("Each line is one prompt: 6 better (circles), 1 worse (triangles), 1 equal.")
        assert "\u22120.156" in caption
        assert "It does not touch zero" in caption

    def test_undecided_differences_say_so(self):
        """An interval that holds zero gives no verdict."""
        assert (
            "It holds zero: no verdict."
            in draw_differences(differences((-0.1, 0.1, 0.2)), summary((-0.1, 0.1, 0.2))).caption
        )

    def test_one_prompt_has_no_interval(self):
        """The caption says why."""
        caption = draw_differences(differences((0.1,)), summary((0.1,))).caption
        assert "there is no interval: one prompt does not show how much prompts differ." in caption

    def test_neutral_metrics_are_neither_good_nor_bad(self):
        """Words are above or below, not better or worse."""
        caption = draw_differences(differences((3.0, -1.0), "words"), summary((3.0, -1.0), None)).caption
        assert "1 above, 1 below" in caption

    def test_categories_with_few_prompts_show_counts(self):
        """Two prompts get no interval, and the caption warns."""
        found = slices([*VALUES, 0.1, 0.2], ["many"] * 8 + ["few"] * 2, higher_is_better=False, resamples=99)
        drawing = draw_categories(found, differences())
        assert "Clear of zero: many. 1 with fewer than six prompts show counts only." in drawing.caption
        with pytest.raises(EvaluationError, match="at least one category"):
            draw_categories({}, differences())

    @pytest.mark.parametrize(
        ("tuned", "few_shot", "words"),
        [
            (1.5, 1.75, "reach 50 % of what"),
            (1.7, 1.6, "as much as tuning or more"),
            (1.5, 2.1, "gain nothing here"),
            (2.2, 1.9, "tuning gains nothing"),
        ],
    )
    def test_the_ladder_compares_examples_with_the_adapter(self, tuned, few_shot, words):
        """How much of the gain is the prompt's doing is said in percent, where there is a gain."""
        means = {"base": 2.0, "base_few_shot": few_shot, "tuned": tuned}
        others = {name: differences(metric="nll") for name in ("base_few_shot", "tuned")}
        assert words in draw_ladder(means, others, {}).caption
        with pytest.raises(EvaluationError, match="Score more arms"):
            draw_ladder({"tuned": 1.0}, {}, {})

    def test_length_is_held_against_gains(self):
        """Counts of longer and shorter answers that gained."""
        pairs = {"a": (10, 20), "b": (10, 5), "c": (10, 15), "d": (1, 1)}
        drawing = draw_lengths(pairs, {"a": 1.0, "b": -1.0, "c": -1.0}, gain_label="vote", are_votes=True)
        assert "Of 2 longer tuned answers 1 is better, of 1 shorter tuned answers 0 are better." in drawing.caption
        with pytest.raises(EvaluationError, match="Score references, or vote"):
            draw_lengths(pairs, {}, gain_label="vote")

    def test_tokens_break_between_words(self):
        """A token that does not fit goes to the next line without its space; a full stop may stick out."""
        tokens = [ShiftedToken(text, 1, 0.5) for text in ("One", " two", ".", "\n\n", "Three", " fourfive")]
        placed = [(line, column, text) for line, column, text, _ in lay_out(tokens, columns=7)]
        assert placed == [(0, 0, "One"), (0, 4, "two"), (0, 7, "."), (2, 0, "Three"), (3, 0, "fourfiv")]

    @pytest.mark.parametrize("texts", [(), ("$", "\\", "{", "\u65e5", "\U0001f600", "\u202e", "")])
    def test_any_answer_can_be_drawn(self, texts):
        """An empty answer, and one full of signs."""
        assert draw_shift([ShiftedToken(text, 5, 0.1) for text in texts], "$x").svg().startswith("<?xml")

    def test_long_answers_show_their_beginning(self):
        """The caption says so."""
        assert "shows the beginning" in draw_shift([ShiftedToken(" word", 1, 0.5)] * 400, "x").caption


class TestGallery:
    """Which pictures there are."""

    def test_everything_that_has_data_is_drawn(self):
        """Four arms, categories, references and answers give all four."""
        comparison = example()
        pictures = draw_all(comparison, look_over(comparison))
        assert list(pictures) == ["differences", "categories", "ladder", "lengths"]

    def test_votes_take_the_place_of_rouge(self):
        """With votes, length is held against who won."""
        comparison = example()
        key = VoteKey("base", "tuned", {"i": KeyItem("p1", "base", "tuned")})
        pictures = draw_all(comparison, look_over(comparison), votes=reveal([Vote("i", "right", voter="Ann")], key))
        assert "Of 1 longer tuned answers 1 is better" in pictures["lengths"].caption

    def test_what_is_missing_is_said(self, tmp_path):
        """A picture without data is a sentence on what to do."""
        comparison = example()
        pictures = draw_all(comparison, look_over(comparison))
        assert "No answer was ranked." in repr(show_picture(pictures, "token_shift", tmp_path))
        shown = show_picture(pictures, "ladder", tmp_path)
        assert (tmp_path / "ladder.png").is_file()
        assert "data:image/png;base64," in shown._repr_html_()
        assert repr(shown).startswith("How much is the prompt's doing?")
