"""Rows as the two tables that the contract compares: messages, and the tokens made of them."""

from __future__ import annotations


def chats_of(examples):
    """Return examples as a table with `prompt` and `completion`."""
    from datasets import Dataset

    return Dataset.from_list(examples)


def tokens_of(chats, tokenizer):
    """Return a table of messages as tokens and masks."""
    from datasets import Dataset

    from helpers.data.tokens import tokenize_chats

    return Dataset.from_dict(tokenize_chats(chats[:], tokenizer))


def checked_tokens(examples, tokenizer, *, max_seq_length):
    """Return the tokens of the examples that pass the contract."""
    from helpers.data.contract import check_tokens

    chats = chats_of(examples)
    tokens = tokens_of(chats, tokenizer)
    return tokens.select(check_tokens(tokens, chats, tokenizer, max_seq_length=max_seq_length).kept)
