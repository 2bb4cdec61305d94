"""What is wrong with an environment, and what is only different from the lock.

`doctor` looks at versions, declared requirements, Python, torch and the GPU's driver, and imports nothing heavy. It
finds faults and mends none: `helpers.runtime.setup` does that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from helpers.runtime.hardware import Host, read_host
from helpers.runtime.lockfile import (
    FROZEN,
    NEEDED,
    STACK,
    Pin,
    Requires,
    Stack,
    Waiver,
    declared_requirements,
    installed_versions,
    read_lock,
    read_waivers,
)

__all__ = ["doctor"]

SUPPORTED_PYTHON = ("3.11", "3.12", "3.13")
SUPPORTED_TORCH = ("2.11", "2.12", "2.13", "2.14")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor saw.

    Args:
        level: "problem" when the notebooks cannot be trusted to work, "note" when it is only good to know.
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
    host: Host | None = None,
) -> Report:
    """Say what is wrong with this environment, and what is only different. Imports nothing heavy.

    Args:
        lock: The pins; None reads the package's lock.
        installed: Versions by normalized name; None asks the running interpreter.
        needed: Names that must be there. None means everything in the lock on one's own machine, and `NEEDED` on
            Colab and Kaggle, whose other packages are their own business.
        waivers: Requirements that are not followed; None reads them from the package's lock.
        host: The machine; None looks at this one.

    Returns:
        A report. Problems are: an unsupported Python, a missing package, a package of the training stack off its pin,
        a declared requirement that is not met, no torch, a torch that cannot use the GPU's driver. All else is a note.

    Raises:
        StackError: The lock cannot be read.
    """
    host = host or read_host()
    pins = {pin.name: pin.version for pin in (read_lock() if lock is None else lock) if pin.applies()}
    versions = installed_versions() if installed is None else dict(installed)
    if needed is None:
        needed = pins if host.service == "local" else NEEDED
    rules = {w.name: w for w in (read_waivers() if waivers is None else waivers)}
    stack = Stack(versions, rules, requires, None, FROZEN if host.service != "local" else ())
    findings = [
        *python_findings(host.python),
        *_system_findings(host.system),
        *_pin_findings(stack, pins, needed),
        *_torch_findings(versions, host),
        *_attention_findings(versions, host),
    ]
    return Report(tuple(findings), _facts(versions, host))


def python_findings(version: str) -> Iterator[Finding]:
    """A problem, if a version of Python is not supported."""
    if version.rpartition(".")[0] not in SUPPORTED_PYTHON:
        yield Finding("problem", "Python", f"{version} is not supported", f"use one of {', '.join(SUPPORTED_PYTHON)}")


def _system_findings(system: str) -> Iterator[Finding]:
    """A note on systems other than Linux, on which nothing here was tried."""
    if system == "Windows":
        said = "the lock's wheels exist for it, and nothing was tried on it"
        yield Finding("note", system, said, "use WSL (Ubuntu), or open the notebooks on Colab")
    elif system == "Darwin":
        said = "the lock's wheels exist for it, on Apple silicon; nothing was tried on it, and there is no NVIDIA GPU"
        yield Finding("note", "macOS", said, "train on Colab, or on a Linux machine with an NVIDIA GPU")


def _pin_findings(stack: Stack, pins: Mapping[str, str], needed: Collection[str]) -> Iterator[Finding]:
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


def _remedy(stack: Stack, name: str, pins: Mapping[str, str]) -> str:
    if stack.is_frozen(name):
        return "it belongs to the runtime: choose another runtime version"
    return f"run: pip install --no-deps {name}=={pins[name]}" if name in pins else ""


def _torch_findings(versions: Mapping[str, str], host: Host) -> Iterator[Finding]:
    driver, cuda, torch = host.driver, host.torch_cuda, versions.get("torch")
    if torch is None:
        yield Finding("problem", "torch", "is missing", "install it first, as pytorch.org says for your machine")
    elif ".".join(torch.split(".")[:2]) not in SUPPORTED_TORCH:
        remedy = f"install one of {SUPPORTED_TORCH[0]} to {SUPPORTED_TORCH[-1]}"
        yield Finding("problem", "torch", f"{torch} is not supported", remedy)
    elif driver is None:
        yield Finding("note", "GPU", "none was found: only preset smoke can run")
    elif cuda is None:
        message = f"{torch} is built without CUDA, and there is a {driver.names[0]}"
        yield Finding("problem", "torch", message, "install a CUDA build of torch")
    elif driver.cuda and int(driver.cuda.split(".")[0]) < int(cuda.split(".")[0]):
        message = f"driver {driver.version} goes up to CUDA {driver.cuda}, torch {torch} is built for {cuda}"
        yield Finding("problem", "GPU", message, "update the driver, or install a torch for an older CUDA")


def _attention_findings(versions: Mapping[str, str], host: Host) -> Iterator[Finding]:
    """What of fast attention is there; the notebooks need none of it.

    xformers 0.0.35 is built for torch 2.10 and does not load under 2.11: one line of warning, and slower attention.
    """
    xformers, torch, built = versions.get("xformers"), versions.get("torch", ""), host.xformers_torch
    if xformers and built and built.split(".")[:2] != torch.split(".")[:2]:
        message = f"{xformers} is built for torch {built} and does not load under {torch}"
        yield Finding("note", "xformers", message, "run: pip uninstall xformers")
    elif xformers:
        yield Finding("note", "xformers", f"{xformers} is installed, and built for this torch")
    if "flash-attn" in versions:
        yield Finding("note", "flash-attn", f"{versions['flash-attn']} is installed")


def _facts(versions: Mapping[str, str], host: Host) -> str:
    driver = host.driver
    shown = [f"{name} {versions.get(name, 'missing')}" for name in ("unsloth", "transformers", "trl", "torch")]
    card = driver.names[0] if driver else "CPU only"
    if driver and len(driver.names) > 1:  # as with Kaggle's "GPU T4 x2"
        card += f" (the first of {len(driver.names)} GPUs; a notebook trains on one)"
    return ", ".join([f"Python {host.python}", *shown, card])
