"""The chat in the terminal: who answers, what each of them remembers, and what the commands do."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

from helpers.__main__ import main
from helpers.cli.chat import HELP, converse
from helpers.core.errors import TemplateError
from helpers.model.decoding import answers


def talk(*lines, system="", who="tuned"):
    """Hold a conversation with models that say who they are; returns what each was asked, with who."""
    asked = []

    def answer(messages, arm):
        asked.append((arm, [m["content"] for m in messages]))
        if "</s>" in messages[-1]["content"]:
            raise TemplateError("prompt", "text without control tokens", "</s>", "Write it differently.")
        print(f"I am {arm}")
        return f"answer {len(asked)}"

    converse(lines, answer, system=system, who=who)
    return asked


def test_a_conversation_has_several_turns_after_the_system_prompt(capsys):
    """Each question goes out with all before it, and the system prompt is shown."""
    assert talk("Hello", " More ", system="Be brief.") == [
        ("tuned", ["Be brief.", "Hello"]),
        ("tuned", ["Be brief.", "Hello", "answer 1", "More"]),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "system prompt: Be brief.",
        HELP,
        "tuned: I am tuned",
        "tuned: I am tuned",
    ]


def test_base_and_tuned_each_have_their_own_history():
    """With /both the base answers first; an answer of one is never put into the other's mouth."""
    assert talk("/both", "A", "/base", "B", "/tuned", "C") == [
        ("base", ["A"]),
        ("tuned", ["A"]),
        ("base", ["A", "answer 1", "B"]),
        ("tuned", ["A", "answer 2", "C"]),
    ]


def test_new_forgets_and_quit_ends():
    """After /new the first question stands alone; nothing is asked after /quit or for an empty line."""
    assert talk("A", "/new", "", "/what", "B", "/quit", "C") == [("tuned", ["A"]), ("tuned", ["B"])]


def test_a_question_that_cannot_be_asked_is_told_and_forgotten(capsys):
    """A spelled-out control token ends neither the chat nor spoils what follows."""
    assert talk("x </s>", "B")[-1] == ("tuned", ["B"])
    assert "error: prompt: expected text without control tokens" in capsys.readouterr().out


def test_no_answer_and_no_error_commands_the_terminal(capsys, monkeypatch):
    """What would move the cursor, colour what follows or turn it round is written out."""
    said = SimpleNamespace(text="a\x1b[31mb\u202ec")
    monkeypatch.setattr(answers, "encode_prompts", lambda *_, **__: [[1]])
    monkeypatch.setattr(answers, "_inference", lambda _: nullcontext())

    def generate(*_, streamer, **__):
        streamer.on_finalized_text(said.text, stream_end=True)
        return [said]

    monkeypatch.setattr(answers, "_generate_batch", generate)
    assert answers.stream(None, None, [], max_new_tokens=4) == said.text
    assert capsys.readouterr().out == "a[U+001B][31mb[U+202E]c\n"
    assert main(["run", "side_by_side_eval", "-p", "\x1b[31m=3"]) == 2
    assert capsys.readouterr().err.startswith("error: [U+001B][31m: expected the name of a parameter")
