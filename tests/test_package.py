"""The package as a whole: what importing it costs, what its modules offer, and which way they depend on each other."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import helpers
from helpers.core import errors

PACKAGE = Path(helpers.__file__).parent
MODULES = {
    ".".join(("helpers", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
HEAVY = ("torch", "transformers", "unsloth", "trl", "datasets", "peft", "numpy", "matplotlib", "pyarrow", "scipy")

BESIDE = ("notebooks", "workshop", "tools", "scripts", "benchmarks", "templates")
"""Folders whose sources use the package."""

SUBCLASSING = ("helpers.training.callbacks",)
"""Modules whose classes are made from those of a heavy package, so that importing them imports it."""

DIRECTIONS = {
    "core": set(),
    "runtime": {"core"},
    "data": {"core"},
    "display": {"core", "data"},
    "model": {"core", "runtime", "data"},
    "memory": {"core", "runtime", "data", "model"},
    "training": {"core", "runtime", "data", "display", "model", "memory"},
    "export": {"core", "runtime", "data", "model", "memory"},
    "evaluation": {"core", "runtime", "data", "display", "model", "memory", "training", "export"},
    "workshop": {"core", "data"},
    "cli": {"core", "runtime", "data", "display", "model", "memory", "training", "export", "evaluation"},
}
"""The package's rooms, and which others the modules of each may import. What is not named here is a mistake."""


@cache
def tree(module):
    """Return the syntax tree of a module."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def exported(module):
    """Return what a module's `__all__` spells; a module without one offers nothing to other rooms."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


@cache
def defined(module):
    """Return the names that a module defines or exports."""
    names = set(exported(module)) | {node.name for node in tree(module).body if hasattr(node, "name")}
    targets = [t for n in tree(module).body if isinstance(n, ast.Assign | ast.AnnAssign) for t in ast.walk(n)]
    return names | {t.id for t in targets if isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store)}


def outside():
    """Return the syntax trees of the Python sources beside the package, tests apart, by their paths."""
    paths = [path for folder in BESIDE for path in sorted((PACKAGE.parent / folder).rglob("*")) if path.is_file()]
    sources = [path for path in paths if path.suffix == ".py" or path.read_bytes().startswith(b"#!/usr/bin/env py")]
    return {str(path): ast.parse(path.read_text(encoding="utf-8")) for path in sources}


def uses(code):
    """Yield (module of this package, name) for each name that a source imports, or reads as a module's attribute."""
    modules = {}
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            for alias in node.names:
                if (whole := f"{node.module}.{alias.name}") in MODULES:
                    modules[alias.asname or alias.name] = whole
                else:
                    yield node.module, alias.name
        elif isinstance(node, ast.Import):
            modules |= {a.asname or a.name: a.name for a in node.names if a.name in MODULES}
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute) and (module := modules.get(ast.unparse(node.value))):
            yield module, node.attr


def public_definitions(module):
    """Return the functions and classes that a module defines under a public name."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree(module).body if isinstance(node, kinds) and not node.name.startswith("_")]


def public_functions(module):
    """Return the public functions of a module and the public methods of its public classes."""
    for node in public_definitions(module):
        if isinstance(node, ast.ClassDef):
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
            yield from (each for each in node.body if isinstance(each, kinds) and not each.name.startswith("_"))
        else:
            yield node


def statements(node):
    """Yield a node and all within it, but for what only type checkers read."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from statements(child)


@cache
def imported_names(module):
    """Return (module of this package, name) for each name that a module imports from the package, anywhere in it."""
    return list(_imported_names(module))


def _imported_names(module):
    for node in statements(tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, None) if whole in MODULES else (node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "helpers")


def unit(module):
    """Return the room that a module is in."""
    return module.split(".")[1] if "." in module else "helpers"


@cache
def reached(module):
    """Return every module that a module imports, itself or by way of others."""
    found, waiting = set(), [module]
    while waiting:
        for source, _ in imported_names(waiting.pop()):
            if source not in found and source != "helpers":
                found.add(source)
                waiting.append(source)
    return found


def fresh_import(names):
    """Import modules in a fresh interpreter; return the seconds it took and the heavy packages that came along."""
    code = (
        "import json, sys, time; began = time.perf_counter()\n"
        f"import {names}\n"
        f"print(json.dumps([time.perf_counter() - began, [n for n in {HEAVY} if n in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


class TestImport:
    """What `import helpers` costs."""

    def test_it_takes_less_than_a_tenth_of_a_second(self):
        """The best of three fresh processes imports the package in under 0.1 s."""
        assert min(fresh_import("helpers")[0] for _ in range(3)) < 0.1

    def test_no_module_loads_anything_heavy(self):
        """Importing every module but those with a heavy subject loads no model library."""
        light = [m for m in MODULES if unit(m) != "evaluation" and not m.endswith("__main__") and m not in SUBCLASSING]
        loaded = set(fresh_import(", ".join(light))[1])
        assert loaded.isdisjoint({"torch", "transformers", "unsloth", "trl", "datasets", "peft"})

    def test_the_package_itself_loads_nothing_heavy(self):
        """`import helpers` loads none of the packages that take long."""
        assert fresh_import("helpers")[1] == []

    def test_a_helpers_error_is_at_the_top(self):
        """What a caller needs to catch is importable from the package."""
        assert helpers.HelpersError is errors.HelpersError


class TestModules:
    """What each module promises."""

    def test_exports_are_what_others_use(self):
        """`__all__` has what other rooms, notebooks, the workshop, tools, scripts and benchmarks use; 400 at most."""
        used = {module: set() for module in MODULES}
        used["helpers"] = {"HelpersError", "__version__"}  # for whoever embeds the package
        for user, code in {**{m: tree(m) for m in MODULES}, **outside()}.items():
            for source, name in uses(code):
                if unit(source) != unit(user) and not name.startswith("__"):
                    used[source].add(name)
        listed = {module: set(exported(module)) for module in MODULES}
        assert {m: (used[m] - names, names - used[m]) for m, names in listed.items() if names != used[m]} == {}
        assert sum(len(names) for names in listed.values()) <= 400

    def test_exports_are_sorted(self):
        """`__all__` has constants first, then classes, then functions, each in the order of the alphabet."""
        names = {module: [n for n in exported(module) if n != "__version__"] for module in MODULES}
        order = lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name)  # noqa: E731
        assert [module for module, listed in names.items() if listed != sorted(listed, key=order)] == []

    def test_modules_take_names_from_where_they_are_made(self):
        """A name that a module imports is defined in its source, or stands in the `__all__` of a face; none begins with
        an underscore.
        """
        found = [(m, source, name) for m in MODULES for source, name in imported_names(m) if name]
        assert [each for each in found if each[2] not in defined(each[1]) or each[2].startswith("_")] == []

    def test_public_names_are_described(self):
        """Each module, public function, class and method has a docstring."""
        assert [module for module in MODULES if not ast.get_docstring(tree(module))] == []
        described = [(m, node) for m in MODULES for node in [*public_definitions(m), *public_functions(m)]]
        assert [(module, node.name) for module, node in described if not ast.get_docstring(node)] == []

    def test_public_functions_are_annotated(self):
        """Each argument and result of a public function has a type."""
        missing = []
        for module, node in [(m, node) for m in MODULES for node in public_functions(m)]:
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [each for each in (node.args.vararg, node.args.kwarg) if each]
            bare = [each.arg for each in arguments if not each.annotation and each.arg not in ("self", "cls")]
            if bare or node.returns is None:
                missing.append((module, node.name, bare))
        assert missing == []

    def test_examples_are_true(self):
        """The examples in docstrings give what they show; there are more than twenty."""
        modules = [importlib.import_module(module) for module in MODULES if not module.endswith("__main__")]
        results = {module.__name__: doctest.testmod(module) for module in modules}
        assert [name for name, result in results.items() if result.failed] == []
        assert sum(result.attempted for result in results.values()) > 20


class TestDependencies:
    """Which modules may know of which."""

    def test_they_form_no_circle(self):
        """No module imports itself by way of others."""
        assert [module for module in MODULES if module in reached(module)] == []

    def test_every_module_is_in_a_room(self):
        """Nothing is flat in the package but its face and the command line's entry; the table names every room."""
        flat = {module for module in MODULES if module.count(".") == 1 and MODULES[module].name != "__init__.py"}
        assert flat == {"helpers.__main__"}
        assert {unit(module) for module in MODULES} - {"helpers", "__main__"} == set(DIRECTIONS)

    def test_the_table_is_a_stair(self):
        """Each room may know only of rooms that stand before it in the table."""
        rooms = list(DIRECTIONS)
        assert [room for room, known in DIRECTIONS.items() if not known <= set(rooms[: rooms.index(room)])] == []

    def test_they_point_down(self):
        """The modules of a room import from their own room and from those that the table names."""
        found = [(m, source) for m in MODULES if unit(m) in DIRECTIONS for source, _ in imported_names(m)]
        found = [(m, source) for m, source in found if unit(source) not in {"helpers", unit(m), *DIRECTIONS[unit(m)]}]
        assert found == []

    def test_the_face_of_the_package_knows_only_errors(self):
        """`helpers` itself imports nothing but its errors."""
        assert {source for source, _ in imported_names("helpers")} == {"helpers.core.errors"}

    def test_the_libraries_calls_stand_in_the_notebooks(self):
        """Nothing in training or the command line loads a model, attaches an adapter, or builds a trainer."""
        shown = {"from_pretrained", "get_peft_model", "SFTTrainer", "SFTConfig", "LoraConfig", "save_pretrained"}
        modules = [module for module in MODULES if unit(module) in ("training", "cli")]
        made = [(m, node) for m in modules for node in ast.walk(tree(m)) if isinstance(node, ast.Call)]
        calls = {(module, ast.unparse(node.func).split(".")[-1]) for module, node in made}
        # the chat in a terminal has no cells that would show how its model is loaded
        assert {call for call in calls if call[1] in shown} == {("helpers.cli.chat", "from_pretrained")}

    def test_unsloth_is_imported_in_few_places(self):
        """`helpers.model.load` imports unsloth and the chat loads with it; one switches its modes, four mend it."""
        importers = {
            module
            for module in MODULES
            for node in ast.walk(tree(module))
            if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "unsloth" for a in node.names))
            or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "unsloth")
        }
        assert importers <= {
            "helpers.cli.chat",
            "helpers.model.decoding.answers",
            "helpers.model.load",
            "helpers.model.patches.attention",
            "helpers.model.patches.cuda_graphs",
            "helpers.model.patches.fused_adapters",
            "helpers.model.patches.optimizer_step",
            "helpers.model.patches.unpacked",
        }


class TestErrors:
    """The errors that users read."""

    def test_the_tree_in_the_docstring_is_the_classes(self):
        """The docstring names each error class once, with what the class says of itself."""
        described = dict(re.findall(r"[├└]── (\w+) +(.+)", errors.__doc__))
        classes = [name for name, value in vars(errors).items() if isinstance(value, type) and name != "HelpersError"]
        assert sorted(described) == sorted(classes)
        assert {"HelpersError", *described} == set(errors.__all__)

    def test_every_error_is_a_helpers_error(self):
        """One except clause catches all of them."""
        assert all(issubclass(getattr(errors, name), errors.HelpersError) for name in errors.__all__)

    def test_the_message_has_four_parts(self):
        """Field, expectation, value and remedy stand in the message, in this order."""
        error = errors.ConfigError("max_steps", "a whole number of at least 1", -3, "Use 60 for a short run.")
        assert str(error) == "max_steps: expected a whole number of at least 1, got -3. Use 60 for a short run."
        assert (error.field, error.expected, error.got, error.remedy) == error.args

    def test_a_message_without_a_remedy_ends_with_the_value(self):
        """An error whose expectation says it all has no trailing space."""
        assert str(errors.DataError("row 3", "text", None)) == "row 3: expected text, got None."

    def test_long_values_are_cut(self):
        """At most 200 characters of a value are shown."""
        shown = str(errors.DataError("row 3", "text", "x" * 1000)).partition("got ")[2]
        assert shown == "'" + "x" * 196 + "...."

    def test_errors_survive_another_process(self):
        """An error can be pickled, so that a worker's error reaches its parent whole."""
        import pickle

        error = pickle.loads(pickle.dumps(errors.RunError("run_name", "a new folder", "x", "Choose another.")))
        assert str(error) == "run_name: expected a new folder, got 'x'. Choose another."
