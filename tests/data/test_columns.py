"""Tokenized rows as flat arrays."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from helpers.core.errors import ContractError
from helpers.data.contract import check_trainer_dataset
from helpers.data.tokens import IGNORED, row_labels, trainer_columns

ROWS = Dataset.from_list(
    [
        {"input_ids": [1, 5, 6, 2], "completion_mask": [0, 0, 1, 1]},
        {"input_ids": [1, 70000, 2], "completion_mask": [0, 1, 1]},
        {"input_ids": [1, 5, 2], "completion_mask": [0, 0, 1]},
    ]
)
LABELLED = [{"input_ids": row["input_ids"], "labels": row_labels(row)} for row in ROWS]


class TestColumns:
    """Values and lengths, from a data set."""

    def test_masks_and_labels_say_the_same(self):
        """A label is the token where it is learned, and -100 elsewhere."""
        for given in (ROWS, Dataset.from_list(LABELLED)):
            found = trainer_columns(given)
            assert found.input_ids.tolist() == [1, 5, 6, 2, 1, 70000, 2, 1, 5, 2]
            assert found.labels.tolist() == [-100, -100, 6, 2, -100, 70000, 2, -100, -100, 2]
            assert found.lengths.tolist() == [4, 3, 3]
            assert (found.input_ids.dtype, found.labels.dtype) == (np.int32, np.int32)

    def test_masks_need_not_be_a_prefix(self):
        """They decide, wherever they stand."""
        assert row_labels({"input_ids": [7, 8, 9], "completion_mask": [1, 0, 1]}) == [7, -100, 9]

    def test_rows_that_were_filtered_do_not_count(self):
        """A data set that hides rows, or has another order, gives what is left, in that order."""
        found = trainer_columns(ROWS.select([2, 0]))
        assert found.input_ids.tolist() == [1, 5, 2, 1, 5, 6, 2]
        assert found.lengths.tolist() == [3, 4]
        shorter = ROWS.filter(lambda row: len(row["input_ids"]) > 3)
        with pytest.raises(ContractError, match="5 supervised tokens"):
            check_trainer_dataset(shorter, ROWS)
        check_trainer_dataset(shorter, ROWS.select([0]))

    @pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
    def test_what_the_library_packs_is_read(self, strategy):
        """TRL's packed sequences, in Arrow's types as it leaves them, hold the learned tokens of the rows."""
        from trl import pack_dataset

        packed = pack_dataset(Dataset.from_list(LABELLED), 8, strategy, {})
        assert len(packed) < len(ROWS)
        found = trainer_columns(packed)
        assert found.learned().tolist() == [2, 2, 2, 6, 70000]
        assert sorted(found.lengths) == sorted(len(row) for row in packed["input_ids"])
        check_trainer_dataset(packed, ROWS)
        with pytest.raises(ContractError, match="5 supervised tokens"):
            check_trainer_dataset(packed.select([0]), ROWS)

    def test_labels_come_before_a_mask(self):
        """Where a row has both."""
        row = {"input_ids": [1, 5, 2], "labels": [IGNORED, IGNORED, 2], "completion_mask": [1, 1, 1]}
        assert trainer_columns(Dataset.from_list([row])).learned().tolist() == [2]

    def test_rows_are_told_apart(self):
        """By their ids and by their labels."""
        other = {"input_ids": [1, 5, 6, 2], "completion_mask": [0, 1, 1, 1]}
        found = trainer_columns(Dataset.from_list([*ROWS, ROWS[0], other])).rows()
        assert found[0] == found[3] != found[4]
        assert found[0][0] == found[4][0]
        assert len(set(found)) == 4

    def test_other_numbers_of_labels_are_an_error(self):
        """A label for each token, or the rows cannot be compared."""
        with pytest.raises(ContractError, match="as many labels as tokens"):
            trainer_columns(Dataset.from_list([{"input_ids": [1, 5, 2], "labels": [IGNORED, 2]}]))

    def test_labels_that_a_row_lacks_are_an_error(self):
        """One row without is enough; where a mask says the same, the mask counts."""
        rows = [{"input_ids": [1, 5, 2], "labels": [IGNORED, IGNORED, 2]}, {"input_ids": [1, 2], "labels": None}]
        with pytest.raises(ContractError, match="rows with labels or a completion mask"):
            trainer_columns(Dataset.from_list(rows))
        masked = [{**row, "completion_mask": [0] * (len(row["input_ids"]) - 1) + [1]} for row in rows]
        assert trainer_columns(Dataset.from_list(masked)).labels.tolist() == [IGNORED, IGNORED, 2, IGNORED, 2]

    def test_no_rows_are_no_columns(self):
        """An empty table has columns without values."""
        assert trainer_columns(ROWS.select([])).rows() == []
