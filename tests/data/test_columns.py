"""Tokenized rows as flat arrays, and the tokenizer's threads."""

from __future__ import annotations

import os

import numpy as np
import pytest
from datasets import Dataset

from helpers.core.errors import ContractError
from helpers.data import contract as contracts
from helpers.data.contract import Contract, TokenizedExample, check_trainer_rows
from helpers.data.tokens import IGNORED, columns_of, trainer_columns, trainer_table

ROWS = (
    TokenizedExample((1, 5, 6, 2), (IGNORED, IGNORED, 6, 2)),
    TokenizedExample((1, 70000, 2), (IGNORED, 70000, 2)),
    TokenizedExample((1, 5, 2), (IGNORED, IGNORED, 2)),
)
CONTRACT = Contract((), ROWS, {}, 8)


class TestTable:
    """What the trainer is given."""

    def test_rows_are_handed_over_tokenized(self):
        """The trainer gets the checked tokens and a mask of the answer; it renders and tokenizes nothing again."""
        assert list(trainer_table(CONTRACT.columns)) == [
            {"input_ids": [1, 5, 6, 2], "completion_mask": [0, 0, 1, 1]},
            {"input_ids": [1, 70000, 2], "completion_mask": [0, 1, 1]},
            {"input_ids": [1, 5, 2], "completion_mask": [0, 0, 1]},
        ]

    def test_it_is_the_table_that_datasets_would_make(self):
        """Of the same types, so that nothing behind it can tell the difference."""
        plain = Dataset.from_list(
            [{"input_ids": list(row.input_ids), "completion_mask": [0] * len(row.input_ids)} for row in ROWS]
        )
        assert trainer_table(CONTRACT.columns).features == plain.features

    def test_what_is_handed_over_passes_the_check(self):
        """Such rows are those of the contract, label by label."""
        check_trainer_rows(trainer_table(CONTRACT.columns), CONTRACT)

    def test_masks_need_not_be_a_prefix(self):
        """Labels decide, wherever they stand."""
        row = TokenizedExample((7, 8, 9), (7, IGNORED, 9))
        assert trainer_table(columns_of([row]))[0]["completion_mask"] == [1, 0, 1]


class TestColumns:
    """Values and lengths, from a data set and from single rows."""

    def test_a_data_set_and_its_rows_are_the_same(self):
        """With a mask or with labels, as they were handed over."""
        labels = [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in ROWS]
        wanted = columns_of(ROWS)
        for given in (
            trainer_table(CONTRACT.columns),
            list(trainer_table(CONTRACT.columns)),
            labels,
            Dataset.from_list(labels),
        ):
            found = trainer_columns(given)
            for name in ("input_ids", "labels", "lengths"):
                assert np.array_equal(getattr(found, name), getattr(wanted, name))

    def test_rows_that_were_filtered_do_not_count(self):
        """A data set that hides rows, or has another order, gives what is left, in that order."""
        left = trainer_table(CONTRACT.columns).select([2, 0])
        found = trainer_columns(left)
        assert found.input_ids.tolist() == [1, 5, 2, 1, 5, 6, 2]
        assert found.lengths.tolist() == [3, 4]
        shorter = trainer_table(CONTRACT.columns).filter(lambda row: len(row["input_ids"]) > 3)
        with pytest.raises(ContractError, match="5 supervised tokens"):
            check_trainer_rows(shorter, CONTRACT)
        check_trainer_rows(shorter, Contract((), ROWS[:1], {}, 8))

    @pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
    def test_what_the_library_packs_is_read(self, strategy):
        """TRL's packed sequences, in Arrow's types as it leaves them, hold the learned tokens of the rows."""
        from trl import pack_dataset

        labels = Dataset.from_list([{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in ROWS])
        packed = pack_dataset(labels, 8, strategy, {})
        assert len(packed) < len(ROWS)
        found = trainer_columns(packed)
        assert found.learned().tolist() == [2, 2, 2, 6, 70000]
        assert sorted(found.lengths) == sorted(len(row) for row in packed["input_ids"])
        check_trainer_rows(packed, CONTRACT)
        with pytest.raises(ContractError, match="5 supervised tokens"):
            check_trainer_rows(packed.select([0]), CONTRACT)

    def test_labels_come_before_a_mask(self):
        """Where a row has both."""
        row = {"input_ids": [1, 5, 2], "labels": [IGNORED, IGNORED, 2], "completion_mask": [1, 1, 1]}
        assert trainer_columns([row]).learned().tolist() == [2]

    def test_rows_are_told_apart(self):
        """By their ids and by their labels."""
        found = columns_of((*ROWS, ROWS[0], TokenizedExample((1, 5, 6, 2), (IGNORED, 5, 6, 2)))).rows()
        assert found[0] == found[3] != found[4]
        assert found[0][0] == found[4][0]
        assert len(set(found)) == 4

    def test_other_numbers_of_labels_are_an_error(self):
        """A label for each token, or the rows cannot be compared."""
        with pytest.raises(ContractError, match="as many labels as tokens"):
            trainer_columns([{"input_ids": [1, 5, 2], "labels": [IGNORED, 2]}])

    def test_labels_that_a_row_lacks_are_an_error(self):
        """One row without is enough; where a mask says the same, the mask counts."""
        rows = [{"input_ids": [1, 5, 2], "labels": [IGNORED, IGNORED, 2]}, {"input_ids": [1, 2], "labels": None}]
        with pytest.raises(ContractError, match="rows with labels or a completion mask"):
            trainer_columns(rows)
        masked = [{**row, "completion_mask": [0] * (len(row["input_ids"]) - 1) + [1]} for row in rows]
        assert trainer_columns(masked).labels.tolist() == [IGNORED, IGNORED, 2, IGNORED, 2]

    def test_a_contract_makes_them_once(self):
        """The trainer's table and the check of its rows share them."""
        contract = Contract((), ROWS, {}, 8)
        assert contract.columns is contract.columns
        assert contract.columns.supervised() == contract.supervised_tokens() == 5

    def test_no_rows_are_no_columns(self):
        """An empty contract has columns without values."""
        assert columns_of(()).rows() == []


class TestThreads:
    """Many texts are tokenized in threads, and only then."""

    @pytest.fixture
    def seen(self, monkeypatch):
        """What the environment says while the tokenizer works."""
        found = []

        def tokenizer(texts, **_):
            found.append(os.environ.get("TOKENIZERS_PARALLELISM"))
            return {"input_ids": [[1, 2] if at < len(texts) // 2 else [1, 2, 3] for at in range(len(texts))]}

        monkeypatch.setattr(contracts, "render", lambda *_, **__: "text")
        monkeypatch.setattr(Prompted, "tokenizer", staticmethod(tokenizer))
        return found

    @pytest.mark.parametrize("before", ["false", None])
    def test_many_texts_are(self, seen, monkeypatch, before):
        """While they are tokenized; afterwards what was set is set again."""
        if before is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        rows = contracts._tokenize_all([Prompted()] * 1000, Prompted.tokenizer)
        assert (seen, len(rows), os.environ.get("TOKENIZERS_PARALLELISM")) == (["true"], 1000, before)

    def test_few_texts_are_not(self, seen, monkeypatch):
        """Threads would take longer to start than the texts take."""
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
        contracts._tokenize_all([Prompted()] * 999, Prompted.tokenizer)
        assert seen == ["false"]

    def test_it_is_forbidden_again_after_an_error(self, monkeypatch):
        """A tokenizer that fails leaves the environment as it was."""
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
        with pytest.raises(RuntimeError), contracts._threads(10_000):
            raise RuntimeError
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


class Prompted:
    """A stand-in for an example."""

    prompt = ()
    completion = ()
    tokenizer = None

    def messages(self):
        """Return no messages."""
        return []
