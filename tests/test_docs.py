"""The reference pages agree with the code and the results."""

import json
import re

import pytest
from conftest import REPOSITORY
from test_layering import ORDER

REFERENCE = REPOSITORY / "docs" / "reference"
PLACEHOLDERS = {"K": r"\d+", "k": r"\d+", "C": r"\d+", "PART": r"[a-z ]+", "OPTIMIZER": r"\w+"}
EXPERIMENTS = sorted(
    path.parent.name
    for path in (REPOSITORY / "results").glob("*/*.json")
    if "metrics" in json.loads(path.read_text())
)


def explained():
    """Return a pattern for the metrics that the page explains."""
    rows = re.findall(r"^\| (`.*?) \|", (REFERENCE / "metrics.md").read_text(), re.M)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    words = "|".join(PLACEHOLDERS)
    part = rf"(?<![A-Za-z])(?:{words})(?![A-Za-z])"
    patterns = [re.sub(part, lambda found: PLACEHOLDERS[found[0]], name) for name in names]
    return re.compile("|".join(patterns))


@pytest.mark.parametrize("experiment", sorted(set(EXPERIMENTS)))
def test_each_metric_of_a_result_is_explained(experiment):
    pattern = explained()
    for path in (REPOSITORY / "results" / experiment).glob("*.json"):
        metrics = json.loads(path.read_text()).get("metrics", {})
        assert [name for name in metrics if not pattern.fullmatch(name)] == [], path.name


def walks():
    """Return the (depth, file) pairs of each walk of the page on the architecture."""
    text = (REFERENCE / "architecture.md").read_text()
    for block in re.findall(r"```text\n(.*?)```", text, re.S):
        yield [(len(line) - len(line.lstrip(" │├└─")), line.split()) for line in block.splitlines()]


def test_the_walks_of_the_architecture_run_downwards():
    package = REPOSITORY / "src" / "spatial_transformer"
    found = 0
    for walk in walks():
        assert len(walk) <= 10
        above = {}
        for depth, words in walk:
            file = next(word for word in words if word.endswith(".py"))
            path = REPOSITORY / file if depth == 0 else package / file
            assert path.is_file(), file
            level = len(ORDER) if depth == 0 else ORDER.index(file.partition("/")[0])
            above[depth] = level
            assert depth == 0 or level <= above[max(d for d in above if d < depth)], file
            found += 1
    assert found == 20


def test_the_layers_are_those_of_the_layering_test():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section("Layers"), re.M)
    parts = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert parts == ORDER[::-1]


def section(title):
    text = (REFERENCE / "architecture.md").read_text()
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_generated_pages_name_code_for_each_part_of_the_paper(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REPOSITORY / "docs" / "_ext")
    import generated_pages

    generated_pages.write_pages(tmp_path / "generated")
    page = (tmp_path / "generated" / "paper.inc").read_text()
    for part in re.split(r"^##+ ", page, flags=re.M)[1:]:
        assert "{py:" in part or "Verified by" in part, part.splitlines()[0]
    configuration = (tmp_path / "generated" / "configuration.inc").read_text()
    for file in (REPOSITORY / "conf").glob("*/*.yaml"):
        assert f"### {file.parent.name}={file.stem}\n" in configuration
