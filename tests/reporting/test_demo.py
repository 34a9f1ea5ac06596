"""The demo page, in Chromium where there is one."""

import math
import re

import make_demo
import pytest
import torch
from chromium import contrast, open_file
from conftest import REPOSITORY
from PIL import Image
from samples import set_up
from torch import nn

from spatial_transformer.data.mnist import MnistData
from spatial_transformer.data.mnist.distortions import rotate_scale_translate, rts_pose
from spatial_transformer.inference.load import load_trained
from spatial_transformer.utils.errors import UsageError

CLASSIFY = """
const [network, images] = arguments;
const map = (image) => ({c: 1, h: 42, w: 42, d: Float32Array.from(image)});
return images.map((image) => classify(DATA.networks[network], map(image)).probabilities);
"""
MOVE = """
setDigit(arguments[0]);
for (const id in arguments[1]) Object.assign(element(id), {step: "any", value: arguments[1][id]});
show();
return Array.from(warp(source(), pose()).d);
"""
ANSWERS = "show(); return DATA.networks.map((network, n) => element(`answer-${n}`).textContent)"
INPUTS = ["rotation", "scale", "x", "y", "clutter"]
BUTTONS = [*(str(digit) for digit in range(10)), "random", "reset", "clear"]


@pytest.fixture(scope="module")
def page_digits(digits):
    return (digits[:10, 0] * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def page(page_digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "index.html"
    make_demo.write_demo(out, page_digits)
    return out


def images_of(source, request):
    """Return RTS images, 100 of real test digits or 20 of drawn ones."""
    if source == "real":
        data = set_up(MnistData("rts", root=request.getfixturevalue("mnist_root")))
        return data.samples("test", torch.arange(100))[0]
    return rotate_scale_translate(request.getfixturevalue("digits")[:20], torch.arange(20), 42)


@pytest.mark.browser
@pytest.mark.parametrize("source", ["real", "drawn"])
def test_probabilities_agree_with_pytorch(browser, page, source, request):
    images = images_of(source, request)
    open_file(browser, page, 1280)
    for n, file in enumerate(make_demo.NETWORKS.values()):
        network = load_trained(REPOSITORY / "checkpoints" / file).task.network
        with torch.inference_mode():
            expected = network(images).softmax(dim=1)
        got = torch.tensor(browser.execute_script(CLASSIFY, n, images.flatten(1).tolist()))
        assert (got - expected).abs().max() < 2e-3, file


@pytest.mark.browser
def test_sliders_move_a_digit_as_the_training_data(browser, page, page_digits):
    keys = torch.arange(10)
    expected = rotate_scale_translate(page_digits[:, None] / 255, keys, 42)
    open_file(browser, page, 1280)
    for digit, pose in enumerate(rts_pose(keys, 42)):
        (a, b), shift = pose[0, :2].tolist(), -torch.linalg.solve(pose[:, :2], pose[:, 2])
        values = {"scale": 1 / math.hypot(a, b), "rotation": math.degrees(math.atan2(b, a))}
        values |= dict(zip("xy", shift.tolist()))
        got = torch.tensor(browser.execute_script(MOVE, digit, values))
        torch.testing.assert_close(got, expected[digit].flatten(), atol=1e-4, rtol=0)
        assert browser.find_element("id", "outside").text == ""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_digit_can_be_drawn(browser, page, width):
    from selenium.webdriver import ActionChains

    open_file(browser, page, width)
    browser.execute_script("setSliders({clutter: 5})")
    browser.find_element("id", "clear").click()
    assert browser.execute_script(ANSWERS) == ["–"] * 3
    assert browser.execute_script("return pose()") == [1, 0, 0, 0, 1, 0]
    browser.execute_script("scrollTo(0, 0)")
    canvas = browser.find_element("id", "draw")
    unit = canvas.size["width"] / 42
    pen = ActionChains(browser, duration=30)
    pen.move_to_element_with_offset(canvas, -6 * unit, -9 * unit).click_and_hold()
    for x, y in ((6, -9), (2, 0), (-2, 10)):
        pen.move_to_element_with_offset(canvas, x * unit, y * unit)
    pen.release().perform()
    assert browser.execute_script(ANSWERS)[:2] == ["7", "7"]
    drawn = browser.execute_script("return Array.from(source().d)")
    rows = torch.tensor(drawn).view(42, 42).sum(dim=1).nonzero().flatten()
    assert (rows.min() - 10.5).abs() < 2
    assert (rows.max() - 31.5).abs() < 2


@pytest.mark.browser
def test_a_line_lies_under_the_pointer_where_the_sliders_move_it(browser, page):
    from selenium.webdriver import ActionChains

    open_file(browser, page, 1280)
    browser.execute_script(
        "setDigit(null); setSliders({rotation: 60, scale: 0.8, x: 5, y: -3, clutter: 0})"
    )
    canvas = browser.find_element("id", "draw")
    ActionChains(browser).move_to_element_with_offset(canvas, 80, -40).click().perform()
    image = torch.tensor(
        browser.execute_script("return Array.from(warp(source(), pose()).d)")
    ).view(42, 42)
    centre = torch.stack([(image.sum(dim) / image.sum()) @ torch.arange(0.5, 42) for dim in (0, 1)])
    offset = torch.tensor([80.0, -40.0]) * 42 / canvas.size["width"]
    torch.testing.assert_close(centre - 21, offset, atol=0.3, rtol=0)


@pytest.mark.browser
def test_the_range_of_training_is_within_its_slider(browser, page):
    open_file(browser, page, 1280)
    browser.execute_script("setSliders({scale: 0.4}); show()")
    track, band = (
        browser.find_element("css selector", selector).rect
        for selector in (".track:has(#x-band)", "#x-band")
    )
    assert band["x"] >= track["x"] - 0.5
    assert band["x"] + band["width"] <= track["x"] + track["width"] + 0.5


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_drawing_area_stays_in_place(browser, page, width):
    open_file(browser, page, width)
    states = [
        "document.querySelectorAll('.answer, .sure').forEach((e) => e.textContent = '')",
        "setDigit(null); show()",
        "setDigit(7); show()",
    ]
    top = "return document.getElementById('draw').getBoundingClientRect().top + scrollY"
    assert len({browser.execute_script(f"{state}; {top}") for state in states}) == 1


@pytest.mark.browser
def test_the_keyboard_reaches_and_moves_everything(browser, page):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.wait import WebDriverWait

    def wait_for(id_, text):
        element = browser.find_element("id", id_)
        WebDriverWait(browser, 20).until(lambda _: element.get_attribute("textContent") == text)

    open_file(browser, page, 1280)
    reached = {}
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        focused = browser.switch_to.active_element
        name = f"{focused.tag_name} {focused.get_attribute('id') or focused.get_attribute('value')}"
        if name in reached:
            break
        reached[name] = focused
        is_radio = focused.get_attribute("type") == "radio"
        framed = focused.find_element("xpath", "ancestor::label") if is_radio else focused
        if focused.tag_name != "body":
            assert framed.value_of_css_property("outline-style") == "solid", name
    controls = {f"input {name}" for name in INPUTS} | {f"button {name}" for name in BUTTONS}
    assert controls <= reached.keys()
    reached["input 0"].send_keys(Keys.ARROW_RIGHT)
    wait_for("read-title", "Input of the classifier: ST-FCN")
    reached["button 3"].send_keys(Keys.SPACE)
    assert browser.execute_script("return digit") == 3
    reached["input rotation"].send_keys(Keys.END)
    wait_for("rotation-value", "90°")
    wait_for("outside", "Outside it: rotation.")
    answers = zip(make_demo.NETWORKS, browser.execute_script(ANSWERS))
    wait_for("status", ", ".join(f"{name}: {answer}" for name, answer in answers) + ".")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_loads_nothing(browser, page, width, scheme):
    open_file(browser, page, width, scheme)
    for chosen in browser.find_elements("name", "network"):
        chosen.click()
        browser.execute_script("show()")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_script("setSliders({rotation: 80, clutter: 9}); show()")
    ground = browser.find_element("tag name", "body").value_of_css_property("background-color")
    assert contrast(ground, "rgb(255, 255, 255)" if scheme == "light" else "rgb(0, 0, 0)") < 1.2
    for text in ("body", "footer", "header a", "#rotation-value", ".card .about"):
        colour = browser.find_element("css selector", text).value_of_css_property("color")
        assert contrast(colour, ground) >= 4.5, text
    assert browser.execute_script("return performance.getEntriesByType('resource')") == []
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_a_random_pose_is_in_the_training_range(browser, page):
    open_file(browser, page, 1280)
    for _ in range(8):
        browser.execute_script("element('random').click(); show()")
        assert browser.find_element("id", "outside").text == ""


def test_the_page_is_light_and_names_nothing_to_load(page):
    assert page.stat().st_size < 4e6
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert re.findall(r"https?://[^\"\s]*", text) == ["https://arxiv.org/abs/1506.02025"]
    assert set(re.findall(r"(?:src|href)=\"(.*?)\"", text)) == {
        "data:,",
        "https://arxiv.org/abs/1506.02025",
    }


def test_errors_and_steps_are_those_of_the_files(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    for name, file in make_demo.NETWORKS.items():
        record = load_trained(REPOSITORY / "checkpoints" / file).record
        assert f"{name}: {record['steps']:,} steps of recipe {record['recipe']}" in text
        assert (
            f"{record['metrics']['test/error']:.2f} % test error, {record['steps']:,} steps" in text
        )


def test_the_training_ranges_are_those_of_the_data():
    poses = rts_pose(torch.arange(20_000), 42)
    angle = torch.rad2deg(torch.atan2(poses[:, 0, 1], poses[:, 0, 0]))
    scale = 1 / poses[:, 0, :2].norm(dim=1)
    template = (REPOSITORY / "src/spatial_transformer/reporting/demo.html").read_text(
        encoding="utf-8"
    )
    (low, high), (smallest, largest) = (
        map(float, re.search(rf"{name}: \[(\S+), (\S+)\],", template).groups())
        for name in ("rotation", "scale")
    )
    assert [low, high] == [round(angle.min().item()), round(angle.max().item())]
    assert [smallest, largest] == [round(scale.min().item(), 2), round(scale.max().item(), 2)]


def test_an_unknown_layer_is_an_error():
    with pytest.raises(TypeError, match="does not have the layer Sigmoid"):
        make_demo.describe_layers([nn.Sigmoid()])


@pytest.mark.browser
def test_the_program_writes_page_and_animation(
    browser, drawn_mnist, tmp_path, monkeypatch, run_program
):
    monkeypatch.setattr(make_demo, "GIF_FRAMES", 3)
    page, gif = tmp_path / "new" / "index.html", tmp_path / "demo.gif"
    _, out, _ = run_program(make_demo.main, "--out", page, "--gif", gif)
    assert str(page) in out
    assert str(gif) in out
    with Image.open(gif) as image:
        assert image.n_frames == 3
        assert image.width == make_demo.GIF_WIDTH


def test_an_animation_without_chromium_is_an_error(page, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match="--gif needs Chromium"):
        make_demo.write_gif(page, tmp_path / "demo.gif")


def test_missing_data_are_reported(tmp_path, run_program):
    page = tmp_path / "index.html"
    error, *_ = run_program(make_demo.main, "--data-root", tmp_path, "--out", page)
    assert re.match(r"error: .*MNIST", error)
    assert not page.exists()
