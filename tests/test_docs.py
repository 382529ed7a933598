"""What the documentation says is so: commands parse, links resolve, code runs, figures hold."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
import tiny
import torch
import yaml

import sounding
from sounding.cli.app import main, make_parser
from sounding.cli.support import settings_option
from sounding.data.folder import load_folder
from sounding.evaluation.sweep import Sweep
from sounding.evaluation.table import markdown
from sounding.methods import OURS
from sounding.methods.looks import MEAN, looks
from sounding.recipes import load_recipe
from sounding.registry import BACKBONES, METHODS, POLICIES, TASKS
from sounding.runs.config import TrainConfig
from sounding.runtime import load as load_export

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md"),
     ROOT / "examples" / "README.md"]
)  # fmt: skip
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
SHORT = 60  # lines in which a page shows how one thing is added
DEFINED = {"method": "random-depth", "task": "grades"}  # by the pages on how to add one
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text()]


def names_of(pages):
    return [page.relative_to(ROOT).as_posix() for page in pages]


def blocks(page, *languages):
    return [text for language, text in FENCE.findall(page.read_text()) if language in languages]


def shell_lines(page):
    """The commands of a page, each without its comment and without what a shell makes of it."""
    for block in blocks(page, "sh", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            ends = [at for at, word in enumerate(words) if word in ("<", ">", "|", "&&")]
            if words:
                yield words[: min(ends, default=len(words))]


def spoken(page):
    """The commands of `sounding` that the text of a page names, whole or in part."""
    text = FENCE.sub("", page.read_text())
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        words = span.split()
        if words[:1] == ["sounding"] and "..." not in span:
            yield shlex.split(span)


def commands():
    """Of all pages: the page, what follows `sounding`, and whether it is to be run as printed."""
    for page in PAGES:
        for whole, lines in ((True, shell_lines(page)), (False, spoken(page))):
            for words in lines:
                if "sounding" in words[:6]:  # behind variables, or a program that starts it
                    yield page, words[words.index("sounding") + 1 :], whole


# --- commands -------------------------------------------------------------------------------


def check_command(words):
    """Refuse what the parser does not take, and names and settings that there are not."""
    given = make_parser().parse_args(words)
    settings = settings_option(getattr(given, "set", None) or [])
    if getattr(given, "method", None):
        settings["method"] = given.method
    TrainConfig.from_values({n: v for n, v in settings.items() if DEFINED.get(n) != v})
    recipe = getattr(given, "recipe", None)
    if recipe and not recipe.endswith(".yaml"):
        load_recipe(recipe)
    methods = (getattr(given, "methods", None) or "").split(",")
    assert set(methods) <= {"", "all", "all+ablations", *METHODS}, f"methods {methods}"


def check_mention(words, capsys):
    """Refuse a command or an option that there is not."""
    with pytest.raises(SystemExit):
        make_parser().parse_args([*words[:1], "--help"])
    told = capsys.readouterr().out
    assert words[0].startswith("--") or f"sounding {words[0]} " in told
    assert not [word for word in words if word.startswith("--") and word not in told]


def test_every_command_of_the_documentation_parses_and_names_what_there_is(capsys):
    found, wrong = list(commands()), []
    assert len([words for _, words, whole in found if whole]) > 40
    for page, words, whole in found:
        try:
            check_command(words)
        except (SystemExit, ValueError, AssertionError) as error:
            said = capsys.readouterr().err.strip().splitlines()[-1:] or error
            try:
                assert not whole, said
                check_mention(words or ["--help"], capsys)
            except AssertionError:
                wrong.append(f"{page.relative_to(ROOT)}: sounding {shlex.join(words)}: {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    ["train --data D --outt RUN", "sweep --json s.json", "train --data D --out R --method rnadom",
     "train --data D --out R --set epoch=3", "train --recipe esc51 --data D --out R", "trian"],
)  # fmt: skip
def test_a_wrong_command_would_be_found(line, capsys):
    with pytest.raises((SystemExit, ValueError, AssertionError)):
        check_command(line.split())


ELSEWHERE = {"--recipe", "--watch", "--int8", "compare", "recipes"}  # run by tests of their own


def test_the_commands_of_the_readme_and_of_the_tutorials_run_in_their_order(
    tones, whisper, tmp_path, monkeypatch, capsys
):
    """From the training to the device; with a tiny backbone, for one epoch."""
    monkeypatch.chdir(tmp_path)
    for folder in ("DIR", "recordings"):
        (tmp_path / folder).symlink_to(tones)
    (tmp_path / "clip.wav").symlink_to(tones / "test0.wav")
    small = {
        "train": ["--backbone", str(whisper), "--epochs", "1", "--batch-size", "8"],
        "sweep": ["--rounds", "0"],
        "calibrate": ["--rounds", "1", "--seconds", "0.5,1"],
    }
    done = set()
    for name in ("README.md", "docs/tutorials/train-your-own.md", "docs/tutorials/on-a-device.md"):
        for words in shell_lines(ROOT / name):
            line = " ".join(words)
            if words[0] == "sounding" and not ELSEWHERE & set(words) and line not in done:
                assert main([*words[1:], *small.get(words[1], [])]) == 0, line
                done.add(line)
    assert len(done) >= 10
    assert "layers ■■■·" in capsys.readouterr().out


def test_make_targets_scripts_and_extras_that_are_named_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    wrong = []
    for page in PAGES:
        here = page.relative_to(ROOT)
        for words in shell_lines(page):
            if words[0] == "make" and words[1] not in targets:
                wrong.append(f"{here}: make {words[1]}")
            if words[0] in ("python", "python3") and words[1].endswith(".py"):
                wrong += [] if (ROOT / words[1]).exists() else [f"{here}: {words[1]}"]
        for named in re.findall(r"(?:sounding|\.)\[([\w,]+)\]", page.read_text()):
            wrong += [f"{here}: extra {one}" for one in set(named.split(",")) - extras]
    assert not wrong


# --- links ----------------------------------------------------------------------------------


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        yield re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def broken_links(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / unquote(path)).resolve() if path else page
        if not other.exists() or (
            anchor and other.suffix == ".md" and anchor not in anchors(other)
        ):
            yield target


@pytest.mark.parametrize("name", [*names_of(PAGES), "benchmarks/README.md"])
def test_every_relative_link_and_anchor_resolves(name):
    assert not list(broken_links(ROOT / name))


def test_a_broken_link_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Here\n[a](#here) [b](#there) [c](page.md#here) [d](other.md) [e](http://x)")
    assert list(broken_links(page)) == ["#there", "other.md"]


def test_code_and_messages_name_pages_that_exist():
    wrong = []
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.yaml")]:
        for named in re.findall(r"docs/[\w/-]+\.md", path.read_text()):
            wrong += [] if (ROOT / named).exists() else [f"{path.relative_to(ROOT)}: {named}"]
    assert not wrong


# --- code -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [p for p in names_of(PAGES) if "```python" in (ROOT / p).read_text()]
)
def test_python_of_the_pages_compiles(name):
    for block in blocks(ROOT / name, "python"):
        compile(block, name, "exec")


@pytest.fixture
def _registries_as_before():
    registries = (METHODS, POLICIES, TASKS, BACKBONES)
    before = [dict(one._values) for one in registries]
    yield
    for one, values in zip(registries, before, strict=True):
        one._values = values


@pytest.mark.filterwarnings("ignore::sounding.model.untrained.UntrainedWarning")
@pytest.mark.usefixtures("_registries_as_before")
@pytest.mark.parametrize("page", ["tutorials/wrap-a-model.md", "backbones.md"])
def test_a_page_runs_from_its_top_to_its_end_as_printed(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(DOCS / page, "python"):
        exec(block, names)
    out = capsys.readouterr().out
    if page == "backbones.md":
        assert names["out"].executed_layers.sum(1).tolist() == [1, 3]
        shown = [b for b in blocks(DOCS / page, "python") if "sounding." in b]
        assert len("".join(shown).splitlines()) <= SHORT
    else:
        assert "3 [3, 3, 3]\n50% [3, 3, 3]\n[1, 3, 6] [1, 3, 6]\n" in out
        assert "Budget.share(0.5)" in out


@pytest.mark.filterwarnings("ignore::sounding.model.untrained.UntrainedWarning")
@pytest.mark.usefixtures("_registries_as_before")
def test_the_policy_of_the_page_runs_as_printed_and_is_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    defined, used = blocks(DOCS / "add-a-policy.md", "python")
    assert len(f"{defined}{used}".splitlines()) <= SHORT
    model = tiny.make("whisper-classification")
    names: dict = {"model": model, "batch": tiny.inputs(model)}
    exec(defined, names)
    exec(used, names)
    assert names["out"].executed_layers.tolist() == [[True, False, False, True]] * 3
    assert type(names["dynamic"].policy) is names["Spread"]
    with torch.no_grad():
        again = names["dynamic"](**names["batch"], budget=[1, 3, 4])
    assert again.executed_layers.sum(1).tolist() == [1, 3, 4]


@pytest.mark.usefixtures("_registries_as_before")
def test_the_method_of_the_page_runs_as_printed_and_is_short(
    tones, whisper, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recordings").symlink_to(tones)
    defined, used = blocks(DOCS / "add-a-method.md", "python")
    assert len(f"{defined}{used}".splitlines()) <= SHORT
    small = used.replace('"whisper-base"', f"{str(whisper)!r}, epochs=2, batch_size=8")
    assert small != used
    names: dict = {}
    exec(defined, names)
    exec(small, names)
    out = capsys.readouterr().out
    assert "| random depth | 4 |" in out
    assert "| random depth, mean |" in out
    answer = load_export(tmp_path / "random-depth.onnx").run(str(tones / "test0.wav"), 2)
    assert answer.label in load_folder(tones).labels
    assert answer.executed_layers == [0, 1]


def examples_in_docstrings():
    root = Path(sounding.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if ">>>" in path.read_text():
            parts = path.relative_to(root.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", list(examples_in_docstrings()))
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    found = doctest.testmod(module)
    assert not found.failed


def test_public_names_have_examples_that_run():
    found = set(examples_in_docstrings())
    assert found >= {"sounding.budget", "sounding.registry", "sounding.statistics"}
    assert doctest.testmod(sounding.budget).attempted > 2


# --- what the pages hold --------------------------------------------------------------------


def demo():
    return Sweep.from_json(ROOT / "benchmarks" / "results" / "demo.json")


def short_table(sweep):
    """The table of the README: accuracy in percent, a row a method, a column a number of layers."""
    layers = max(row.kept_layers for row in sweep.rows)
    cells = {(row.method, row.kept_layers): f"{100 * row.value:.1f}" for row in sweep.rows}
    rows = []
    for name, method in METHODS.items():
        label = looks()[name].label + (" (ours)" if name == OURS else "")
        if method.below:
            label += f"; {method.below[1].label} below"
            cells |= {(name, k): value for (m, k), value in cells.items() if m == method.below[0]}
        rows += [(name, label), (name + MEAN, f"{looks()[name].label}, mean budget")]
    lines = ["| kept layers | " + " | ".join(map(str, range(1, layers + 1))) + " |"]
    lines.append("|---|" + "---:|" * layers)
    for name, label in rows:
        found = [cells.get((name, k), "") for k in range(1, layers + 1)]
        if any(found):
            lines.append(f"| {label} |" + "".join(f" {cell} |" if cell else " |" for cell in found))
    ours = [next(r for r in sweep.rows if (r.method, r.kept_layers) == (OURS, k))
            for k in range(1, layers + 1)]  # fmt: skip
    shares = " | ".join(f"{100 * row.macs_share:.0f}" for row in ours)
    lines.append(f"| multiply-accumulates, of full depth ({looks()[OURS].label}) | {shares} |")
    return "\n".join(lines)


def test_the_figures_of_the_demo_are_those_of_its_file():
    assert markdown(demo()).strip() in (DOCS / "results.md").read_text()
    expected = short_table(demo())
    assert expected in (ROOT / "README.md").read_text(), f"the table of the README is\n{expected}"


def test_the_readme_stays_a_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert text.count("![") == 1
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(tables) == 1
    assert len(tables[0].splitlines()) <= 2 + 8
    assert all(len(block.splitlines()) <= 10 for block in blocks(ROOT / "README.md", "python"))


def test_the_glossary_defines_the_words_of_the_code_and_the_pages_list_all_that_is_registered():
    words = set(anchors(DOCS / "glossary.md"))
    assert words >= {"budget", "policy", "method", "arm", "mask", "depth", "state", "frame"}
    told = (DOCS / "how-it-works.md").read_text()
    assert not [name for name in METHODS if f"| `{name}` |" not in told]
    page = (DOCS / "add-a-task.md").read_text()
    assert not [name for name in TASKS if f"`{name}`" not in page]


def test_what_people_cite_and_install_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == project["version"] == sounding.__version__
    assert cited["license"] == project["license"]
    assert "arXiv:2507.07954" in str(cited["references"])
    yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
