"""`python -m helpers runs`: which runs there are, how they ended, and in what they differ. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.core.errors import RunError
from helpers.core.files import read_json
from helpers.core.lock import find_holder
from helpers.core.runs import MANIFEST, RunDirectory, runs_root
from helpers.core.settings import nearest
from helpers.core.text import format_bytes, format_number, format_table, visible
from helpers.training.checkpoints import STATE, step_folders
from helpers.training.curves import judge_curve

__all__ = ["add_commands"]


@dataclass(frozen=True)
class _RunSummary:
    """One run, as far as its files say.

    Args:
        state: "complete", "running", "interrupted", "failed" or "damaged".
        metrics: Losses and speed: of `metrics.json`, or of the newest checkpoint while training is not done.
        manifest: Everything else that it wrote down.
        note: Why it failed, who is writing it, or what is damaged.
    """

    name: str
    state: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    step: int = 0

    def losses(self) -> tuple[float | None, float | None]:
        """Return the held-out loss before training and the last one, in nats a token."""
        points = self.metrics.get("eval_loss") or []
        return (points[0][1], points[-1][1]) if points else (None, None)


def add_commands(commands: Any) -> None:
    """Add `runs`, `runs show NAME` and `runs compare A B` to a command line.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned. Each command sets `command`, a function of the parsed
            options that returns the exit status.
    """
    parser = commands.add_parser("runs", help="list the runs, show one, or compare two")
    parser.set_defaults(command=lambda options: _say(list_runs(read_runs())))
    actions = parser.add_subparsers(metavar="ACTION")
    show = actions.add_parser("show", help="show one run")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(command=lambda options: _say(show_run(read_run(options.name))))
    compare = actions.add_parser("compare", help="say in what two runs differ")
    compare.add_argument("names", nargs=2, metavar="NAME")
    compare.set_defaults(command=lambda options: _say(compare_runs(*map(read_run, options.names))))


def read_runs() -> list[_RunSummary]:
    """Return a summary of each folder with a manifest, by name; a damaged one says so."""
    return [_read(RunDirectory(path)) for path in _folders()]


def read_run(name: str) -> _RunSummary:
    """Read one run.

    Raises:
        RunError: There is no run of this name.
    """
    folders = {path.name: path for path in _folders()}
    if name not in folders:
        remedy = nearest(name, list(folders)) if folders else "There are none."
        raise RunError("NAME", f"a run in {runs_root()}", name, remedy)
    return _read(RunDirectory(folders[name]))


def _folders() -> list[Path]:
    """Return the folders that hold a run, by name."""
    root = runs_root()
    return sorted(path for path in root.iterdir() if (path / MANIFEST).exists()) if root.is_dir() else []


def list_runs(runs: Sequence[_RunSummary]) -> str:
    """Return a table of runs: state, steps, held-out loss, verdict, and the parameters in which they stand out."""
    if not runs:
        return f"no runs in {runs_root()}"
    usual = _usual(runs)
    lines = [("run", "state", "steps", "held-out loss", "curve", "differs from most in")]
    for run in runs:
        own = {k: v for k, v in run.parameters.items() if k in usual and usual[k] != v}
        differs = ", ".join(f"{k}={v}" for k, v in own.items())
        before, after = run.losses()
        loss = f"{before:.3f} -> {after:.3f}" if before is not None and after is not None else "-"
        verdict = judge_curve(run.metrics).kind if run.metrics else "-"
        lines.append((run.name, run.state, str(run.step), loss, verdict, differs or "-"))
    return format_table(lines)


def show_run(run: _RunSummary) -> str:
    """Return what one run was told, did and found, in lines of text."""
    manifest, metrics = run.manifest, run.metrics
    before, after = run.losses()
    facts = {
        "state": f"{run.state} ({run.note})" if run.note else run.state,
        "started": manifest.get("started"),
        "resumed": ", ".join(manifest.get("resumed") or []),
        "finished": manifest.get("finished") if run.state == "complete" else None,
        "steps": run.step,
        "held-out loss": f"{before:.4f} -> {after:.4f} nats a token" if before is not None else None,
        "curve": judge_curve(metrics).text if metrics else None,
        "training": f"{metrics['train_seconds']:.0f} s in steps" if metrics.get("train_seconds") is not None else None,
        "data": manifest.get("data_source"),
        "base model": manifest.get("base_model"),
        "code": manifest.get("git_commit"),
    }
    lines = [run.name, *(f"  {name:<14} {value}" for name, value in facts.items() if value not in (None, ""))]
    return "\n".join([*lines, "", "parameters", *(f"  {k:<24} {v}" for k, v in run.parameters.items())])


def compare_runs(a: _RunSummary, b: _RunSummary) -> str:
    """Return in what two runs differ: parameters, inputs and results."""
    rows: list[tuple[Any, ...]] = [("", a.name, b.name), ("state", a.state, b.state)]
    names = [n for n in {**a.parameters, **b.parameters} if n != "run_name"]
    rows += [(n, x, y) for n in names if (x := a.parameters.get(n)) != (y := b.parameters.get(n))]
    inputs = ("data_fingerprint", "template_sha256", "git_commit")
    rows += [(n, _short(x), _short(y)) for n in inputs if (x := a.manifest.get(n)) != (y := b.manifest.get(n))]
    rows.append(("steps", a.step, b.step))
    for place, name in enumerate(("held-out loss before", "held-out loss after")):
        rows.append((name, *(format_number(run.losses()[place], places=4) for run in (a, b))))
    for name in ("train_seconds", "tokens_per_second"):
        rows.append((name, *(format_number(run.metrics.get(name), places=1) for run in (a, b))))
    peaks = [run.metrics.get("peak_memory_bytes") for run in (a, b)]
    rows.append(("peak memory", *(None if peak is None else format_bytes(peak) for peak in peaks)))
    prints = {run.manifest.get("data_fingerprint") for run in (a, b)} - {None}
    note = "\nThe rows differ, so the held-out losses cannot be compared." if len(prints) > 1 else ""
    return format_table([tuple("-" if v is None else str(v) for v in row) for row in rows]) + note


def _read(run: RunDirectory) -> _RunSummary:
    """Read one run's files, whatever state they are in."""
    try:
        manifest, metrics = run.manifest(), run.metrics()
        state, note = _state(run, manifest)
        metrics = metrics if metrics and state == "complete" else _last_metrics(run) or metrics
        step = metrics["train_loss"][-1][0] if metrics.get("train_loss") else 0
        summary = _RunSummary(
            run.path.name, state, dict(manifest.get("parameters") or {}), metrics, manifest, note, step
        )
        show_run(summary), list_runs([summary]), compare_runs(summary, summary)  # what cannot be shown is damaged
        return summary
    except (RunError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        return _RunSummary(run.path.name, "damaged", note=str(error))


def _state(run: RunDirectory, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Return a run's state and a note on it."""
    said, holder = manifest.get("state"), find_holder(run.path)
    if said == "complete":
        return "complete", ""
    if said == "failed":
        return "failed", str(manifest.get("failure") or "")
    if said == "running" and holder is not None:
        return "running", f"by {holder}"
    return "interrupted", "running it again goes on from the last complete checkpoint"


def _last_metrics(run: RunDirectory) -> dict[str, Any]:
    """Return the losses and times that the newest readable checkpoint holds."""
    for path in step_folders(run.checkpoints):
        try:
            return read_json(path / STATE)["result"]
        except (RunError, KeyError):
            continue
    return {}


def _usual(runs: Sequence[_RunSummary]) -> dict[str, Any]:
    """Return, of each parameter that is not the same in all runs, the value that most have."""
    usual = {}
    for name in {k: None for run in runs for k in run.parameters if k != "run_name"}:
        values = Counter(repr(run.parameters[name]) for run in runs if name in run.parameters)
        if len(values) > 1:
            common = values.most_common(1)[0][0]
            usual[name] = next(r.parameters[name] for r in runs if repr(r.parameters.get(name, ...)) == common)
    return usual


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) else value


def _say(text: str) -> int:
    print(visible(text))
    return 0
