"""What a notebook's setup cell does, and where its tokens come from.

`helpers.runtime.lockfile` says what to install and `helpers.runtime.doctor` what is wrong; `setup_notebook` is the
only function of the three modules that changes anything.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from helpers.core.errors import StackError
from helpers.runtime.doctor import SUPPORTED_PYTHON, Report, doctor, python_findings
from helpers.runtime.hardware import Host, read_host, split_share, where
from helpers.runtime.lockfile import NEEDED, SMOKE, install_plan, installed_versions, read_lock, read_waivers

__all__ = ["quiet_libraries", "read_secret", "setup_notebook"]


def setup_notebook(
    *,
    smoke: bool = False,
    host: Host | None = None,
    versions: Callable[[], dict[str, str]] = installed_versions,
    modules: Mapping[str, Any] = sys.modules,
) -> Report:
    """Make a notebook's kernel ready, or say what to do: the whole of a setup cell.

    On Colab and Kaggle it installs what `install_plan` says; elsewhere it installs nothing. It prints one line, which
    begins with "ready:", or all that the doctor found.

    Args:
        smoke: Preset smoke is going to be used, so its small model is needed too.
        host: The machine; None looks at this one.
        versions: Returns what is installed, by normalized name.

    Raises:
        StackError: Python is not supported, the kernel holds an old torch, numpy or pyarrow, an installation failed,
            the kernel must be restarted after one, or the doctor found a problem.
    """
    host = host or read_host()
    _prepare_process(host)
    for finding in python_findings(host.python):
        raise StackError("Python", f"one of {', '.join(SUPPORTED_PYTHON)}", host.python, finding.remedy)
    _refuse_stale(modules)
    needed = (*NEEDED, *(SMOKE if smoke else ()))
    installed = _install_until_done(needed, versions, modules) if host.service != "local" else 0
    report = doctor(installed=versions(), needed=needed, host=host)
    added = f", {installed} packages installed" if installed else ""
    print(report.verdict() + added if report.ok else report)
    if not report.ok:
        remedy = report.problems[0].remedy or "See the report above"
        raise StackError("environment", "no problems", report.verdict(), f"First: {remedy}.")
    return report


def _prepare_process(host: Host) -> None:
    """Set what must be set before torch and unsloth are imported; what the user has set stays.

    Unsloth trains on one GPU unless told otherwise and fails in odd ways on Kaggle's two T4
    (unslothai/unsloth#431, #2467), so a process sees the first GPU only, unless the model is split over all of them.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("PIP_ROOT_USER_ACTION", "ignore")
    if host.driver and len(host.driver.names) > 1 and not split_share():
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    quiet_libraries()


def quiet_libraries() -> None:
    """Leave out what libraries log while they are imported and what nobody here can act on.

    torchao 0.18 warns about each of its CUDA extensions on a machine that cannot load them, and about an older way to
    register types with torch 2.13; bitsandbytes about a package `kernels`, for faster products on CPUs.
    """
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_nothing)  # a filter, since importing torch sets levels anew


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _refuse_stale(modules: Mapping[str, Any]) -> None:
    """Stop when a module in memory is not the one on disk: extension modules of both would be mixed.

    pyarrow is among them for a kernel that was told to restart and was not: with pyarrow 18 in memory and 26 on disk,
    `import datasets` fails with "pyarrow.lib.IpcReadOptions size changed".
    """
    from packaging.version import Version

    for name in ("torch", "numpy", "pyarrow"):
        loaded = getattr(modules.get(name), "__version__", None)
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


def _install_until_done(
    needed: Sequence[str], versions: Callable[[], dict[str, str]], modules: Mapping[str, Any]
) -> int:
    """Plan and install until nothing is left: new wheels bring requirements that were not known before.

    Returns:
        How many packages were installed.
    """
    lock, waivers = read_lock(), read_waivers()
    installed: set[tuple[str, str]] = set()
    half_imported: set[str] = set()
    for _ in range(5):
        there = versions()
        plan = install_plan(there, lock, needed=needed, waivers=waivers)
        if not plan:
            break
        half_imported |= {name for name in plan if name in there and _imported(name, modules)}
        _pip_install([f"{name}=={version}" for name, version in plan.items()])
        installed |= plan.items()
    if half_imported:
        names = ", ".join(sorted(half_imported))
        raise StackError("kernel", "nothing imported that had to be replaced", names, _restart())
    return len(installed)


def _imported(name: str, modules: Mapping[str, Any]) -> bool:
    """Whether the running kernel has imported a distribution's top-level module."""
    if name == "protobuf":  # shares the module google with everything of Google's
        return "google.protobuf" in modules
    top_level = importlib.metadata.distribution(name).read_text("top_level.txt") or name.replace("-", "_")
    return any(module in modules for module in top_level.split())


def _pip_install(requirements: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    if done.returncode:
        said = (done.stderr or done.stdout or "").strip().splitlines()
        on_kaggle = where() == "kaggle"
        remedy = "Turn the Internet on in the notebook's settings." if on_kaggle else "Run the cell again."
        raise StackError("pip", "an installation that succeeds", said[-1] if said else done.returncode, remedy)


# --- secrets ------------------------------------------------------------------------------------------------------


def read_secret(name: str) -> str | None:
    """Return a token, from where tokens belong; never printed, and never a notebook parameter.

    Asked are the environment variable of that name; on a Colab page, Colab's secret; on Kaggle, the notebook's secret;
    and for HF_TOKEN what `hf auth login` has stored. Colab's `userdata.get` waits ten seconds for a page that is not
    there (huggingface/huggingface_hub#2686), so a kernel that is not Colab's own never asks.

    Args:
        name: Such as "HF_TOKEN".
    """
    value = os.environ.get(name, "").strip()
    if not value and _on_colab_page():
        value = _colab_secret(name)
    if not value and where() == "kaggle":
        value = _kaggle_secret(name)
    if not value and name == "HF_TOKEN" and where() != "colab":  # there, get_token asks userdata as well
        from huggingface_hub import get_token

        value = (get_token() or "").strip()
    return value or None


def _colab_secret(name: str) -> str:
    from google.colab import errors, userdata

    try:
        return (userdata.get(name) or "").strip()
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError, errors.Error):
        return ""


def _kaggle_secret(name: str) -> str:
    """Return a secret that was attached to the notebook (kaggle.com/docs/notebooks, "Secrets")."""
    try:
        from kaggle_secrets import UserSecretsClient

        return (UserSecretsClient().get_secret(name) or "").strip()
    except Exception:  # it has types of its own for no secret, no Internet and no login
        return ""


def _on_colab_page() -> bool:
    """Whether the shell is Colab's own; Colab Enterprise has no secrets for notebooks."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__module__.startswith("google.colab") and os.environ.get("VERTEX_PRODUCT") != "COLAB_ENTERPRISE"
