"""Write the pages that are generated from the code: configuration, annotated paper and API."""

import ast
import dataclasses
import inspect
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object
from omegaconf import MISSING

ROOT = Path(__file__).parents[2]
CONF, SRC, TESTS = ROOT / "conf", ROOT / "src", ROOT / "tests"

PAPER = {
    "section 3": "Spatial transformers: localisation network, grid and sampler in one layer.",
    "section 3.1": "Localisation network. It regresses θ from a feature map.",
    "section 3.2": "Parameterised sampling grid. T_θ maps output points to input points.",
    "equation (1)": "The affine transformation of a grid point.",
    "equation (2)": "Attention: isotropic scale and translation.",
    "section 3.3": "Differentiable image sampling.",
    "equation (3)": "The output pixel as a sum over input pixels and a kernel.",
    "equation (4)": "The integer kernel, which copies the nearest pixel.",
    "equation (5)": "The bilinear kernel.",
    "equation (6)": "The gradient with respect to the input. Autograd computes it here.",
    "equation (7)": "The gradient with respect to the grid. Autograd computes it here.",
    "section 4.1": "Distorted MNIST.",
    "Table 1": "Errors on distorted MNIST.",
    "section 4.2": "Street View House Numbers.",
    "Table 2": "Sequence errors on SVHN.",
    "section 4.3": "Fine-grained classification of birds.",
    "Table 3": "Accuracies on CUB-200-2011.",
    "appendix A.1": "MNIST addition.",
    "appendix A.2": "Co-localisation.",
    "appendix A.3": "Three dimensions.",
    "appendix A.4": "Details of the MNIST experiments.",
    "appendix A.5": "Details of the SVHN experiments.",
    "appendix A.6": "Details of the bird experiments.",
}
"""The parts of the paper that code names, in the paper's order."""


def setup(app: Any) -> dict[str, Any]:
    """Write the generated pages before Sphinx reads its sources."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "_generated"))
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("source-read", keep_numbers_whole)
    return {"parallel_read_safe": True}


def write_pages(directory: Path) -> None:
    """Write ``configuration.inc`` and ``paper.inc``, which other pages include, and ``api/``."""
    pages = {"configuration.inc": configuration_page(), "paper.inc": paper_page()}
    pages |= {f"api/{name}.rst": lines for name, lines in api_pages()}
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "api").mkdir(parents=True)
    for name, lines in pages.items():
        (directory / name).write_text("\n".join(lines) + "\n")


def escape_bars(app, what, name, obj, options, lines: list[str]) -> None:
    """Escape bars, which reStructuredText reads as substitutions: ``|e|`` is a norm here."""
    for number, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"(?<!\\)\|", r"\\|", part) for part in parts[::2]]
        lines[number] = "``".join(parts)


def keep_numbers_whole(app, name: str, source: list[str]) -> None:
    """Keep the cells "1.24 ± 0.23 (3)" and "not run" on one line."""
    gaps = r"(?<=\d) (?=±)|(?<=±) (?=\d)|(?<=\d) (?=\(\d+\) \|)|(?<=\| not) (?=run \|)"
    source[0] = re.sub(gaps, "\u00a0", source[0])


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return a Markdown table, or nothing without rows."""
    if not rows:
        return []
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    lines = [header, tuple("---" for _ in header), *cells]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def plain(text: str) -> str:
    """Return a line of a docstring as Markdown."""
    text = re.sub(r":[a-z:]+:`[~.]*([^`]+)`", lambda found: f"`{found[1].split('.')[-1]}`", text)
    return text.replace("``", "`")


# The API


def api_pages() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the lines of a page for each part of the package."""
    package = SRC / "spatial_transformer"
    for part in sorted(package.glob("[!_]*")):
        files = [part] if part.suffix == ".py" else sorted(part.rglob("*.py"))
        if not files or part.suffix not in ("", ".py"):
            continue
        lines = heading(part.stem, "=")
        for file in files:
            name = module_name(file)
            if ast.get_docstring(ast.parse(file.read_text())):
                if name != f"{package.name}.{part.stem}":
                    lines += heading(name.removeprefix(f"{package.name}."), "-")
                lines += [f".. automodule:: {name}", ""]
        yield part.stem, lines


def heading(text: str, underline: str) -> list[str]:
    """Return a heading of reStructuredText."""
    return [text, underline * len(text), ""]


def module_name(file: Path) -> str:
    """Return the dotted name of a module of the package."""
    return ".".join(file.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


# The configuration


def configuration_page() -> list[str]:
    """Return the groups of ``conf/`` with their options and settings, and the root settings."""
    root = yaml.safe_load((CONF / "train.yaml").read_text())
    defaults = {
        k: v for entry in root["defaults"] if isinstance(entry, dict) for k, v in entry.items()
    }
    groups = [path for path in sorted(CONF.iterdir()) if list(path.glob("*.yaml"))]
    rows = []
    for group in groups:
        options = ", ".join(f"`{file.stem}`" for file in sorted(group.glob("*.yaml")))
        rows.append(
            (f"[`{group.name}`](#{group.name})", str(defaults.get(group.name) or ""), options)
        )
    lines = ["## Groups", "", *table(("group", "default", "options"), rows)]
    comments = yaml_comments(CONF / "train.yaml")
    lines += ["## Root settings", "", *schema_table("Config", comments, root)]
    lines += ["## Recipe settings", "", *schema_table("Recipe", recipe_comments(), {})]
    for group in groups:
        lines += [f"## {group.name}", ""]
        for file in sorted(group.glob("*.yaml")):
            lines += option_lines(group.name, file)
    return lines


def schema_table(name: str, comments: dict[str, str], values: dict[str, Any]) -> list[str]:
    """Return the fields of a dataclass of ``training/config.py`` that hold plain values.

    Args:
        name: of the dataclass.
        comments: meaning of each field.
        values: that ``conf/train.yaml`` gives to fields without a default.
    """
    rows = []
    for field in dataclasses.fields(get_object(f"spatial_transformer.training.config.{name}")):
        is_part = field.default_factory is not dataclasses.MISSING or "dict" in str(field.type)
        if not is_part and field.type != "Any":
            default = field.default
            if default == MISSING:
                default = values.get(field.name, "required")
            meaning = comments.get(field.name, "")
            rows.append((f"`{field.name}`", f"`{field.type}`", f"`{default}`", meaning))
    return table(("setting", "type", "default", "meaning"), rows)


def recipe_comments() -> dict[str, str]:
    """Return what the tasks' docstrings say about the settings of a recipe."""
    found: dict[str, str] = {
        "max_steps": "Length of the training in optimizer steps.",
        "batch_size": "Global batch size.",
        "validate_every": "Steps between validations.",
        "dropout": "Dropout probability of the network.",
    }
    for name in ("bird_classification.BirdClassification", "classification.Classification"):
        found |= argument_docs(f"spatial_transformer.tasks.{name}")
    return found


def option_lines(group: str, file: Path) -> list[str]:
    """Return the section on one option of a group."""
    text = file.read_text()
    header = re.match(r"(?:#.*\n)*", text)[0].splitlines()  # type: ignore[index]
    header = [line.lstrip("#") for line in header if "@package" not in line]
    commands = [line.strip() for line in header if line.strip().startswith("python ")]
    about = " ".join(line.strip() for line in header if not line.strip().startswith("python "))
    lines = [f"### {group}={file.stem}", "", about, ""]
    if commands:
        lines += ["```bash", *commands, "```", ""]
    comments, rows = yaml_comments(file), []
    node = yaml.safe_load(text) or {}
    docs = argument_docs(node.get("_target_", ""))
    for key, value in flatten(node):
        if not key.startswith(("defaults", "hydra.help", "hydra.job_logging")):
            meaning = comments.get(key) or docs.get(key, "")
            rows.append((f"`{key}`", f"`{'null' if value is None else value}`", meaning))
    return [*lines, *table(("setting", "value", "meaning"), rows)]


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of the leaves."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def yaml_comments(file: Path) -> dict[str, str]:
    """Return the comment at the end of the line of each setting, by dotted name."""
    text = file.read_text()
    lines, comments = text.splitlines(), {}

    def visit(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = f"{prefix}{key.value}"
                _, found, comment = lines[key.start_mark.line].partition(" # ")
                if found:
                    comments[name] = comment.strip()
                visit(value, f"{name}.")

    visit(yaml.compose(text), "")
    return comments


def argument_docs(target: str) -> dict[str, str]:
    """Return the entries of ``Args:`` in the docstring of a component of this package."""
    if not target.startswith("spatial_transformer."):
        return {}
    doc = inspect.getdoc(get_object(target)) or ""
    block = re.search(r"^Args:\n((?:    .*\n|\n)*)", doc + "\n", re.M)
    found = {}
    for entry in re.findall(r"^    (\S.*(?:\n {5,}.*)*)", block[1] if block else "", re.M):
        names, _, about = " ".join(entry.split()).partition(": ")
        found |= dict.fromkeys(names.split(", "), plain(about))
    return found


# The annotated paper


def paper_page() -> list[str]:
    """Return a section for each part of the paper, with the code whose docstring names it."""
    code, tests = mentions(), equation_tests()
    lines = []
    for part, summary in PAPER.items():
        level = "###" if part.startswith(("equation", "Table")) else "##"
        title, _, rest = summary.partition(". ")
        lines += [f"{level} {part[0].upper()}{part[1:]}: {title.removesuffix('.')}", "", rest, ""]
        lines += table(("code", "what it does"), [(role, about) for role, about in code[part]])
        if tests[part]:
            lines += ["Verified by " + ", ".join(tests[part]) + ".", ""]
    return lines


def mentions() -> dict[str, list[tuple[str, str]]]:
    """Return, for each part of the paper, the objects that name it and their summaries."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for file in sorted((SRC / "spatial_transformer").rglob("*.py")):
        for kind, name, doc in documented(ast.parse(file.read_text()), module_name(file)):
            is_private = any(part.startswith("_") for part in name.split("."))
            role = f"`{name}`" if is_private else f"{{py:{kind}}}`~{name}`"
            summary = plain(" ".join(doc.split("\n\n")[0].split()))
            for part in parts_named_in(doc):
                found[part].append((role, summary))
    return found


def documented(tree: ast.Module, module: str) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and docstring of a module and what is in it."""
    if doc := ast.get_docstring(tree):
        yield "mod", module, doc

    def visit(body: list[ast.stmt], prefix: str, function: str) -> Iterator[tuple[str, str, str]]:
        for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                name, is_class = f"{prefix}.{node.name}", isinstance(node, ast.ClassDef)
                if doc := ast.get_docstring(node):
                    yield "class" if is_class else function, name, doc
                if is_class:
                    yield from visit(node.body, name, "meth")
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                doc = getattr(getattr(after, "value", None), "value", None)
                if isinstance(after, ast.Expr) and isinstance(doc, str):
                    yield "data", f"{prefix}.{node.targets[0].id}", inspect.cleandoc(doc)

    yield from visit(tree.body, module, "func")


def parts_named_in(text: str) -> list[str]:
    """Return the parts of the paper that a text names, such as "equations (3) to (5)"."""
    text = " ".join(text.split())
    named = {f"section {n}" for n in re.findall(r"\b[Ss]ections? (\d(?:\.\d)?)", text)}
    named |= {f"Table {n}" for n in re.findall(r"\bTable (\d)", text)}
    named |= {f"appendix A.{n}" for n in re.findall(r"\bA\.(\d)\b", text)}
    for first, last in re.findall(r"\b[Ee]quations? \(?(\d)\)?(?: (?:to|and) \(?(\d)\)?)?", text):
        named |= {f"equation ({n})" for n in range(int(first), int(last or first) + 1)}
    return [part for part in PAPER if part in named]


def equation_tests() -> dict[str, list[str]]:
    """Return, for each equation, the tests that are named after it."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted(TESTS.rglob("test_*.py")):
        for name, number in re.findall(r"^def (test_\w*equation_(\d)\w*)", file.read_text(), re.M):
            found[f"equation ({number})"].append(f"`{file.relative_to(ROOT)}::{name}`")
    return found
