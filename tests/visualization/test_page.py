"""The page of tools/visualize.py serve: what its functions give, and in a browser."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dcndet.data.errors import DataError
from dcndet.models import Detector
from dcndet.models.classifiers import ImageClassifier
from dcndet.models.engine import EngineError
from dcndet.models.inference import Detections
from dcndet.models.visualization import draw_boxes, sampling_points
from PIL import Image
from torch import nn

import dcn
from tests.command import run_tool
from tests.conftest import insisting_skip
from tests.inference.conftest import ROOT, TINY, save_random_weights
from tests.tools.conftest import write_squares

TOOL = ROOT / "tools" / "visualize.py"
CONFIG = f"""
_base_ = {str(TINY)!r}
model = dict(
    backbone=dict(type="DeformResNet", deform=dict(layers=5)),
    roi_head=dict(bbox_roi_extractor=dict(pool="mdpool", deform=dict(fc_channels=16))),
)
"""
LAST = "backbone.layer3.1.conv2"
GREEN = (127, 255, 0)  # of the output position


@pytest.fixture(scope="module")
def page():
    """The module, which needs Gradio."""
    try:
        import gradio  # noqa: F401
    except ImportError:
        insisting_skip("requirements-page.txt is not installed")
    from dcndet.models.visualization import page

    return page


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A config beside its dataset, and weights that have offsets."""
    folder = tmp_path_factory.mktemp("page")
    write_squares(folder)
    config = folder / "deformed.py"
    config.write_text(CONFIG)
    path = save_random_weights(config, folder / "deformed.pth", ("square",))
    weights = torch.load(path)
    for name, value in weights["state_dict"].items():
        if name.endswith("conv_offset.bias"):
            nn.init.uniform_(value, -3, 3, torch.Generator().manual_seed(len(name)))
    torch.save(weights, path)
    return config, path


@pytest.fixture(scope="module")
def detector(files):
    return Detector(*files, device="cpu")


def green(picture):
    """(x, y) of the middle of what is green in a picture, [H, W, 3]."""
    rows, columns = np.nonzero((abs(picture.astype(int) - GREEN) < 12).all(-1))
    assert len(rows)
    return columns.mean(), rows.mean()


@pytest.mark.parametrize("size", [(50, 100), (900, 301), (1600, 1700), (5000, 3)])
def test_a_click_is_of_the_pixel_under_it(page, size):
    image = np.zeros((*size, 3), np.uint8)
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), ("a",), image)
    opened = page.Opened(empty)
    rows, columns = draw_boxes(image, [], [], [], ("a",), page.MIN_SIDE, page.MAX_SIDE).shape[:2]
    assert (columns, rows) == page.picture_size(*size[::-1])
    assert 768 <= max(rows, columns) <= 1280
    corner = size[1] - 1, size[0] - 1
    # A pixel of the picture is up to four of the image.
    assert opened.clicked((0, 0)).at == pytest.approx((0, 0), abs=2)
    assert opened.clicked((columns - 1, rows - 1)).at == pytest.approx(corner, abs=2)
    middle = opened.clicked(((columns - 1) / 2, (rows - 1) / 2)).at
    assert middle == pytest.approx((corner[0] / 2, corner[1] / 2), abs=0.06)


def test_a_click_draws_the_points_of_the_position_there(page, files, detector):
    opened = page.open_image(detector, files[0].with_name("0.png")).clicked((480, 240))
    assert opened.at == pytest.approx((39.5, 19.5), abs=0.1)
    shown = page.look(detector, opened, LAST, 1, 0.0)
    assert shown.picture.shape == (768, 768, 3)
    points = sampling_points(detector, opened.found.image, opened.at, LAST)
    assert green(shown.picture) == pytest.approx([12 * (xy + 0.5) for xy in points.at], abs=3)
    plain = page.look(detector, opened, LAST, 1, 1.0).picture.astype(int)
    inside = (points.x > 1) & (points.x < 62) & (points.y > 1) & (points.y < 62)
    assert inside.sum() >= 3
    original = np.asarray(
        Image.open(files[0].with_name("0.png")).resize((768, 768), Image.Resampling.BICUBIC)
    )
    assert (plain == original).all(-1).mean() > 0.9  # the points lie on it, and nothing is moved
    for x, y in zip(points.x[inside], points.y[inside], strict=True):
        assert (plain - original)[round(12 * (y + 0.5)), round(12 * (x + 0.5))].any()

    assert f"<b>{LAST}</b>: at (32.0, 16.0); stride 16 × 16 pixels" in shown.caption
    assert "; 9 points" in shown.caption
    assert f"mean Δm {points.weight.mean():.3g} " in shown.caption
    assert len(shown.boxes) == len(opened.found) > 0
    assert shown.boxes[0][0] == "square"
    score = opened.found.scores[2].item()
    assert len(page.look(detector, opened, LAST, 1, score).boxes) == 3
    deep = page.look(detector, opened, LAST, 3, 1.0)
    assert f"<b>{LAST}</b> ← <b>backbone.layer3.1.conv1</b> ← " in deep.caption
    assert (deep.picture != plain).any()


def test_the_caption_says_what_was_pooled_and_what_is_refused(page, files, detector):
    opened = page.open_image(detector, files[0].with_name("0.png"))
    pool = page.layers_by_stage(detector.model)["RoI pooling"][0]
    assert "RoIs: " in page.look(detector, opened, pool, 1, 0.3).caption
    shown = page.look(detector, opened, "<none>", 1, 0.3)
    assert 'role="alert">layer: no deformable layer &lt;none&gt;; there are' in shown.caption
    image = np.asarray(Image.open(files[0].with_name("0.png")))
    boxes, found = opened.found.boxes, opened.found
    labels, scores = found.labels.tolist(), found.scores.tolist()
    drawn = draw_boxes(image, boxes, labels, scores, found.classes, page.MIN_SIDE)
    np.testing.assert_array_equal(shown.picture, drawn)


def test_wrong_files(page, detector, tmp_path):
    (tmp_path / "text.png").write_text("words")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.effect_noise((64, 64), 99).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    Image.new("1", (5001, 5000)).save(tmp_path / "large.png")
    for name, message in (
        ("text.png", "text.png is not an image that Pillow can read"),
        ("empty.png", "image empty.png has zero bytes"),
        ("cut.png", "cannot decode image cut.png: .*truncated"),
        ("large.png", "cannot decode image large.png: it has 5001x5000 pixels, more than 25,000,"),
        ("none.png", "cannot read image none.png: No such file"),
    ):
        with pytest.raises(DataError, match=f"^{message}"):
            page.open_image(detector, tmp_path / name)


def test_layers_are_offered_by_stage(page):
    conv = dcn.DeformConv2d(2, 2, 3)
    scope = dcn.LocalDeformKernel2d(3, 2, 2, 3)
    net = nn.ModuleDict(dict(backbone=nn.ModuleDict(), roi_head=nn.ModuleDict()))
    net["backbone"]["layer2"] = nn.Sequential(nn.ModuleDict(dict(conv2=conv)))
    net["backbone"]["levels"] = nn.ModuleList([nn.ModuleDict(dict(a=conv, b=scope)), scope])
    net["backbone"]["levels"].append(nn.ModuleDict(dict(c=dcn.DCNv3(16, group=1))))
    net["roi_head"]["pool"] = dcn.DeformRoIPool(3, 2, fc_channels=4)
    net["backbone"]["levels"][0]["a"] = dcn.DeformConv2d(2, 2, 3)
    assert page.layers_by_stage(net) == {
        "layer2": ["backbone.layer2.0.conv2"],
        "levels.0": ["backbone.levels.0.a"],
        "levels.2": ["backbone.levels.2.c"],
        "RoI pooling": ["roi_head.pool"],
    }
    with pytest.raises(EngineError, match="the model has no deformable layers"):
        page.layers_by_stage(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(EngineError, match="none on the image"):
        page.layers_by_stage(nn.Sequential(scope))


def test_a_classifier_has_no_page(page):
    model = ImageClassifier(dict(type="SmallCNN", channels=[4], _scope_="mmdet"), 4, 10)
    with pytest.raises(EngineError, match="this model is a classifier"):
        page.make_page(SimpleNamespace(model=model))


def test_one_request_at_a_time_and_a_click_before_an_image(page, detector):
    functions = page.make_page(detector).fns.values()
    assert {(each.concurrency_id, each.concurrency_limit) for each in functions} == {
        ("detector", 1)
    }
    [click] = [each.fn for each in functions if each.name == "click"]
    opened, picture, caption, boxes = click(SimpleNamespace(index=(1, 1)), None, LAST, 1, 0.3)
    assert opened is picture is boxes is None
    assert "Upload an image first" in caption


@pytest.fixture
def serve(files, monkeypatch):
    """Runs the tool in this process; what it exits with."""
    monkeypatch.chdir(files[0].parent)

    def run(*arguments, config=files[0], checkpoint=files[1]):
        return run_tool("visualize.py", "serve", config, checkpoint, "--device", "cpu", *arguments)

    return run


def test_without_gradio_the_tool_says_how_to_install_it(serve, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "dcndet.models.visualization.page", raising=False)
    assert serve() == (
        "error: the page needs gradio, which is not installed: "
        "pip install --no-deps -r requirements-page.txt"
    )


def test_refusals_at_start(page, serve, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve("--port", port).startswith(
            f"error: --host 127.0.0.1 --port {port}: Address already in use"
        )
    regular = save_random_weights(TINY, tmp_path / "regular.pth", ("square",))
    assert (
        serve("--port", 0, config=TINY, checkpoint=regular)
        == "error: the model has no deformable layers; its backbone is a ResNet"
    )


@pytest.fixture
def address(page, files, tmp_path):
    """Of a server on the dataset, which is ended by Ctrl-C and leaves no file."""
    command = [sys.executable, TOOL, "serve", *files, "--device", "cpu", "--port", "0"]
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=files[0].parent,
        env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    printed = []
    try:
        for line in process.stdout:
            printed.append(line)
            if found := re.match(r"http://\S+", line):
                yield found[0]
                break
        else:
            pytest.fail("".join(printed))
        assert list(tmp_path.glob("*/*/*.png"))  # what the page shows
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
        assert "Traceback" not in rest, rest
        assert process.returncode == -signal.SIGINT
        assert not list(tmp_path.glob("*/*/*.png"))
    finally:
        process.kill()
        process.wait()


def test_page_in_a_browser(tab, address, tmp_path):
    requests, wrong = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto(address)
    picture, caption = tab.locator("#picture img"), tab.locator("#caption")
    caption.locator("b").wait_for()  # the first example
    assert tab.title() == "Where deformable convolutions look"
    assert tab.locator("#examples img").count() == 6

    tab.locator("#boxes").get_by_text("square").filter(visible=True).first.wait_for()

    def changed(act):
        """What is seen of the picture after `act` has changed it."""
        before = picture.get_attribute("src")
        act()
        tab.wait_for_function(
            "src => [...document.querySelectorAll('#picture img')]"
            ".some(e => e.getAttribute('src') != src && e.complete)",
            arg=before,
        )
        return np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("RGB"))

    width = picture.bounding_box()["width"]
    for share in (0.8, 0.3):
        seen = changed(lambda at=share * width: picture.click(position=dict(x=at, y=at)))
        assert green(seen) == pytest.approx((share * width,) * 2, abs=width / 8)  # stride / 2
    assert LAST in caption.inner_text()
    changed(lambda: tab.get_by_label("3", exact=True).check())
    assert "backbone.layer3.0.conv2: at (" in caption.inner_text()
    changed(lambda: tab.get_by_label("layer2").check())
    assert "backbone.layer2.1.conv2: at (" in caption.inner_text()
    assert tab.get_by_label("1", exact=True).is_checked()  # no layer lies before it
    tab.get_by_label("Layer", exact=True).click()
    changed(lambda: tab.get_by_role("option", name="layer3.0.conv2").click())
    assert "backbone.layer3.0.conv2: at (" in caption.inner_text()
    assert tab.get_by_label("layer3", exact=True).is_checked()

    def upload(path):
        tab.get_by_test_id("Upload an image-upload-button").set_input_files(path)

    (tmp_path / "text.png").write_text("words")
    upload(tmp_path / "text.png")
    alert = caption.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text() == "text.png is not an image that Pillow can read"
    Image.new("1", (10000, 10000)).save(tmp_path / "large.png")
    upload(tmp_path / "large.png")
    alert.get_by_text("more than 25,000,000").wait_for()
    (tmp_path / "heavy.png").write_bytes(bytes(33 * 2**20))
    upload(tmp_path / "heavy.png")
    tab.get_by_text("maximum allowed size").wait_for()
    Image.effect_noise((120, 40), 99).save(tmp_path / "own.png")
    seen = changed(lambda: upload(tmp_path / "own.png"))
    assert seen.shape[1] / seen.shape[0] == pytest.approx(3, rel=0.02)
    assert not wrong
    assert all(url.startswith((address, "data:", "blob:")) for url in requests)
