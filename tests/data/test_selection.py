"""Choosing rows by category, and cleaning them."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from helpers.core.config import DataConfig
from helpers.core.errors import DataError
from helpers.data.rows import Rows, load_rows
from helpers.data.selection import choose_categories, clean_row, in_proportion


class TestChooseCategories:
    """A filter on categories."""

    def test_none_keeps_all_rows(self):
        """Without a filter the order of the draw stays as it is."""
        assert choose_categories([3, 1, 2], dict.get, None) == [3, 1, 2]

    def test_several_are_separated_by_commas(self):
        """Rows of any named category are kept, in the order of the draw."""
        assert choose_categories([3, 2, 1, 0], list("abca").__getitem__, "a, c") == [3, 2, 0]

    def test_an_unknown_one_is_refused_with_the_nearest(self):
        """The message names the category that was probably meant."""
        expected = (
            r"^category: expected categories that occur in the data, got 'brainstormin'\. Did you mean brainstorming\?"
        )
        with pytest.raises(DataError, match=expected):
            choose_categories([0, 1], ["brainstorming", None].__getitem__, "brainstormin")

    def test_data_without_categories_cannot_be_filtered(self):
        """A data set without the column says so."""
        with pytest.raises(DataError) as caught:
            choose_categories([0, 1], [None, 7].__getitem__, "open_qa")
        assert str(caught.value) == (
            "category: expected data with a column category, got 'open_qa'. Leave category out."
        )


class TestInProportion:
    """The stratified order."""

    def test_any_first_part_has_each_category_in_proportion(self):
        """Of 80 and 20 rows, the first ten have eight and two."""
        categories = ["big"] * 80 + ["small"] * 20
        first = in_proportion(range(100), categories.__getitem__)[:10]
        assert [categories[i] for i in first].count("small") == 2

    def test_no_row_is_lost_or_doubled(self):
        """The result is a permutation."""
        assert sorted(in_proportion([5, 3, 4], "xxxyzx".__getitem__)) == [3, 4, 5]

    def test_rows_without_a_category_are_one(self):
        """Values that are no text count by their type, whatever they hold."""
        values = ["a", None, "a", None, "a", 3, "a", 4]
        assert in_proportion(range(8), values.__getitem__) == [0, 1, 5, 2, 4, 3, 7, 6]


class TestLoading:
    """Filter and order in `load_rows`."""

    def test_the_bundled_rows_can_be_filtered(self):
        """One category of the bundled Dolly rows has 16 training and 5 held-out rows."""
        config = DataConfig(dataset_name="sample", train_rows=0, heldout_rows=5, category="brainstorming")
        rows = load_rows(config, "dolly", seed=1)
        assert (len(rows.train), len(rows.heldout)) == (16, 5)
        assert {row["category"] for row in rows.train} == {"brainstorming"}

    def test_a_stratified_draw_keeps_the_proportions(self):
        """Half of the bundled Dolly rows has half of each category, to a row."""
        config = DataConfig(dataset_name="sample", train_rows=64, heldout_rows=8, stratified=True)
        rows = load_rows(config, "dolly", seed=1)
        counts = Counter(row["category"] for row in rows.train)
        assert (counts["open_qa"], counts["closed_qa"], counts["creative_writing"]) == (11, 8, 5)
        assert sorted(counts.values()) == [5, 6, 7, 8, 8, 9, 10, 11]

    def test_a_file_without_categories_is_read(self, tmp_path):
        """Rows without a category are used, and count as none."""
        path = tmp_path / "rows.jsonl"
        row = {"instruction": "Ask {}", "context": "", "response": "An answer."}
        path.write_text("\n".join(json.dumps({**row, "instruction": f"Ask {i}"}) for i in range(6)))
        rows = load_rows(DataConfig(dataset_name=str(path), train_rows=0, heldout_rows=2), "dolly", seed=1)
        assert len(rows.train) == 4

    def test_more_rows_than_a_category_has_are_refused(self):
        """The message says how many there are."""
        config = DataConfig(dataset_name="sample", train_rows=17, heldout_rows=2, category="closed_qa")
        with pytest.raises(DataError, match="train_rows: expected at most 16"):
            load_rows(config, "dolly", seed=1)


class TestCleanRows:
    """Reference marks."""

    def test_marks_are_removed_everywhere(self):
        """Context and response lose their marks, in both parts."""
        row = {"instruction": "Who?", "context": "Founded in 1901.[2] Sold in 1950. [3]", "response": "Anna.[1]"}
        cleaned = Rows([row], [row], "test", 2).changed(clean_row)
        assert cleaned.train[0]["context"] == "Founded in 1901. Sold in 1950."
        assert cleaned.heldout[0]["response"] == "Anna."

    def test_the_bundled_rows_have_some(self):
        """The bundled Dolly rows carry marks for the cleaning to find."""
        rows = load_rows(DataConfig(dataset_name="sample", train_rows=0, heldout_rows=40), "dolly", seed=1)
        cleaned = rows.changed(clean_row)
        assert sum(a != b for a, b in zip(rows.train, cleaned.train, strict=True)) == 10
        assert sum(a != b for a, b in zip(rows.heldout, cleaned.heldout, strict=True)) == 3
