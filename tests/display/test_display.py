"""What notebooks show: nothing unescaped, always a plain text, and real pictures."""

from __future__ import annotations

import pytest
from characters import character_tokenizer
from chats import chats_of, tokens_of

from helpers.data.prompts import build_example
from helpers.display.tables import (
    Picture,
    plot_categories,
    plot_lengths,
    plot_losses,
    show_mask,
    show_table,
)

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too'"
METRICS = {"train_loss": [[1, 2.5], [2, 2.0], [3, 1.75]], "eval_loss": [[0, 2.4], [3, 1.9]]}


def example(text="Hi", answer="Yo"):
    """Return one training example."""
    return build_example({"instruction": text, "output": answer}, "alpaca", system_prompt="Be.")


def row(tokenizer, text="Hi", answer="Yo"):
    """Return its tokens and their mask."""
    return tokens_of(chats_of([example(text, answer)]), tokenizer)[0]


class TestTables:
    """Rows as a table."""

    def test_html_is_escaped(self):
        """Names and values that look like HTML are shown, not run."""
        for shown in (show_table([{HOSTILE: HOSTILE}]), show_table({HOSTILE: HOSTILE})):
            html = shown._repr_html_()
            assert "<script" not in html
            assert html.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quoted&quot; &#x27;too&#x27;") == 2

    def test_a_mapping_is_two_columns(self):
        """One mapping shows as names and values."""
        assert repr(show_table({"rows": 5, "median": 3.14159, "tokens": 12345})) == (
            "rows    5\nmedian  3.142\ntokens  12,345"
        )

    def test_rows_have_a_head(self):
        """Rows show under the names of their columns, and a missing value is empty."""
        assert repr(show_table([{"a": 1, "b": "x"}, {"a": 22}])) == "a   b\n1   x\n22"

    def test_plain_text_keeps_one_line_a_row(self):
        """In plain text a cell shows its first line."""
        assert repr(show_table([{"a": "one\ntwo", "b": "x"}])) == "a    b\none  x"

    def test_html_keeps_all_lines(self):
        """In a notebook a cell shows whole."""
        assert "one\ntwo" in show_table([{"a": "one\ntwo"}])._repr_html_()

    @pytest.mark.parametrize("hidden", ["\x00", "\x1b[31m", "\u202e", "\x9b", "\ud800"])
    def test_what_a_page_or_a_terminal_would_obey_is_written_out(self, hidden):
        """NUL, escape sequences and reversed text stay text, in cells, names and columns, on the page and in a log."""
        for shown in (show_table([{f"a{hidden}": f"b{hidden}c"}]), show_table({f"a{hidden}": f"b{hidden}c"})):
            assert hidden[0] not in f"{shown._repr_html_()}{shown!r}"
            assert f"b[U+{ord(hidden[0]):04X}]" in repr(shown)

    def test_long_cells_are_cut(self):
        """A cell has at most `limit` characters, the last an ellipsis."""
        html = show_table([{"a": "x" * 50}], limit=10)._repr_html_()
        assert "x" * 9 + "…" in html
        assert "x" * 10 not in html

    @pytest.mark.parametrize("rows", [[], {}])
    def test_nothing_is_said_to_be_empty(self, rows):
        """An empty table is no error."""
        assert repr(show_table(rows)) == "(empty)"


class TestMask:
    """A row token by token."""

    def test_plain_text(self):
        """Given and learned tokens stand apart, counted; a line break is visible."""
        tokenizer = character_tokenizer()
        assert repr(show_mask(row(tokenizer), tokenizer)) == (
            "given (11): <s>|[INST]| |B|e|.|⏎|⏎|H|i|[/INST]\nlearned (4):  |Y|o|</s>"
        )

    def test_the_learned_tokens_are_marked_by_more_than_colour(self):
        """Exactly the learned tokens are underlined."""
        tokenizer = character_tokenizer()
        html = show_mask(row(tokenizer), tokenizer)._repr_html_()
        assert html.count("text-decoration:underline") == 4
        assert "4 of 15 tokens are learned" in html

    def test_html_is_escaped(self):
        """Control tokens show as text."""
        tokenizer = character_tokenizer()
        html = show_mask(row(tokenizer, "<b>"), tokenizer)._repr_html_()
        assert "&lt;s&gt;" in html
        assert "&lt;/s&gt;" in html
        assert "<b>b" not in html
        assert "<s>" not in html

    def test_real_tokens(self, mistral_tokenizer):
        """With Mistral's tokenizer the tokens are pieces of words, and ids are in the titles."""
        shown = show_mask(row(mistral_tokenizer, "Hello", "Answer"), mistral_tokenizer)
        assert repr(shown).endswith("learned (2): Answer|</s>")
        assert 'title="id 27075"' in shown._repr_html_()


class TestPlots:
    """Pictures in files and in notebooks."""

    @staticmethod
    def is_png(data):
        """Say whether bytes are a whole PNG."""
        return data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")

    def test_losses(self, tmp_path):
        """The picture is written, its folder made, and shown by a notebook."""
        shown = plot_losses(METRICS, tmp_path / "run" / "loss.png")
        assert self.is_png((tmp_path / "run" / "loss.png").read_bytes())
        assert shown._repr_png_() == (tmp_path / "run" / "loss.png").read_bytes()

    def test_one_point_is_enough(self, tmp_path):
        """A run of one step can be plotted."""
        plot_losses({"train_loss": [[1, 2.5]], "eval_loss": [[0, 2.4]]}, tmp_path / "loss.png")
        assert self.is_png((tmp_path / "loss.png").read_bytes())

    @pytest.mark.parametrize("lengths", [[5], [5, 5, 5], [5, 60, 95], list(range(1, 500))])
    def test_lengths(self, tmp_path, lengths):
        """One row, equal rows and many rows can be plotted."""
        plot_lengths(lengths, 100, str(tmp_path / "lengths.png"))
        assert self.is_png((tmp_path / "lengths.png").read_bytes())

    def test_a_picture_is_its_name_in_plain_text(self, tmp_path):
        """A log gets the name of the file."""
        assert repr(Picture(tmp_path / "loss.png")) == "picture: loss.png"

    def test_categories_that_the_font_lacks_are_numbered(self, tmp_path):
        """Names in Chinese become numbers, from the top down, with a key below the picture; no glyph is missing."""
        rows = [{"category": name, "response": "x"} for name in ("問答", "問答", "<摘要>")]
        shown = plot_categories(rows, tmp_path / "categories.png")
        assert repr(shown) == "picture: categories.png\n1: 問答\n2: <摘要>"
        html = shown._repr_html_()
        assert html.startswith('<img src="data:image/png;base64,')
        assert html.endswith("1: 問答\n2: &lt;摘要&gt;</p>")

    def test_categories_that_the_font_has_stand_in_the_picture(self, tmp_path):
        """Latin, Greek and Cyrillic names need no key."""
        rows = [{"category": name, "response": "x"} for name in ("closed_qa", "résumé", "Περίληψη", "Обзор")]
        assert repr(plot_categories(rows, tmp_path / "categories.png")) == "picture: categories.png"

    def test_conversations_and_many_categories(self, tmp_path):
        """Rows of messages are counted, and the smallest of many categories are drawn together."""
        answer = [{"role": "assistant", "content": "x y"}]
        rows = [{"category": f"問{n}", "prompt": [], "completion": answer} for n in range(40) for _ in range(40 - n)]
        key = repr(plot_categories(rows, tmp_path / "categories.png")).splitlines()[1:]
        assert (len(key), key[0], key[1]) == (31, "1: (other)", "2: 問0")

    def test_pyplot_is_not_imported(self):
        """Plotting chooses no backend and keeps no figures alive."""
        import subprocess
        import sys

        code = (
            "import sys, tempfile, pathlib\nfrom helpers.display.tables import plot_lengths\n"
            "plot_lengths([1, 2], 10, pathlib.Path(tempfile.mkdtemp()) / 'a.png')\n"
            "assert 'matplotlib.pyplot' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
