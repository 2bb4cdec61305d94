"""Rows, messages, chat templates, tokens, and the contract that labels are checked against."""
