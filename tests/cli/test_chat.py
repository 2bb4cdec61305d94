"""The chat in the terminal: who answers, what each of them remembers, and what the commands do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from characters import EOS, character_tokenizer, codes

from helpers.__main__ import main
from helpers.cli.chat import HELP, converse
from helpers.core.errors import TemplateError
from helpers.model.decoding.answers import stream


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


@pytest.mark.usefixtures("unsloth_modes")
def test_no_answer_and_no_error_commands_the_terminal(capsys):
    """What would move the cursor or colour what follows is written out."""

    class Model:
        """Answers with what commands a terminal."""

        config, device, training = SimpleNamespace(max_position_embeddings=99), "cpu", False

        def generate(self, input_ids, streamer, **_):
            import torch

            answer = torch.tensor([[*codes("a\x1b[31mb\x9bc"), EOS]])
            streamer.put(input_ids)
            streamer.put(answer)
            streamer.end()
            return torch.cat([input_ids, answer], 1)

    question = [{"role": "user", "content": "Who are you?"}]
    assert stream(Model(), character_tokenizer(), question, max_new_tokens=20) == "a\x1b[31mb\x9bc"
    assert capsys.readouterr().out == "a[U+001B][31mb[U+009B]c\n"
    assert main(["run", "side_by_side_eval", "-p", "\x1b[31m=3"]) == 2
    assert capsys.readouterr().err.startswith("error: [U+001B][31m: expected the name of a parameter")
