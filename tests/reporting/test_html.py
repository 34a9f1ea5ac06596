"""The report page."""

import json
import re
import shlex
import shutil
from functools import partial
from html.parser import HTMLParser

import pytest
import report
from chromium import contrast, open_file
from conftest import REPOSITORY
from PIL import Image

from spatial_transformer.reporting.html import compare_to_paper, count_outcomes, write_report
from spatial_transformer.reporting.paper_tables import SPECS, TableCell, build_table, paper_tables
from spatial_transformer.training.validation import validate
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.visualization.drawing import image_grid

CONF, DOCS, RESULTS = (REPOSITORY / name for name in ("conf", "docs", "results"))
BIRDS = "birds_2st/birds_2st-efficientnet_lite0-location-birds_differences-seed1-400.json"
FOUND = "colocalisation/colocalisation-tc-3-colocalisation-seed1-6000.json"
RTS = "mnist/st_fcn-affine-rts-fast-seed1-15000.json"


class Page(HTMLParser):
    """All elements as (tag, attributes), and the rows of each table without details."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.elements, self.tables = [], {}
        self.section = self.hidden = None
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "section":
            self.section = self.tables.setdefault(attributes["id"].removeprefix("table-"), [])
        elif tag == "tr" and self.section is not None:
            self.section.append([])
        elif tag in ("td", "th") and self.section is not None:
            self.section[-1].append("")
        kind = attributes.get("class", "").partition(" ")[0]
        if kind in ("details", "verdict"):
            self.hidden = self.hidden or kind

    def handle_endtag(self, tag):
        if tag == "section":
            self.section = None
        if (self.hidden, tag) in (("details", "div"), ("verdict", "span")):
            self.hidden = None

    def handle_data(self, data):
        if self.section and self.section[-1] and not self.hidden:
            self.section[-1][-1] += data.strip()

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def sections(self):
        links = re.findall(r'<li><a href="#(\w+)">(.*?)</a>', self.text)
        headings = re.findall(r'<h2 id="(\w+)">(.*?)</h2>', self.text)
        return links, headings

    def animations(self):
        return [
            attributes["aria-label"]
            for _, attributes in self.elements
            if "moving" in attributes.get("class", "")
        ]


def gradient(size):
    return Image.linear_gradient("L").resize((size, size)).convert("RGB")


def noise(size):
    """Return an image that compresses badly."""
    return Image.effect_noise((size, size), 60).convert("RGB")


def run_folder(folder, record, errors=(40.0, 10.0, 2.5), size=42, draw=gradient, **changes):
    """Write a run directory with a changed result. Models take ``width``, recipes the others."""
    made = json.loads((RESULTS / record).read_text())
    made |= {name: changes.pop(name) for name in ("seed", "steps") if name in changes}
    made["config"]["data"]["seed"] = made["seed"]
    for name, value in changes.items():
        made["config"]["model" if name == "width" else "recipe"][name] = value
    (folder / "crops").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(made))
    lines = [f"{500 * n + 499},0.5,\n{500 * n + 499},,{error}\n" for n, error in enumerate(errors)]
    (folder / "metrics.csv").write_text("step,train/loss,val/error\n" + "".join(lines))
    for step in range(0, 500 * len(errors) + 1, 500):
        image = image_grid([[draw(size)] * 2 for _ in range(12)], ["1"] * 12, f"step {step}")
        for name in ("crops", "mean_images"):
            image.save(folder / "crops" / f"{name}_{step:07d}.png")
    return folder


@pytest.fixture
def make_page(tmp_path):
    def make(results=RESULTS):
        (tmp_path / "runs").mkdir(exist_ok=True)
        write_report(tmp_path / "index.html", results, [tmp_path / "runs"], CONF, DOCS)
        return Page(tmp_path / "index.html")

    return make


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds on distorted MNIST, a run of co-localisation, and one of birds."""
    folder = tmp_path_factory.mktemp("runs")
    run_folder(folder / "first", RTS)
    run_folder(folder / "second", RTS, errors=(44.0, 14.0, 3.5), seed=2)
    run_folder(folder / "found", FOUND, size=250)
    run_folder(folder / "birds", BIRDS, size=224)
    return folder


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    """The page of all results and of these runs."""
    out = tmp_path_factory.mktemp("report") / "index.html"
    assert write_report(out, RESULTS, [runs], CONF, DOCS) == []
    assert out.stat().st_size < 2e6
    return out


@pytest.fixture(scope="module")
def page(written):
    return Page(written)


@pytest.fixture
def results(tmp_path):
    """Results that a test may change."""
    return shutil.copytree(RESULTS, tmp_path / "results")


def test_page_has_every_cell_of_the_papers_tables(page):
    expected = paper_tables(RESULTS, CONF)
    assert page.tables.keys() == expected.keys()
    for name, table in expected.items():
        rows = [[table.header[1], *table.columns]]
        for network in table.networks:
            rows.append([network.name])
            if network.numbers is not None:
                numbers = ["–" if number is None else str(number) for number in network.numbers]
                rows.append([network.paper_row, *numbers])
            rows += [[label, *(cell.text for cell in cells)] for label, cells in network.rows]
        assert page.tables[name] == rows


def test_details_of_a_cell(page):
    record = json.loads((RESULTS / RTS).read_text())
    details = re.search(r'id="mnist-3-1-2">(.*?)</div>', page.text, re.S)[1]
    command = r"python train.py -m experiment=mnist model=st_fcn transform=affine recipe=fast "
    assert "<strong>ST-FCN affine</strong>, RTS" in details
    assert f"Seed 1: <strong>{record['metrics']['test/error']:.2f}</strong>" in details
    assert record["commit"][:10] in details
    assert "fast, 15,000" in details
    assert re.search(command + "data.distortion=rts seed=1,2,3", details)


def test_cell_without_result_is_not_run(results, make_page):
    for path in results.glob(RTS.replace("seed1", "seed*")):
        path.unlink()
    rows = make_page(results).tables["mnist"]
    row = rows[rows.index(["ST-FCN affine"]) + 2]
    assert row[0] == "fast, 15,000"
    assert [text == "not run" for text in row] == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("paper", "values", "higher_is_better", "caveat", "expected"),
    [
        (0.8, [1.9, 1.9, 1.9], False, "", ("worse", "+1.10, p < 0.001")),
        (0.8, [0.3, 0.3, 0.3], False, "", ("better", "−0.50, p < 0.001")),
        (0.8, [1.0, 1.1, 1.2], False, "", ("same", "+0.30, p = 0.074")),
        (83.1, [74.3, 74.3, 74.3], True, "", ("worse", "−8.80, p < 0.001")),
        (81, [94.0, 94.0, 94.0], True, "", ("better", "+13.00, p < 0.001")),
        (0.8, [1.1, 1.2], False, "2 seeds", ("incomparable", "2 seeds")),
        (0.8, [], False, "not run", ("not-run", "")),
    ],
)
def test_comparison_with_the_paper(paper, values, higher_is_better, caveat, expected):
    runs = [{"samples": {"test": 10_000}} for _ in values]
    cell = TableCell("R", paper, runs, values, "", {}, caveat)
    assert compare_to_paper(cell, higher_is_better) == expected


@pytest.mark.parametrize(
    ("table", "seeds", "overrides", "caveat"),
    [
        ("mnist", (1, 2, 3), [], ""),
        ("mnist", (1, 2), [], "2 seeds"),
        ("mnist", (1, 2, 3), ["trainer.max_steps=2000"], "2,000 of 15,000 steps"),
        ("mnist", (1, 2, 3), ["transform=tps", "data.distortion=tc"], "no number in the paper"),
        ("svhn", (1, 2, 3), ["recipe=svhn_part"], "1,824 training images"),
        ("birds", (1, 2, 3), ["data.species=1-50"], "species 1-50"),
        ("colocalisation", (1, 2, 3), ["data.distortion=t"], ""),
        ("colocalisation", (1, 2, 3), ["data.distortion=tc"], "second-hand"),
    ],
)
def test_only_fair_comparisons_have_no_caveat(record, table, seeds, overrides, caveat):
    experiment = {"svhn": "svhn_cnn", "birds": "birds_cnn"}.get(table, table)
    runs = [record(9.0, f"seed={seed}", *overrides, experiment=experiment) for seed in seeds]
    for run in runs:
        run["metrics"]["test/accuracy"] = 91.0
    cells = [cell for cell in build_table(SPECS[table], runs, CONF).cells if cell.runs]
    assert [cell.caveat for cell in cells] == [caveat]


def test_tiles_add_up_to_the_cells(page):
    tables = paper_tables(RESULTS, CONF).values()
    outcomes = count_outcomes(tables)
    tiles = re.findall(r'<dd class="([a-z-]+)">(\d+)</dd>', page.text)
    assert {name: int(count) for name, count in tiles} == outcomes
    assert len(page.attributes("aria-describedby")) == sum(outcomes.values())
    assert f"{sum(outcomes.values())} cells" in page.text


def test_page_loads_nothing(page):
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
        if tag != "a":
            for name in ("href", "xlink:href"):
                assert attributes.get(name, "#").startswith(("#", "data:")), (tag, name)
    targets = re.findall(r"url\(([^)]*)\)", page.text)
    assert all(target.startswith(("data:", "#")) for target in targets)
    assert "@import" not in page.text
    assert "<script" not in page.text


def test_links_and_headings(written, page):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    links, headings = page.sections()
    assert links == headings
    assert len(links) == 8
    targets = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    for target in targets:
        is_known = target.startswith("https://arxiv.org/") or target[1:] in ids
        assert is_known or (written.parent / target).is_file(), target
    linked = {(written.parent / target).resolve() for target in targets}
    assert linked >= set(DOCS.glob("**/*.md"))


def test_images_charts_and_tables_are_labelled(page):
    images = [
        attributes
        for tag, attributes in page.elements
        if tag in ("img", "svg") or attributes.get("role") == "img"
    ]
    assert all((image.get("alt") or image.get("aria-label", "")).strip() for image in images)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("svg") >= 4
    assert tags.count("caption") == tags.count("table")
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    assert len(page.animations()) == 3
    assert set(page.attributes("aria-describedby")) <= set(page.attributes("id"))


def test_each_data_set_comes_before_a_second_network(tmp_path, make_page):
    for name in ("affine-rts", "projective-rts", "tps-rts", "affine-tc"):
        record = f"mnist/st_fcn-{name}-fast-seed1-15000.json"
        run_folder(tmp_path / "runs" / name, record)
    animations = make_page().animations()
    assert len(animations) == 4
    assert "TC" in animations[1]


def curves(page):
    labels = [a["aria-label"] for tag, a in page.elements if tag == "svg"]
    prefix = "Validation error, "
    return [label.removeprefix(prefix) for label in labels if label.startswith(prefix)]


def test_seeds_share_a_curve(page):
    assert curves(page)[0] == (
        "distorted MNIST, RTS; ST-FCN affine, fast, 15,000 steps, seeds 1, 2: "
        "42.00 % after 500, 3.00 % at the end"
    )


def test_repeated_seeds_and_validation_intervals_add_no_curve(tmp_path, make_page):
    run_folder(tmp_path / "runs" / "a", RTS)
    run_folder(tmp_path / "runs" / "b", RTS)
    run_folder(tmp_path / "runs" / "c", RTS, seed=2, validate_every=2)
    run_folder(tmp_path / "runs" / "d", RTS, dropout=0.5)
    (chart,) = curves(make_page())
    assert "; ST-FCN affine, fast, 15,000 steps, seeds 1, 2:" in chart
    assert "; ST-FCN affine, fast, dropout=0.5, 15,000 steps:" in chart
    assert chart.count(";") == 2


def test_short_runs_are_marked_or_left_out(tmp_path, make_page):
    run_folder(tmp_path / "runs" / "debug", RTS, steps=20)
    run_folder(tmp_path / "runs" / "short", RTS, steps=2000)
    page = make_page()
    assert "debug has only 20 of the 15,000 steps of its recipe." in page.text
    (animation,) = page.animations()
    assert "2,000 of 15,000 steps" in animation


def test_tall_crops_have_fewer_frames_than_webp_can_hold(tmp_path, make_page):
    run_folder(tmp_path / "runs" / "tall", BIRDS, errors=(9.0,) * 4, size=300)
    (animation,) = make_page().animations()
    assert "over 4 points of training" in animation, "four of five"


def test_curves_are_sorted_and_show_errors_of_0(tmp_path, make_page):
    run_folder(tmp_path / "runs" / "a", FOUND, errors=(100.0, 0.0, 0.0))
    run_folder(tmp_path / "runs" / "b", RTS)
    page = make_page()
    charts = [label.partition(",")[0] for label in curves(page)]
    assert charts == ["distorted MNIST", "co-localisation"]
    svg = re.search(r'<svg[^>]*label="Validation error, co-local.*?</svg>', page.text, re.S)[0]
    assert re.search(r">\s*0\s*</text>", svg), "a tick of the axis"


@pytest.mark.slow
def test_page_stays_small_with_large_images(tmp_path, make_page):
    for n in range(4):
        for name, record, size in (("digits", RTS, 126), ("found", FOUND, 250), ("b", BIRDS, 224)):
            folder = tmp_path / "runs" / f"{name} {n}"
            run_folder(folder, record, errors=(), size=size, draw=noise, width=n)
    make_page()
    assert (tmp_path / "index.html").stat().st_size < 5e6


def test_empty_sections_name_a_command(results, make_page, composed):
    for name in ("benchmarks", *(folder.name for folder in results.glob("birds_*"))):
        shutil.rmtree(results / name)
    text = make_page(results).text
    missing = re.findall(r'<p class="missing">.*?<code class="command">(.*?)</code>', text)
    assert len(missing) == 7
    for command in missing:
        words = shlex.split(command)
        if words[0] == "make":
            assert f"\n{words[1]}:" in (REPOSITORY / "Makefile").read_text()
        else:
            assert words[:2] == ["python", "train.py"]
            validate(composed(*words[2:]))


def test_damaged_runs_are_listed_and_the_others_shown(tmp_path, make_page):
    folders = {name: run_folder(tmp_path / "runs" / name, RTS) for name in "abcde"}
    (folders["a"] / "metrics.csv").write_text("step,val/error\n499,twelve\n")
    image = folders["b"] / "crops" / "crops_0000500.png"
    image.write_bytes(image.read_bytes()[:200])
    (folders["c"] / "metrics.json").write_text("{")
    result = json.loads((folders["d"] / "metrics.json").read_text())
    (folders["d"] / "metrics.json").write_text(json.dumps(result | {"model": "no_such_model"}))
    (folders["e"] / "metrics.json").write_text('{"experiment": "mnist", "metrics": {}}')
    text = make_page().text
    problems = text.partition('id="problems"')[2]
    assert problems.count("<li>") == 5
    for name in ("a/metrics.csv", "c/metrics.json", "d/metrics.json", "e/metrics.json"):
        assert name in problems
    assert "b/crops/crops_0000500.png cannot be read as a PNG file" in problems
    assert "ST-FCN affine, distorted MNIST, RTS</strong>" in text


def test_wrong_arguments_write_nothing(results, tmp_path):
    out = tmp_path / "report" / "index.html"
    for arguments, message in (
        ((out, tmp_path / "absent", []), "absent is not a directory of results"),
        ((tmp_path, results, []), "--out must be a file, got the directory .*Use --out=.*html"),
        ((out, results, [tmp_path / "absent"]), "--runs must be directories, got .*absent"),
    ):
        with pytest.raises(UsageError, match=message):
            write_report(*arguments, CONF, DOCS)
    (results / RTS).write_text("{}")
    with pytest.raises(UsageError, match=r"rts-fast-seed1-15000\.json is not the result of a run"):
        write_report(out, results, [], CONF, DOCS)
    assert not out.parent.exists()


def test_script_prints_the_path_of_the_page(runs, tmp_path, run_program):
    out = tmp_path / "index.html"
    assert str(out) in run_program(report.main, "--runs", runs, "--out", out)[1]
    error, *_ = run_program(report.main, "--runs", tmp_path / "absent")
    assert error.startswith("error: --runs must be directories")


@pytest.fixture
def open_page(browser, written):
    return partial(open_file, browser, written)


def box(browser, element):
    script = (
        "const r = arguments[0].getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]"
    )
    return browser.execute_script(script, element)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_layout_and_colours(open_page, page, width, scheme):
    browser = open_page(width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for section, _ in page.sections()[0]:
        browser.find_element("css selector", f"nav a[href='#{section}']").click()
        assert 0 <= box(browser, browser.find_element("id", section))[1] < 844
    card = browser.find_element("css selector", "section.card")
    ground, ink = (card.value_of_css_property(name) for name in ("background-color", "color"))
    assert contrast(ink, "rgb(255, 255, 255)" if scheme == "light" else "rgb(0, 0, 0)") > 7
    outcomes = (".verdict.better", ".verdict.worse", ".verdict.same", ".verdict.incomparable")
    for selector in (*outcomes, ".note", ".not-run-cell", "section.card a"):
        text = browser.find_element("css selector", selector).value_of_css_property("color")
        assert contrast(text, ground) >= 4.5, selector
    assert browser.get_log("browser") == []
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert all(name.startswith("data:") for name in loaded), loaded


@pytest.mark.browser
def test_tables_fit_or_keep_their_first_column(open_page):
    script = (
        "return [...document.querySelectorAll('section .wide')]"
        ".filter(element => element.scrollWidth > element.clientWidth)"
    )
    assert open_page(1280).execute_script(script) == []
    browser = open_page(390)
    for table in browser.execute_script(script):
        label = table.find_element("css selector", "tbody th[scope=row]")
        browser.execute_script("arguments[0].scrollLeft = 999", table)
        left, _, right, _ = box(browser, label)
        assert 0 <= left < right < 390


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_focus_shows_the_details_of_a_cell(open_page, width):
    from selenium.webdriver import ActionChains, Keys

    browser = open_page(width)
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        cell = browser.switch_to.active_element
        if "ours" in (cell.get_attribute("class") or ""):
            break
    for _ in range(12):  # also where there is less room below
        details = browser.find_element("id", cell.get_attribute("aria-describedby"))
        assert re.search(r"python train.py (-m )?experiment=mnist", details.text)
        (_, cell_top, _, cell_bottom), (left, top, right, bottom) = (
            box(browser, element) for element in (cell, details)
        )
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= 844
        assert cell_bottom <= top + 2 or cell_top >= bottom - 2, "the details cover their cell"
        ActionChains(browser).send_keys(Keys.TAB).perform()
        assert not details.is_displayed()
        cell = browser.switch_to.active_element


@pytest.mark.browser
def test_pointing_shows_the_details_of_a_cell(open_page):
    from selenium.webdriver import ActionChains

    browser = open_page(1280)
    cell = browser.find_element("css selector", "td.ours")
    details = browser.find_element("id", cell.get_attribute("aria-describedby"))
    assert not details.is_displayed()
    ActionChains(browser).scroll_to_element(cell).move_to_element(cell).perform()
    assert details.is_displayed()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("motion", "before", "after"),
    [
        ("no-preference", ("film", "running"), ("film", "paused")),
        ("reduce", ("none", "running"), ("film", "running")),
    ],
)
def test_animations_can_be_paused(open_page, motion, before, after):
    browser = open_page(1280, motion=motion)
    film = browser.find_element("css selector", ".moving")
    names = ("animation-name", "animation-play-state")
    assert tuple(map(film.value_of_css_property, names)) == before
    browser.find_element("css selector", ".switch input").click()
    assert tuple(map(film.value_of_css_property, names)) == after
