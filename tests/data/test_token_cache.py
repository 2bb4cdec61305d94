"""Rows that were tokenized and checked before: when they are taken from disk, and when they must not be."""

from __future__ import annotations

import pytest

from helpers.core.errors import ContractError
from helpers.data import cache as token_cache
from helpers.data import contract
from helpers.data.chat_templates import install_template
from helpers.data.contract import apply_contract
from helpers.data.prompts import build_example

ROWS = [{"instruction": f"Add {n} and {n}.", "input": "", "output": f"The sum is {2 * n}."} for n in range(12)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache in which few rows are kept."""
    monkeypatch.setenv("HELPERS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(token_cache, "WORTH_KEEPING", 5)
    return tmp_path / "tokens"


@pytest.fixture
def work(monkeypatch):
    """How many rows each call tokenized."""
    done = []
    original = contract._tokenize_all

    def counted(examples, tokenizer):
        """Count."""
        done.append(len(examples))
        return original(examples, tokenizer)

    monkeypatch.setattr(contract, "_tokenize_all", counted)
    return done


@pytest.fixture
def tokenizer(tiny_mistral):
    """With its template."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(tiny_mistral)
    install_template(made, "chat")
    return made


def check(rows, tokenizer, **changes):
    """Apply the contract to rows."""
    examples = [build_example(row, "alpaca", style="chat", system_prompt="Be brief.") for row in rows]
    return apply_contract(examples, tokenizer, **{"max_seq_length": 64, **changes})


def test_the_second_time_they_come_from_disk(cache, work, tokenizer):
    """Rows, tokens, labels and what was left out are the same."""
    rows = [*ROWS, {**ROWS[0], "output": "long " * 100}]
    first, second = check(rows, tokenizer), check(rows, tokenizer)
    assert work == [13]
    assert second == first
    assert second.left_out == {"longer than 64 tokens": 1}
    assert second.summary() == first.summary()


def test_few_rows_are_not_kept(cache, work, tokenizer, monkeypatch):
    """A file costs more than they do."""
    monkeypatch.setattr(token_cache, "WORTH_KEEPING", 13)
    check(ROWS, tokenizer), check(ROWS, tokenizer)
    assert work == [12, 12]
    assert not cache.exists()


def test_whatever_their_tokens_depend_on_makes_them_new(cache, work, tokenizer):
    """A row, their order, the length, the template, the padding and the tokenizer."""
    check(ROWS, tokenizer)
    check([*ROWS[:-1], {**ROWS[-1], "output": "Twice as much."}], tokenizer)
    check(ROWS[::-1], tokenizer)
    check(ROWS, tokenizer, max_seq_length=63)
    tokenizer.chat_template += "{# changed #}"
    check(ROWS, tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(77)
    check(ROWS, tokenizer)
    tokenizer.add_tokens(["a new word"])
    check(ROWS, tokenizer)
    assert len(work) == 7
    assert len(list(cache.iterdir())) == 7


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-40], lambda b: b"PK" + b[2:60], lambda b: b"x" * 500])
def test_a_damaged_file_is_made_again(cache, work, tokenizer, damage):
    """It is read as if it were not there."""
    first = check(ROWS, tokenizer)
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert check(ROWS, tokenizer) == first
    assert check(ROWS, tokenizer) == first
    assert work == [12, 12]


def test_a_contract_that_is_broken_is_never_kept(cache, work, tokenizer):
    """It is told each time."""
    for _ in range(2):
        with pytest.raises(ContractError):
            check(ROWS, tokenizer, max_seq_length=8)
    assert work == [12, 12]
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_changes_nothing(cache, work, tokenizer):
    """The rows are tokenized each time."""
    cache.write_text("a file where the folder should be")
    assert check(ROWS, tokenizer) == check(ROWS, tokenizer)
    assert work == [12, 12]


def test_only_the_newest_files_stay(cache, tokenizer, monkeypatch):
    """Old data sets make room."""
    monkeypatch.setattr(token_cache, "MOST_FILES", 2)
    for length in (60, 61, 62, 63):
        check(ROWS, tokenizer, max_seq_length=length)
    assert len(list(cache.iterdir())) == 2
