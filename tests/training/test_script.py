"""Executed cells as a plain script: what is written, what is refused, and that both compute the same."""

from __future__ import annotations

import contextlib
import io
import random
import re
from types import SimpleNamespace

import pytest

from helpers.core.config import build_config
from helpers.core.errors import RunError
from helpers.core.runs import RunDirectory
from helpers.data.chat_templates import (
    CHATML,
    MISTRAL_TEKKEN,
    MISTRAL_V1,
    MISTRAL_V1_LEGACY,
    MISTRAL_V3,
    ChatTemplate,
    masked_template,
)
from helpers.data.rows import DrawnRows, Rows, SeededRows
from helpers.training.machine import Machine, StepLayout
from helpers.training.program import Cell, find_program, read_cells
from helpers.training.script import (
    copy_inputs,
    executed_cells,
    make_script,
    read_script,
    script_values,
    template_recipes,
    write_script,
)
from helpers.training.script_cells import write_cells

CFG = SimpleNamespace(
    words="a b",
    odd={"a b": 1},
    rate=0.5,
    low=-2,
    style="chat",
    extra={"a": 1},
    nothing=None,
    sizes=[3, 1],
    dtype="float32",
)
"""What stands for a notebook's values."""

WATCHER = Machine("fp32", {}, {}, {})
"""What stands for a callback of this package: any object of it."""

PACKAGE = "from helpers.training.speed import fast_training\nfrom helpers.training.machine import fit_layout\n"


def cell(text, *tags):
    """Return a cell."""
    return Cell(0, tags, text)


def write(core, between="", **values):
    """Return the script of one core cell after a cell that binds the values, before another one that runs later."""
    values = {"cfg": CFG, "watcher": WATCHER, **values}
    before = PACKAGE + "\n".join(f"{name} = ..." for name in values if name not in ("a", "data", "layout"))
    parts = core.split("\n%%\n")
    cells = [cell(before), cell(parts[0], "core"), cell(between), *(cell(part, "core") for part in parts[1:])]
    return write_cells(cells, values)


class TestRules:
    """What is written of a cell of the training."""

    @pytest.mark.parametrize(
        ("core", "expected"),
        [
            ("x = f(cfg.rate)  # said", "x = f(0.5)  # said"),
            ("x = cfg.low ** 2 - cfg.low", "x = 6"),
            ("a = 2\nx = cfg.low ** a", "a = 2\nx = (-2) ** a"),
            ("a = cfg.rate; b = 2  # both", "a = 0.5\nb = 2  # both"),
            ("x = f(b=cfg.rate, **cfg.extra)", "x = f(b=0.5, a=1)"),
            ("x = f(\n    b=1,  # b\n    **cfg.extra,\n    **{},\n)", "x = f(\n    b=1,  # b\n    a=1,\n    **{},\n)"),
            ("x = f(1, callbacks=[watcher])", "x = f(1)"),
            ("x = f(callbacks=[watcher], a=2)", "x = f(a=2)"),
            ("x = f(\n    1,\n    callbacks=[watcher],  # watches\n)", "x = f(\n    1,\n)"),
            ("m = 1\nx = f(callbacks=[watcher, m])", "m = 1\nx = f(callbacks=[m])"),
            ("t = 1\nt.train(resume_from_checkpoint=watcher.latest(t))", "t = 1\nt.train()"),
            ('x.y = 1 if cfg.style == "alpaca" else (\n    cfg.rate\n)', "x.y = 0.5"),
            ("x = getattr(t, cfg.words) or f(**cfg.odd)", 'x = getattr(t, "a b") or f(**{"a b": 1})'),
            ("x = f(a=cfg.nothing, b=1)", "x = f(a=None, b=1)"),
            ("print(cfg)\nx = f(2)\nprint(x)\nx", "x = f(2)"),
            ("x = 1\nprint(f(x))\nprint(x, file=x)", "x = 1\nprint(f(x))\nprint(x, file=x)"),
            ("x = f(getattr(torch, cfg.dtype), {'a': cfg.style})", 'x = f(torch.float32, {"a": "chat"})'),
            ('if cfg.style == "chat":\n    # here\n    x = 1\nelse:\n    x = 2', "# here\nx = 1"),
            ('if cfg.nothing:\n    x = 1\nelif cfg.rate < 1:\n    x = """\n    a\n  b"""', 'x = """\n    a\n  b"""'),
            ("if not cfg.rate: x = 1\ny = 3  # said", "y = 3  # said"),
            ("with fast_training(t, watcher):\n    x = 1\n\n    # two\n    y = 2", "x = 1\n\n# two\ny = 2"),
            ("with fast_training(t) as to:\n    x.save(to)", 'x.save("to")'),
            ("x = f(min(cfg.rate, 2))", "x = f(0.5)"),
            ("x = y.select(numbers)", "x = y.select([i for i in range(9) if i not in {3}])"),
            ("x = y.select(several)", "x = y.select(range(5))"),
            ("x = f(several)", "x = f(list(range(5)))"),
            ("layout = fit_layout(cfg)\nx = f(layout.size)", "x = f(7)"),
            ("a = cfg.sizes\nx = f(a)", "x = f([3, 1])"),
            ("cfg = 3\nx = f(cfg)", "cfg = 3\nx = f(cfg)"),
            ("def g(cfg):\n    return cfg.rate", ""),
            ("def g(a=f()):\n    return a", "def g(a=f()):\n    return a"),
            ("def g(cfg):\n    return cfg.rate\nx = g(1)", "def g(cfg):\n    return cfg.rate\n\n\nx = g(1)"),
            ("@f\ndef g(a=cfg.rate):\n    # b\n\n    return a", "@f\ndef g(a=0.5):\n    # b\n\n    return a"),
            ("# one\n\n# two\nx = f(1)  # noqa: S101\n\n\ny = 1", "# one\n# two\nx = f(1)\n\ny = 1"),
            ("x = y + \\\n    cfg.rate", "x = y + \\\n    0.5"),
            ("from peft import A, B  # isort: skip\nx = A", "from peft import A, B\n\nx = A"),
        ],
    )  # fmt: skip
    def test_cells_are_written_with_values(self, core, expected):
        """Values are put in, branches taken, and what watches or shows is left out; the rest of the text stays."""
        values = {"numbers": [0, 1, 2, 4, 5, 6, 7, 8], "several": [0, 1, 2, 3, 4], "layout": SimpleNamespace(size=7)}
        values["a"] = CFG.sizes
        script = write(f"import f, t, torch, x, y\n{core}", **values)
        assert script.removeprefix("import f, t, torch, x, y").strip() == expected

    @pytest.mark.parametrize(
        ("core", "field"),
        [
            ("x = cfg", None),
            ("x = f(cfg)", "cfg"),
            ("x = other", "other"),
            ("x = [limit for limit in (1, 2)] + [limit]", "limit"),
            ("limit += 1", "limit"),
            ("for limit in (1, 2):\n    pass", "limit"),
            ("if f():\n    limit = 2", "limit"),
            ("def g():\n    global limit\n    limit = 2", "limit"),
            ("limit = limit + 1", "limit"),
            ("cfg.rate = 2", "cfg"),
            ("cfg.sizes[0] += 2", "cfg"),
            ("del cfg.extra['a']", "cfg"),
            ("cfg.sizes.append(1)", "cfg.sizes"),
            ("x = cfg.extra.pop('a')", "cfg.extra"),
            ("f(cfg.sizes)", "cfg.sizes"),
            ("a = cfg.sizes\na.append(1)", "a"),
            ("class A:\n    limit = limit", "limit"),
            ("import helpers\nx = helpers.f()", "helpers"),
            ("x = f(fit_layout(cfg))", "cfg"),
            ("x = f(fit_layout(1))", "fit_layout"),
            ("with fast_training(t), open(t):\n    x = 1", "fast_training"),
            ("x = f(callbacks=[cfg])", "cfg"),
            ("from math import *", "cell"),
            ("x = await f()", "cell"),
            ("return f", "cell"),
            ("get_ipython().run_line_magic('time', 'x = 1')", "get_ipython"),
            ("get_ipython().system('ls')", "get_ipython"),
            ("get_ipython().run_cell_magic('time', '', 'x = 1')", "get_ipython"),
            ("x = eval('cfg')", "eval"),
            ("x = 1\n%%\ny = x + again", "again"),
        ],
    )
    def test_what_cannot_be_written_is_refused(self, core, field):
        """By its name, with the statement; nothing is guessed."""
        if field is None:
            assert write(core) == ""
            return
        with pytest.raises(RunError) as caught:
            write(f"import f, t\n{core}", between="again = 1\nagain = 2", limit=7)
        assert caught.value.field == field
        assert "restart the kernel and run all cells" in caught.value.remedy

    @pytest.mark.parametrize("between", ["x = 2", "x.y = 2", "del x['y']", "limit = 8"])
    def test_what_other_cells_change_is_refused(self, between):
        """A name of the script, a part of one, or a value that was read."""
        with pytest.raises(RunError, match=r"expected (a name that only|what only|a value that is bound once)"):
            write("x = limit\n%%\ny = x", between=between, limit=7)

    @pytest.mark.parametrize("template", [MISTRAL_V3, MISTRAL_TEKKEN, MISTRAL_V1, MISTRAL_V1_LEGACY, CHATML])
    def test_the_template_stands_once(self, template):
        """The one with marks around the answers is written as a change of one line."""
        tokenizer = SimpleNamespace(chat_template=template)
        masked = masked_template(tokenizer)
        values = template_recipes(ChatTemplate("own", template, masked, ""))
        core = "import g, tokenizer\ntokenizer.chat_template = template.text\n%%\nx = g(text=template.masked)"
        text = write(core, template=values).removeprefix("import g, tokenizer")
        found = {"tokenizer": SimpleNamespace(), "g": dict}
        exec(text, found)
        assert found["tokenizer"].chat_template == template
        assert found["x"] == {"text": masked}
        assert len(text.strip().splitlines()) == template.count("\n") + 10

    def test_rows_are_drawn_by_their_seed(self):
        """The lines that draw them come once, before their first use, and only if they draw the same here."""
        lines = ["import random", "order = random.Random(3).sample(range(3), 3)"]
        rows = SeededRows([0, 2], lines, "order[:2]")
        core = "import data\nx = data.select(rows)\ny = data.select(rows)"
        assert write(core, rows=rows) == (
            "import random\n\nimport data\n\norder = random.Random(3).sample(range(3), 3)\n"
            "x = data.select(order[:2])\ny = data.select(order[:2])"
        )
        assert write(f"{core}\norder = 2", rows=rows).count("data.select([0, 2])") == 2
        assert "data.select([2, 1])" in write(core, rows=SeededRows([2, 1], lines, "order[:2]"))
        lines = [
            "from helpers.data.selection import in_proportion",
            'order = in_proportion(range(3), data["kind"].__getitem__)',
        ]
        text = write(core, rows=SeededRows([0, 2, 1], lines, "order"), data={"kind": "aab"})
        assert text.startswith("from collections import Counter\nfrom collections.abc import Callable, Sequence\n")
        assert "def in_proportion(" in text
        assert text.endswith("x = data.select(order)\ny = data.select(order)")
        assert "data.select([0, 2, 1])" in write(f"{core}\ndata = 2", rows=SeededRows([0, 2, 1], lines, "order"))

    def test_functions_of_the_data_are_written_out(self):
        """With what they need, without docstring, and only if they are called; one that reads files is refused."""
        text = write("from helpers.data.prompts import alpaca_block, clean_references\nx = alpaca_block('a')")
        assert text.startswith("ALPACA_PREAMBLE = ")
        assert '"""' not in text
        assert "clean_references" not in text
        assert "helpers" not in text
        found = {}
        exec(text, found)
        assert found["x"].endswith("### Instruction:\na\n\n### Response:\n")
        text = write("from helpers.data.prompts import clean_references\nx = clean_references('Built in 1901.[2]')")
        exec(text, found)
        assert found["x"] == "Built in 1901."
        assert "  # as in items[1]" in text
        with pytest.raises(RunError, match="no more than texts and other functions"):
            write("from helpers.data.rows import read_sample\nx = read_sample('alpaca', 'train')")
        with pytest.raises(RunError, match="ALPACA_PREAMBLE: expected no such name but this package's"):
            write("from helpers.data.prompts import alpaca_block\nALPACA_PREAMBLE = 1\nx = alpaca_block('a')")

    def test_no_path_of_the_machine_stands_in_it(self):
        """Its first lines say which of the run's files it reads."""
        cells = [cell("source = ..."), cell("import f\nx = f(**source)", "core")]
        values = {"source": {"data_files": {"train": "rows_train.jsonl"}}}
        text = make_script(cells, values, title="mine", notes=["So it is."])
        assert text == (
            '"""mine: the training alone, with this run\'s values, for one process.\n\n'
            "It reads rows_train.jsonl, which `python -m helpers eject mine -o FILE` puts beside it. So it is.\n"
            '"""\n\nimport f\n\nx = f(data_files={"train": "rows_train.jsonl"})\n'
        )

    def test_what_it_reads_is_put_beside_it(self, tmp_path):
        """Rows are copied from the run's folder."""
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        (run.path / "rows_train.jsonl").write_text("{}")
        assert copy_inputs(run, 'f("rows_train.jsonl")', tmp_path) == ["rows_train.jsonl"]
        assert (tmp_path / "rows_train.jsonl").read_text() == "{}"


OTHERS = """\
from types import SimpleNamespace
text = "a\\n  'b' \\"c\\""
cfg = SimpleNamespace(rate=0.5, name="chat", low=-2, sizes=[3, 1, 2], extra={"c": 1}, none=None, text=text)
limit, steps, seed = 7, 20, 11
numbers, several = [0, 1, 2, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4]"""
"""A cell whose names are values."""

OWN = """\
import contextlib
def g(*args, a=0, b=0, **more): return sum(args) + a + 2 * b + len(more)
def deco(f): return lambda *args: f(*args) + 1
class H: chat = "abc"
h = H()"""
"""A cell of the training."""

ATOMS = (
    "cfg.rate", "cfg.low", "limit", "min(limit, 3)", "steps // 2", "cfg.sizes[0]", 'cfg.extra["c"]', "seed", "5",
    "len(cfg.name)", "max(cfg.sizes)", "cfg.low ** 2", "-cfg.low", "(limit if cfg.none else steps)", "sum(numbers)",
    "len(f'{cfg.name} {limit!r:>5}')", "len(cfg.text)", "cfg.name.count(cfg.name)", "sum(q * limit for q in cfg.sizes)",
    "len(several)", "sum(limit for limit in (1, 2))", "len(getattr(h, cfg.name))",
)  # fmt: skip
JOINTS = (
    "({} + {})", "({} if {} > 3 else cfg.low)", "g({}, b={}, **cfg.extra)", "g(*[{}, {}])", "(lambda q: q - {})({})",
    "g(\n    {},  # first\n    b={},\n    **cfg.extra,  # all\n)", "[{}, {}][cfg.low]", "len(f'{{{}}} of {{{}}} cfg')",
)  # fmt: skip
WRITTEN = (
    "X = A", "X = A; Y = B  # both", "X, Y = A, B", "X = Y = A", "# said\nX = A  # why", "X: int = A",
    "X = A + \\\n    B", "h.rate = A\nX = h.rate", "X = {}\nX[A] = B", "X = A\nX += B", "X = 1 + (Y := A)",
    "@deco\ndef X(q):\n    return q + A  # q\n\n\nY = X(2)", "def Z():\n    global X\n    X = A\nZ()",
    "def Z(q, limit=limit):\n    '''Doc.'''\n    def z(r):\n        return r + q\n\n    return z(A)\nX = Z(1)",
    "X = '''a\n  b {cfg}\n    c'''", "X = [q for q in cfg.sizes if q > A]", "X = 'ä' + cfg.text + '€';",
    "if steps:\n    # in\n    X = A\n    Y = '''a\n    b\n  c'''\nelif limit > 3:\n    X = 2\nelse:\n    X = 3",
    "if cfg.none:\n    X = A\nelif limit > 3:\n    X = B; Y = '''q\n    w'''\nelse: X = 3",
    "if A > 2: X = B\nelse: X = A",
    "X = 0\nfor Z in range(3):\n    X += Z * A", "with contextlib.nullcontext(A) as X:\n    Y = X + B",
    "try:\n    X = A\nexcept ValueError as error:\n    X = 0", "print(A)\ncfg\nX = B\nX", "X = sorted(cfg.sizes)",
    "class Z:\n    rate = A\n    def f(self, cfg):\n        return cfg\nX = Z().f(1) + Z.rate", "X = several == [0, 1]",
    "match limit:\n    case 7:\n        X = A\n    case _:\n        X = 0", "assert A < 10**9, cfg.name\nX = B",
    "X = limit if not steps else (\n    A  # a\n    + B  # b\n)", "X = f'''{cfg.name}\n  {A}'''",
    "X = {**cfg.extra, 1: A}",
)  # fmt: skip
DOUBTFUL = (
    "cfg.rate = A", "cfg.extra['c'] = 3", "cfg.sizes.append(3)", "seed = A\nX = seed", "limit += 1", "del limit",
    "seed, X = A, 2", "for seed in range(3):\n    pass", "if A > 2:\n    steps = 3", "sorted(cfg.sizes)",
    "import json as limit", "Z = cfg.sizes\nZ.append(1)", "from math import *\nX = floor(A)", "exec('limit = 3')",
    "X = cfg.extra.setdefault('z', 4)", "class Z:\n    seed = seed", "def Z():\n    global seed\n    seed = 3\nZ()",
    "X = list(map(lambda limit: limit, numbers)) + [limit]", "X = (lambda cfg: cfg + 1)(limit)",
)  # fmt: skip
BETWEEN = ("limit = 9", "x00 = 3", "unused = 1", "cfg = SimpleNamespace(rate=1)", "h.rate = 3")


def made_cells(seed):
    """Return cells of random statements: X and Y become names that are compared, A and B expressions."""
    draw = random.Random(seed)
    bound = []

    def expression(depth=0):
        if depth == 2 or draw.random() < 0.5:
            return draw.choice([*ATOMS, *bound[-3:]])
        return draw.choice(JOINTS).format(expression(depth + 1), expression(depth + 1))

    cells = [cell(OTHERS), cell(OWN, "core")]
    for number in range(draw.randint(1, 3)):
        lines = []
        for place in range(draw.randint(1, 3)):
            shape = draw.choice(DOUBTFUL if draw.random() < 0.05 else WRITTEN)
            names = {name: f"{name.lower()}{number}{place}" for name in "XYZ"}
            names |= {name: expression() for name in "AB"}
            lines.append(re.sub(r"\b[ABXYZ]\b", lambda found, names=names: names[found[0]], shape))
            bound += [names["X"]] if shape == "X = A" else []
        cells.append(cell("\n".join(lines), "core"))
        if draw.random() < 0.05:
            cells.append(cell(draw.choice(BETWEEN)))
    return cells


def test_a_script_computes_what_its_cells_did():
    """Notebooks of random statements: each is refused, or its script binds the same values."""
    written = refused = 0
    for seed in range(300):
        cells, ran, found = made_cells(seed), {"__name__": "a"}, {"__name__": "a"}
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                for each in cells:
                    exec(compile(each.text, "cell", "exec"), ran)
            except (AttributeError, IndexError, NameError, SyntaxError, TypeError, ValueError):
                continue  # such cells do not run
            try:
                script = write_cells(cells, ran)
            except RunError:
                refused += 1
                continue
            exec(compile(script, "script", "exec"), found)
        written += 1
        for name, value in ran.items():
            if name[0] in "xy" and not callable(value):  # a list or dictionary of values alone may be left out
                assert name in found or isinstance(value, (dict, list)), script
                assert repr(found.get(name, value)) == repr(value), script
    assert written > 120
    assert refused > 20


class TestRun:
    """A run's script: written after the training, read by a command."""

    CELLS = (cell("a", "main"), cell("first = 1", "core"), cell("b = 2", "notebook"), cell("last = first + 1", "core"))

    def test_cells_are_those_that_were_executed(self):
        """Edited or added, in the order of the last execution; what is not Python did not run."""
        edited = "last = first + 1  # mine\n\n"
        history = ["", "first = 2", "first = 1", "a", "x = ", "mine()", "last = first + 1", edited, "b = 2"]
        assert [(each.text, each.tags) for each in executed_cells(self.CELLS, history)] == [
            ("first = 1", ("core",)), ("a", ("main",)), ("mine()", ()), (edited.strip("\n"), ("core",)),
        ]  # fmt: skip
        assert [each.text for each in executed_cells(self.CELLS, ())] == ["a", "first = 1", "last = first + 1"]

    @pytest.mark.parametrize(
        "history",
        [
            ["first = 1"],
            ["last = first + 1", "first = 1"],
            ["first = 1", "last = first + 1", "first = 1"],
            ["first = 1", "last = 7 * other(3)"],
        ],
    )
    def test_cells_in_another_order_are_refused(self, history):
        """So is a training of which a cell did not run, or was edited beyond recognition."""
        with pytest.raises(RunError, match="cell: expected the training's cells to have run once, in their order"):
            executed_cells(self.CELLS, history)

    def test_a_cell_that_never_ran_does_not_count(self):
        """Python read it, and refused to compile it."""
        assert [
            each.text for each in executed_cells(self.CELLS, ["first = 1", "x = 3\nreturn x", "last = first + 1"])
        ] == [
            "first = 1",
            "last = first + 1",
        ]

    def test_a_value_that_is_bound_again_after_the_training_is_refused(self):
        """Its value at the end is not the one that the training read."""
        history = ["rate = 1", "first = rate", "last = first + 1", "rate = 2"]
        with pytest.raises(RunError, match="rate: expected a value that no cell changes after the training"):
            executed_cells((cell("first = rate", "core"), cell("last = first + 1", "core")), history)

    def test_a_cell_that_builds_upon_itself_may_run_once(self):
        """The second time it gives another result."""
        cells = [cell("rows = f(rows)", "core")]
        assert len(executed_cells(cells, ["rows = f(rows)"])) == 1
        with pytest.raises(RunError, match="to have run once"):
            executed_cells(cells, ["rows = f(rows)", "rows = f(rows)"])
        with pytest.raises(RunError, match="to have run once"):
            executed_cells([cell("await f()", "core")], ["await f()", "await f()"])

    def test_a_notebook_is_written_as_it_ran(self, tmp_path):
        """IPython's `In` has an edited cell; what was added and only shows is left out."""
        texts = [each.text for each in read_cells(find_program("alpaca_instruction"))]
        edited = [text.replace('lr_scheduler_type="linear"', 'lr_scheduler_type="cosine"') for text in texts]
        namespace = notebook()
        run = RunDirectory(tmp_path)
        script = write_script(run, {**namespace, "In": ["", *edited, "print(1)"]})
        assert 'lr_scheduler_type="cosine"' in script
        assert "print(1)" not in script
        assert read_script(run) == script
        assert 'lr_scheduler_type="linear"' in write_script(run, namespace)
        assert "`early_stopping`" not in script
        stopping = {**namespace, "config": build_config("alpaca", preset="smoke", early_stopping=2)}
        assert "`keep` and `early_stopping` are not in it" in " ".join(write_script(run, stopping).split())

    def test_a_training_that_cannot_be_written_leaves_the_reason(self, tmp_path):
        """Which the command gives; an earlier script is gone, and a later one replaces the reason."""
        texts = [each.text for each in read_cells(find_program("alpaca_instruction"))]
        edited = [text.replace("bias=", "layers=layers,\n    bias=") for text in texts]
        run, namespace = RunDirectory(tmp_path), notebook()
        write_script(run, namespace)
        text = write_script(run, {**namespace, "In": ["layers = object()", *edited], "layers": object()})
        said = 'layers: expected a value that is bound once and that Python can write, got "model = FastLanguageModel'
        assert text.startswith(f"No script: {said}")
        with pytest.raises(RunError, match="bound once and that Python can write"):
            read_script(run)
        assert not (tmp_path / "train.py").exists()
        write_script(run, namespace)
        assert read_script(run).startswith('"""')

    @pytest.mark.parametrize(
        ("added", "after"),
        [("cfg.learning_rate = 1.0", 1), ("cfg.learning_rate = 1.0", 99), ("machine.sft.update(a=1)", 1)],
    )
    def test_a_part_that_an_added_cell_changes_is_refused(self, tmp_path, added, after):
        """Wherever the cell stands: a value's part is taken as it is at the end."""
        texts = [each.text for each in read_cells(find_program("alpaca_instruction"))]
        place = next(at for at, text in enumerate(texts) if "SFTConfig(" in text)
        texts.insert(place + after, added)
        assert write_script(RunDirectory(tmp_path), {**notebook(), "In": ["", *texts]}).startswith("No script: ")

    def test_a_disk_s_refusal_is_no_refusal_of_the_cells(self, tmp_path):
        """It says what the disk said, as elsewhere."""
        (tmp_path / "train.py").mkdir()
        with pytest.raises(RunError, match="room for"):
            write_script(RunDirectory(tmp_path), notebook())

    def test_the_machine_s_values_become_those_of_one_process(self, tmp_path):
        """What is only shown is left out; files of the run lie beside the script."""
        files = {"train": str(tmp_path / "rows_train.jsonl"), "test": "/home/me/rows.jsonl"}
        rows = SeededRows([0])
        drawn = DrawnRows({"path": "json", "data_files": files}, "test", rows, rows, Rows([], [], "rows", 1))
        machine = Machine("fp32", {"use_safetensors": True}, {"bf16": True, "disable_tqdm": True}, {})
        namespace = {**notebook(), "drawn": drawn, "machine": machine, "base": "/home/me/smollm2"}
        values = script_values(namespace, tmp_path)
        assert values["drawn"].source["data_files"] == {"train": "rows_train.jsonl", "test": "/home/me/rows.jsonl"}
        assert (values["machine"].loading, values["machine"].sft) == ({"use_safetensors": True}, {"bf16": True})
        assert (values["base"], values["checkpoints"].folder) == ("smollm2-135m", "checkpoints")
        assert drawn.source["data_files"] == files

    def test_a_run_without_one_is_refused(self, tmp_path):
        """The remedy is to run the notebook again."""
        with pytest.raises(RunError, match="Run its notebook again"):
            read_script(RunDirectory(tmp_path))


def notebook():
    """Return variables of the Alpaca notebook, enough to write its script."""
    config, rows = build_config("alpaca", preset="smoke"), SeededRows([0])
    parts = {part: SimpleNamespace(kept=[0]) for part in ("train", "heldout")}
    found = Rows([{"instruction": "a"}], [], "rows", 1)
    return {
        "config": config,
        "cfg": SimpleNamespace(**config.flat()),
        "layout": StepLayout(config, 4, 2, False, {}),
        "machine": Machine("fp32", {}, {}, {}),
        "template": ChatTemplate("chatml", CHATML, CHATML, "pad"),
        "drawn": DrawnRows({"path": "json"}, "test", rows, rows, found),
        "checked": parts, "base": "smollm2-135m", "revision": None, "steps": 16, "record": WATCHER,
    }  # fmt: skip
