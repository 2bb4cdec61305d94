"""Patterns and templates of strangers end with an error that names them."""

from __future__ import annotations

import re
import signal
import threading

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from helpers.core.errors import TemplateError
from helpers.core.time_limit import time_limit

ERROR = TemplateError("chat_template", "a template that ends", "one that does not", "Use another.")


def test_a_pattern_without_end_is_ended():
    """Nested repetitions take longer for each letter than for the one before, twice as long."""
    with pytest.raises(TemplateError, match="a template that ends"), time_limit(0.2, ERROR):
        re.fullmatch(r"(a+)+b", "a" * 40)


def test_a_template_without_end_is_ended():
    """Jinja's sandbox bounds one loop, and not loops in loops."""
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateError, match="a template that ends"), time_limit(0.2, ERROR):
        render_jinja_template([[{"role": "user", "content": "x"}]], chat_template=loops)


def test_what_ends_in_time_is_left_alone():
    """The alarm is off afterwards, and whoever had set one has it back."""
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(60, ERROR):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_another_thread_has_no_limit():
    """Signals reach the main thread alone."""
    ended = []

    def work():
        with time_limit(0.001, ERROR):
            ended.append(sum(range(10**6)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [499999500000]
