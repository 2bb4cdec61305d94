"""`make release VERSION=1.2.3`: one version everywhere, and badges and setup cells that name its tag."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.core.errors import ConfigError, HelpersError
from helpers.core.files import write_text
from tools import badges

__all__ = ["main", "set_version"]

PLACES = {
    "pyproject.toml": (r'^version = ".*"', 'version = "{}"'),
    "helpers/__init__.py": (r'^__version__ = ".*"', '__version__ = "{}"'),
    "CITATION.cff": (r"^version: .*", "version: {}"),
    "CHANGELOG.md": (r"^## Unreleased$", "## {}"),
}
"""Where the version stands: what is replaced in each file, and by what."""

ROOT = Path(__file__).resolve().parent.parent


def set_version(root: Path, version: str) -> dict[Path, str]:
    """Return the text of each file that names the version, as it should be.

    Raises:
        ConfigError: It is no version, or a file has no place for it, such as a changelog without "## Unreleased".
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ConfigError("VERSION", "three numbers, such as 1.2.3", version, "make release VERSION=1.2.3")
    texts = {}
    for name, (pattern, line) in PLACES.items():
        text, count = re.subn(
            pattern, line.format(version), (root / name).read_text(encoding="utf-8"), count=1, flags=re.MULTILINE
        )
        if not count:
            raise ConfigError(name, f"a line that matches {pattern}", None, "Add it; nothing was written.")
        texts[root / name] = text
    return texts


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write version, tag and badges, and say what remains; return the exit status, 2 if something was refused."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument("version", help="such as 1.2.3")
    version = parser.parse_args(arguments).version
    try:
        texts = set_version(root, version)
        badges.release_texts(root, badges.read_release(root / "pyproject.toml")[0], f"v{version}")  # can it be done?
    except HelpersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in texts.items():
        write_text(path, text)
    status = badges.main(["--ref", f"v{version}"], root)
    if status == 0:
        print(f"\nVersion {version} stands everywhere. What remains:\n")
        print(f'  git commit --all --message "Release {version}"')
        print(f"  git tag v{version} && git push origin HEAD v{version}\n")
        print("Afterwards `scripts/build_badges --ref main` lets badges open the newest state again.")
    return status


if __name__ == "__main__":
    sys.exit(main())
