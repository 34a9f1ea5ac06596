"""The report page."""

import json
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser

import pytest
import report
from conftest import REPOSITORY
from PIL import Image

from spatial_transformer.paper import TABLE_1
from spatial_transformer.reporting.html import compare_to_paper, write_report
from spatial_transformer.reporting.paper_tables import TableCell, paper_tables
from spatial_transformer.training.validation import validate
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.visualization.drawing import image_grid

CONF, DOCS, RESULTS = (REPOSITORY / name for name in ("conf", "docs", "results"))
TABLES = ("mnist", "svhn", "addition", "colocalisation", "volumes", "birds")
SECTIONS = (
    "numbers",
    "reading",
    "means",
    "colocalisation",
    "birds",
    "curves",
    "speed",
    "documents",
)
BIRDS = "birds_2st/birds_2st-efficientnet_lite0-location-birds_differences-seed1-400.json"
FOUND = "colocalisation/colocalisation-tc-3-colocalisation-seed1-6000.json"
RTS = "mnist/st_fcn-affine-rts-fast-seed1-15000.json"


class Page(HTMLParser):
    """All elements as (tag, attributes), and the rows of each table of a section with an id, without their details."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables = [], {}
        self.section = self.hidden = None
        self.feed(text)

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


def drawn(size):
    """A grey ramp, (size, size)."""
    return Image.linear_gradient("L").resize((size, size)).convert("RGB")


def noise(size):
    """What weighs more than any photograph."""
    return Image.effect_noise((size, size), 60).convert("RGB")


def run_folder(folder, record, errors=(40.0, 10.0, 2.5), size=42, seed=1, draw=drawn, **of_model):
    """A run folder as train.py leaves it, of one of the records with some changes."""
    made = json.loads((RESULTS / record).read_text()) | {"seed": seed}
    made["config"]["data"]["seed"] = seed
    made["config"]["model"] |= of_model
    (folder / "crops").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(made))
    lines = [f"{500 * n + 499},0.5,\n{500 * n + 499},,{error}\n" for n, error in enumerate(errors)]
    (folder / "metrics.csv").write_text("step,train/loss,val/error\n" + "".join(lines))
    for n in range(len(errors) + 1):
        columns = [[draw(size)] * 2 for _ in range(12)]
        for name in ("crops", "mean_images"):
            image_grid(columns, ["1"] * 12, f"step {500 * n}").save(
                folder / "crops" / f"{name}_{500 * n:07d}.png"
            )
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds on distorted MNIST, one of co-localisation, one of birds."""
    folder = tmp_path_factory.mktemp("runs")
    run_folder(folder / "first", RTS)
    run_folder(folder / "second", RTS, errors=(44.0, 14.0, 3.5), seed=2)
    run_folder(folder / "found", FOUND, size=250)
    run_folder(folder / "birds", BIRDS, size=224)
    return folder


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    """The page of all records and of these runs."""
    out = tmp_path_factory.mktemp("report") / "index.html"
    assert write_report(out, RESULTS, [runs], CONF, DOCS) == []
    return out


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text(encoding="utf-8"))


@pytest.fixture
def results(tmp_path):
    """Records that a test may change."""
    return shutil.copytree(RESULTS, tmp_path / "results")


def test_every_cell_of_every_table_is_there(page):
    expected = paper_tables(RESULTS, CONF)
    assert set(page.tables) == set(expected) == set(TABLES)
    for name, table in expected.items():
        rows = [[table.header[1], *table.columns]]
        for network in table.networks:
            rows.append([network.name])
            if network.numbers is not None:
                rows.append(
                    [
                        table.paper_row,
                        *("–" if number is None else str(number) for number in network.numbers),
                    ]
                )
            rows += [[about, *(cell.text for cell in cells)] for about, cells in network.rows]
        assert page.tables[name] == rows
    paper = page.tables["mnist"][page.tables["mnist"].index(["ST-CNN TPS"]) + 1]
    assert [str(TABLE_1["ST-CNN TPS"][column]) for column in ("r", "rts", "p", "e")] == paper[1:5]


def test_a_cell_tells_its_runs_and_its_command(written):
    record = json.loads((RESULTS / RTS).read_text())
    told = re.search(r'id="mnist-3-1-2">(.*?)</div>', written.read_text(encoding="utf-8"), re.S)[1]
    assert "<strong>ST-FCN affine</strong>, RTS" in told
    assert f"Seed 1: <strong>{record['metrics']['test/error']:.2f}</strong>" in told
    assert record["commit"][:10] in told
    assert "fast, 15,000" in told
    assert re.search(
        r"python train.py (-m )?experiment=mnist model=st_fcn transform=affine recipe=fast data.distortion=rts seed=1",
        told,
    )


def test_without_its_record_a_cell_was_not_run(results, tmp_path):
    def of_affine():
        write_report(tmp_path / "index.html", results, [], CONF, DOCS)
        rows = Page((tmp_path / "index.html").read_text(encoding="utf-8")).tables["mnist"]
        return rows[rows.index(["ST-FCN affine"]) + 2]

    before = of_affine()
    for record in results.glob(RTS.replace("seed1", "seed*")):
        record.unlink()
    after = of_affine()
    assert before[2] != "not run"
    assert after == [*before[:2], "not run", *before[3:]]


@pytest.mark.parametrize(
    ("paper", "values", "higher_is_better", "expected"),
    [
        (0.8, [1.1], False, ("worse", "+0.30 worse")),
        (0.8, [0.5], False, ("better", "−0.30 better")),
        (0.8, [0.84], False, ("same", "= equal")),
        (0.8, [0.5, 1.3], False, ("same", "+0.10 within ±")),
        (83.1, [74.3], True, ("worse", "−8.80 worse")),
        (81, [94.0], True, ("better", "+13 better")),
        (None, [1.0], False, None),
        (0.8, [], False, None),
    ],
)
def test_a_verdict_has_a_sign_and_a_word(paper, values, higher_is_better, expected):
    cell = TableCell("R", paper, [{} for _ in values], values, "", {})
    assert compare_to_paper(cell, higher_is_better) == expected


def test_nothing_is_loaded_from_anywhere(written, page):
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
        if tag != "a":
            for name in ("href", "xlink:href"):
                assert attributes.get(name, "#").startswith(("#", "data:")), (tag, name)
    text = written.read_text(encoding="utf-8")
    assert all(target.startswith(("data:", "#")) for target in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    assert "<script" not in text


def test_links_lead_somewhere(written, page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    for link in links:
        assert (
            link.startswith("https://arxiv.org/")
            or link[1:] in ids
            or (written.parent / link).is_file()
        ), link
    assert {(written.parent / link).resolve() for link in links} >= set(DOCS.glob("**/*.md"))


def test_pictures_charts_and_tables_are_told(page):
    shown = [
        (tag, a)
        for tag, a in page.elements
        if tag == "img" or a.get("role") == "img" or tag == "svg"
    ]
    assert len([tag for tag, _ in shown if tag == "svg"]) >= 4
    assert all(
        (attributes.get("alt") or attributes.get("aria-label", "")).strip()
        for _, attributes in shown
    )
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table")
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    films = [
        attributes["aria-label"]
        for _, attributes in page.elements
        if "moving" in attributes.get("class", "")
    ]
    assert len(films) == 3
    described = [
        attributes["aria-describedby"]
        for _, attributes in page.elements
        if "aria-describedby" in attributes
    ]
    assert set(described) <= {attributes.get("id") for _, attributes in page.elements}


def test_every_data_set_is_shown_before_a_second_network_on_one(tmp_path):
    for name in ("affine-rts", "projective-rts", "tps-rts", "affine-tc"):
        record = f"mnist/st_fcn-{name}-fast-seed1-15000.json"
        run_folder(tmp_path / "runs" / record, record)
    write_report(tmp_path / "page.html", RESULTS, [tmp_path / "runs"], CONF, DOCS)
    page = Page((tmp_path / "page.html").read_text())
    films = [
        attributes["aria-label"]
        for _, attributes in page.elements
        if "moving" in attributes.get("class", "")
    ]
    assert len(films) == 4
    assert "TC" in films[1]


def test_seeds_are_one_line_of_a_chart(page):
    (label,) = [
        a["aria-label"]
        for tag, a in page.elements
        if tag == "svg" and "distorted MNIST" in a["aria-label"]
    ]
    line = "ST-FCN affine, fast, 15,000 steps, seeds 1, 2: 42.00 % after 500, 3.00 % at the end"
    assert label == f"Validation error, distorted MNIST, RTS; {line}"


def test_charts_are_in_the_order_of_the_tables_and_show_errors_of_0(tmp_path):
    run_folder(tmp_path / "runs" / "a", FOUND, errors=(100.0, 0.0, 0.0))
    run_folder(tmp_path / "runs" / "b", RTS)
    write_report(tmp_path / "index.html", RESULTS, [tmp_path / "runs"], CONF, DOCS)
    section = (tmp_path / "index.html").read_text().partition('id="curves"')[2]
    charts = re.findall(r'<svg[^>]*aria-label="Validation error, ([^,]*).*?</svg>', section, re.S)
    assert charts == ["distorted MNIST", "co-localisation"]
    of_0 = re.search(
        r'<svg[^>]*aria-label="Validation error, co-localisation.*?</svg>', section, re.S
    )[0]
    assert re.search(r">\s*0\s*</text>", of_0), "a tick of the axis"


def test_the_page_is_light(written):
    assert written.stat().st_size < 2e6


@pytest.mark.slow
def test_the_page_is_light_whatever_the_pictures(tmp_path):
    for n in range(4):
        for name, record, size in (
            ("digits", RTS, 126),
            ("found", FOUND, 250),
            ("birds", BIRDS, 224),
        ):
            run_folder(
                tmp_path / "runs" / f"{name} {n}", record, errors=(), size=size, draw=noise, width=n
            )
    write_report(tmp_path / "index.html", RESULTS, [tmp_path / "runs"], CONF, DOCS)
    assert (tmp_path / "index.html").stat().st_size < 5e6


def test_sections_without_material_say_what_makes_it(results, tmp_path, composed):
    for name in ("benchmarks", *(folder.name for folder in results.glob("birds_*"))):
        shutil.rmtree(results / name)
    write_report(tmp_path / "index.html", results, [], CONF, DOCS)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    missing = re.findall(r'<p class="missing">.*?<code class="command">(.*?)</code>', text)
    assert len(missing) == 7
    for command in missing:
        if command.startswith("make "):
            assert f"\n{command.removeprefix('make ')}:" in (REPOSITORY / "Makefile").read_text()
        else:
            words = shlex.split(command)
            assert words[:2] == ["python", "train.py"]
            validate(composed(*words[2:]))


def test_what_is_broken_is_named_and_the_rest_is_shown(tmp_path):
    folders = [run_folder(tmp_path / "runs" / name, RTS) for name in ("a", "b", "c", "d", "e")]
    (folders[0] / "metrics.csv").write_text("step,val/error\n499,twelve\n")
    picture = folders[1] / "crops" / "crops_0000500.png"
    picture.write_bytes(picture.read_bytes()[:200])
    (folders[2] / "metrics.json").write_text("{")
    other = json.loads((folders[3] / "metrics.json").read_text()) | {"model": "no_such_model"}
    (folders[3] / "metrics.json").write_text(json.dumps(other))
    (folders[4] / "metrics.json").write_text(
        '{"experiment": "mnist", "metrics": {"test/error": 1.0}}'
    )
    problems = write_report(tmp_path / "index.html", RESULTS, [tmp_path / "runs"], CONF, DOCS)
    assert len(problems) == 5
    for name in (
        "a/metrics.csv",
        "b/crops/crops_0000500.png",
        "c/metrics.json",
        "d/metrics.json",
        "e/metrics.json",
    ):
        assert any(name in problem for problem in problems), name
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'id="problems"' in text
    assert "b/crops/crops_0000500.png cannot be read as a PNG file" in text
    assert "ST-FCN affine, distorted MNIST, RTS</strong>" in text


def test_without_folders_or_with_a_broken_record_nothing_is_written(results, tmp_path):
    out = tmp_path / "report" / "index.html"
    with pytest.raises(UsageError, match=r"absent is not a directory of results"):
        write_report(out, tmp_path / "absent", [], CONF, DOCS)
    with pytest.raises(
        UsageError, match=r"--out must be a file, got the directory .*Use --out=.*index.html"
    ):
        write_report(tmp_path, results, [], CONF, DOCS)
    with pytest.raises(UsageError, match=r"--runs must be directories of runs, got .*absent"):
        write_report(out, results, [tmp_path / "absent"], CONF, DOCS)
    (results / RTS).write_text("{}")
    with pytest.raises(UsageError, match=r"rts-fast-seed1-15000.json is not the result of a run"):
        write_report(out, results, [], CONF, DOCS)
    assert not out.parent.exists()


def test_the_program_says_where_the_page_is(runs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "index.html"
    monkeypatch.setattr(sys, "argv", ["report.py", "--runs", str(runs), "--out", str(out)])
    report.main()
    assert str(out) in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["report.py", "--runs", str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match="error: --runs must be directories of runs"):
        report.main()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is in requirements-dev.txt"
    )
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(
            "Chromium or its driver is not here: on Debian, apt-get install chromium chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for option in (
        *(
            "headless=new",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-background-networking",
        ),
        *(
            "disable-component-update",
            "disable-sync",
            f"user-data-dir={tmp_path_factory.mktemp('profile')}",
        ),
    ):
        options.add_argument(f"--{option}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def opened(browser, written, width, scheme="light", motion="no-preference"):
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": name, "value": value} for name, value in features.items()]},
    )
    browser.get("about:blank")  # where a hash is left over, the page would not be loaded again
    browser.get(written.as_uri())


def contrast(one, other):
    """Of two colours as a browser tells them, by WCAG 2."""

    def luminance(colour):
        channels = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_every_section_can_be_reached(browser, written, width, scheme):
    opened(browser, written, width, scheme)
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for section in SECTIONS:
        browser.find_element("css selector", f"nav a[href='#{section}']").click()
        assert browser.current_url.endswith(f"#{section}")
        heading = browser.find_element("id", section)
        assert heading.is_displayed()
        assert (
            0
            <= browser.execute_script("return arguments[0].getBoundingClientRect().top", heading)
            < 844
        )
    ground, ink = (
        browser.find_element("css selector", "section.card").value_of_css_property(name)
        for name in ("background-color", "color")
    )
    assert contrast(ink, "rgb(255, 255, 255)" if scheme == "light" else "rgb(0, 0, 0)") > 7
    for shown in (
        ".verdict.better",
        ".verdict.worse",
        ".verdict.same",
        ".note",
        ".not-run",
        "section.card a",
    ):
        text = browser.find_element("css selector", shown).value_of_css_property("color")
        assert contrast(text, ground) >= 4.5, shown
    assert browser.get_log("browser") == []
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert all(name.startswith("data:") for name in loaded), loaded


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_tab_key_reaches_a_cell_and_shows_its_details(browser, written, width):
    from selenium.webdriver import ActionChains, Keys

    opened(browser, written, width)
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        cell = browser.switch_to.active_element
        if "ours" in (cell.get_attribute("class") or ""):
            break
    details = browser.find_element("id", cell.get_attribute("aria-describedby"))
    for _ in range(12):  # also further down, where there is less room
        assert details.is_displayed()
        assert re.search(r"python train.py (-m )?experiment=mnist", details.text)
        of_cell, of_details = (
            browser.execute_script(
                "const r = arguments[0].getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]",
                e,
            )
            for e in (cell, details)
        )
        assert of_details[0] >= 0
        assert of_details[1] >= 0
        assert of_details[2] <= width
        assert of_details[3] <= 844
        assert of_cell[3] <= of_details[1] + 2 or of_cell[1] >= of_details[3] - 2, (
            "the details lie on their cell"
        )
        before = details
        ActionChains(browser).send_keys(Keys.TAB).perform()
        cell = browser.switch_to.active_element
        details = browser.find_element("id", cell.get_attribute("aria-describedby"))
        assert not before.is_displayed()


@pytest.mark.browser
def test_pointing_at_a_cell_shows_its_details(browser, written):
    from selenium.webdriver import ActionChains

    opened(browser, written, 1280)
    cell = browser.find_element("css selector", "td.ours")
    details = browser.find_element("id", cell.get_attribute("aria-describedby"))
    assert not details.is_displayed()
    ActionChains(browser).scroll_to_element(cell).move_to_element(cell).perform()
    assert details.is_displayed()


@pytest.mark.browser
def test_films_can_be_stopped_and_wait_where_motion_is_unwelcome(browser, written):
    def motion():
        film = browser.find_element("css selector", ".moving")
        return film.value_of_css_property("animation-name"), film.value_of_css_property(
            "animation-play-state"
        )

    for preference, before, after in (
        ("no-preference", ("film", "running"), ("film", "paused")),
        ("reduce", ("none", "running"), ("film", "running")),
    ):
        opened(browser, written, 1280, motion=preference)
        assert motion() == before
        browser.find_element("css selector", ".switch input").click()
        assert motion() == after
