"""Headless Chromium for tests: open a page in a frame of a given width, run a script in it, and take its value back."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is on the PATH")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

_QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "default-apps", "extensions")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--hide-scrollbars",
    *(f"--disable-{name}" for name in _QUIET),
]
_FRAME = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe src="page.html" style="border:0;width:{width}px;height:800px"></iframe><pre id="out"></pre>
<script>
addEventListener("message", function (event) {{ document.getElementById("out").textContent = event.data; }});
</script>
"""
_AFTER = """
addEventListener("load", function () {
  setTimeout(function () { parent.postMessage(JSON.stringify((function () { %s })()), "*"); }, 200);
});
"""


class Page(HTMLParser):
    """What a page consists of: its elements with their attributes, and the text of each element of class "said"."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.said, self._inside = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        """Note the element; texts are collected from a "said" one to its end."""
        self.elements.append((tag, dict(attrs)))
        if self._inside:
            self._inside.append(tag)
        elif dict(attrs).get("class") == "said":
            self._inside.append(tag)
            self.said.append("")

    def handle_endtag(self, tag):
        """Leave the element."""
        if self._inside:
            assert self._inside.pop() == tag

    def handle_data(self, data):
        """Collect text."""
        if self._inside:
            self.said[-1] += data

    def tags(self, name):
        """List the attributes of all elements of a name."""
        return [attrs for tag, attrs in self.elements if tag == name]


def run_in_page(page: str, script: str, folder: Path, *, width: int = 390, keep_policy: bool = False, before: str = ""):
    """Run a function body in a page and return its value.

    `before` runs ahead of the page's own script. Without `keep_policy` the page loses its policy, so that nothing but
    the escaping stands between a payload and the browser; with it, only the two test scripts are let in beside the
    page's own.
    """
    scripts = [before or "0", _AFTER % script]
    if keep_policy:
        hashes = " ".join(f"'sha256-{_digest(code)}'" for code in scripts)
        page = page.replace("script-src ", f"script-src {hashes} ", 1)
    else:
        page, found = POLICY.subn("", page)
        assert found == 1
    page = page.replace("<head>", f"<head><script>{scripts[0]}</script>", 1)
    head, body, foot = page.rpartition("</body>")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page.html").write_text(f"{head}<script>{scripts[1]}</script>{body}{foot}", encoding="utf-8")
    (folder / "frame.html").write_text(_FRAME.format(width=width), encoding="utf-8")
    return json.loads(_out(folder))


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def _out(folder: Path) -> str:
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000"]
    command += ["--window-size=1400,900", "--dump-dom", (folder / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode("utf-8")
    out = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[1]
    assert out, "the page did not get as far as its last script"
    return html.unescape(out)
