"""The report of an ablation study, of made-up runs, and in a browser as its readers have it."""

import io
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.ablation import pictures
from tools.ablation.complexity import Complexity
from tools.ablation.plots import make_plots
from tools.ablation.report import write_report
from tools.ablation.results import METRICS, Record, read_log
from tools.ablation.study import Run, Study, StudyError
from tools.ablation.table import Row, make_rows

STUDY = """
title = 'A <i>study</i> & "more"'
base = "base.py"
rows = [
    dict(name="regular <b>|$x$", layers=0),
    dict(layers=3, conv="dconv"),
    dict(layers=3, conv="mdconv"),
    dict(layers=6, conv="mdconv"),
    dict(layers=9, conv="mdconv"),
]
seeds = [0, 1]
pictures = dict(cells=["regular <b>|$x$", "3 layers, mdconv", "6 layers, mdconv"], images=3)
"""
BASE = """
val_dataloader = dict(dataset=dict(
    type="DetectionDataset", data_root="{root}/", ann_file="val.json", data_prefix=dict(img="val/"),
    metainfo=dict(classes=("disc", "box")), test_mode=True, pipeline=[],
))
train_cfg = dict(max_epochs=2)
"""
AP = {"regular <b>|$x$": 0.4, "3 layers, dconv": 0.39, "3 layers, mdconv": 0.45}
AP["6 layers, mdconv"] = 0.5
ERROR = "error: <script>alert(1)</script>"
MACHINE = {"cpu": "<a> CPU", "dcn_vectors": "AVX", "none": None}


@dataclass
class Made:
    study: Study
    ended: list[tuple[Run, Record | None]]
    rows: list[Row]
    folder: Path

    def write(self) -> Path:
        return write_report(self.study, self.rows, self.folder, "tools/ablate.py a&b.py", MACHINE)

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.cell.name == name)


def make(root: Path) -> Made:
    """A study of five cells: the last is waiting, one run of 3 layers, dconv has failed."""
    _make_images(root)
    (root / "base.py").write_text(BASE.format(root=root))
    (root / "study.py").write_text(STUDY)
    study = Study.read(root / "study.py")
    ended: list[tuple[Run, Record | None]] = []
    for run in study.runs(root / "runs"):
        run.config.parent.mkdir(parents=True, exist_ok=True)
        run.config.write_text(run.text)
        name = run.cell.name
        if name not in AP:
            ended.append((run, None))
            continue
        if name == "3 layers, dconv" and run.seed == 1:
            ended.append((run, Record(finished=False, error=ERROR)))
            continue
        ap = AP[name] + 0.002 * run.seed
        _log(run.folder, run.cell.settings["layers"], ap)
        (run.folder / "epoch_2.pth").write_bytes(b"weights")
        (run.folder / "last_checkpoint").write_text("/moved/since/epoch_2.pth")
        found = [dict(image_id=7, category_id=5, bbox=[8, 8, 20, 20], score=s) for s in (0.9, 0.4)]
        (run.folder / "detections.json").write_text(json.dumps(found))
        metrics = dict.fromkeys(METRICS, ap)
        record = Record(True, metrics=metrics, iteration=0.2 + ap, memory=1e3 * ap)
        ended.append((run, record))
    costs = {cell.folder: Complexity(2_000_000, 1.5) for cell in study.cells[:3]}
    return Made(study, ended, make_rows(study, ended, costs), root / "report")


def _make_images(root: Path) -> None:
    (root / "val").mkdir(parents=True)
    noise = np.random.default_rng(0)
    content: dict = {"images": [], "annotations": []}
    content["categories"] = [dict(id=5, name="disc"), dict(id=9, name="box")]
    for i in (7, 8, 9, 10):
        name = f"{i}.png"
        Image.fromarray(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(
            root / "val" / name
        )
        content["images"].append(dict(id=i, file_name=name, width=64, height=48))
        box = dict(id=i, image_id=i, category_id=9, iscrowd=0, bbox=[5, 5, 30, 20], area=600)
        content["annotations"].append(box)
    (root / "val.json").write_text(json.dumps(content))


def _log(folder: Path, layers: int, ap: float) -> None:
    lines = []
    for epoch in (1, 2):
        for step in (20 * epoch - 10, 20 * epoch):
            lines.append(dict(loss=3 / step, time=0.2, epoch=epoch, iter=step, step=step))
        offsets = {}
        for i in range(layers):
            figures = dict(mean=0.1 * epoch, p95=0.5, outside=0.125, mask_mean=0.5, mask_std=0.06)
            offsets |= {f"offsets/backbone.conv{i}/{key}": v for key, v in figures.items()}
        lines.append({**offsets, "step": 20 * epoch})
        lines.append({METRICS["AP"]: ap * epoch / 2, "step": epoch})
    path = folder / "20000101_000000" / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def stub(monkeypatch, path: Path, code: str) -> None:
    """In place of tools/test.py, `code` with its arguments in `args`."""
    path.write_text(f"import json, pathlib, sys\nargs = sys.argv[1:]\n{code}\n")
    monkeypatch.setattr(pictures, "TEST", path)


@pytest.fixture
def made(tmp_path):
    return make(tmp_path)


def test_markdown(made):
    page = made.write()
    assert page == made.folder / "report.html"
    text = (made.folder / "report.md").read_text()
    assert text.startswith("# A &lt;i&gt;study&lt;/i&gt; &amp;")
    assert "- command: `tools/ablate.py a&b.py`" in text
    assert "- seeds: 0, 1\n" in text
    assert "- runs: 7 of 10 finished" in text
    assert "- machine: cpu: &lt;a&gt; CPU; dcn vectors: AVX\n" in text
    assert "Highest mean AP: 0.501, 6 layers, mdconv (+0.100 to the baseline" in text
    assert re.search(r"^\| 3 layers, mdconv \| 2 \| 0.451 ± 0.001 \|", text, re.M)
    # The last that was logged, mean over the seeds.
    offsets = "| 3 layers, mdconv | `backbone.conv2` | 0.20 | 0.50 | 12.5% | 0.50 ± 0.06 |"
    assert offsets in text
    assert "| regular" not in text.split("## Deformable layers")[1]
    assert f"- 3 layers, dconv, seed 1: `{ERROR}`" in text
    links = re.findall(r"\]\((plots/.*?)\)", text)
    assert len(links) == 4
    for link in links:
        width, height = Image.open(made.folder / link).size
        assert 600 < width < 900
        assert height > 300
    assert not list(made.folder.rglob("*.part"))


def test_page_is_escaped_and_self_contained(made):
    text = made.write().read_text()
    assert "<title>A &lt;i&gt;study&lt;/i&gt; &amp; &quot;more&quot;</title>" in text
    assert "regular &lt;b&gt;|$x$" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    for raw in ("<i>", "<b>", "<script>alert", "<a>"):
        assert raw not in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "url(" not in text
    assert "@import" not in text


def test_nothing_finished(made):
    for row in made.rows:
        row.finished = []
    with pytest.raises(
        StudyError, match=r"study\.py: no run has finished yet, there is nothing to"
    ):
        made.write()
    assert not made.folder.exists()


def test_one_seed_and_no_baseline(made):
    """A study that has just begun: no spread, no interval, nothing to compare with."""
    begun = [
        (run, record if run.seed == 0 and run.cell != made.study.baseline else None)
        for run, record in made.ended
    ]
    made.rows = make_rows(made.study, begun, {})
    text = made.write().read_text()
    assert "Highest mean AP: 0.500, 6 layers, mdconv.</p>" in text
    assert "regular &lt;b&gt;|$x$: no run has finished" in text
    assert "3 layers, mdconv: 1 box" in text


def test_plots(made):
    logs = {row.cell.folder: [read_log(run.folder) for run, _ in row.finished] for row in made.rows}
    plots = {plot.name: plot for plot in make_plots(made.rows, made.study.baseline, logs)}
    assert set(plots) == {"ap_by_layers", "ap_by_part", "loss", "ap_by_epoch"}
    # Without deformable layers it is neither plain nor modulated: the start of both lines.
    words = plots["ap_by_layers"].description
    assert "dconv, 0: 0.401, 3: 0.390;" in words
    assert "mdconv, 0: 0.401, 3: 0.451, 6: 0.501." in words
    assert "regular <b>|$x$ (baseline) 0.401 ± 0.001" in plots["ap_by_part"].description
    assert "3 layers, mdconv 0.451" in plots["ap_by_epoch"].description
    svg = plots["ap_by_part"].svg
    assert "regular &lt;b&gt;|$x$" in svg
    assert svg.count("currentColor") > 10
    for row in made.rows:
        row.cell.settings.pop("layers")
    assert "ap_by_layers" not in {p.name for p in make_plots(made.rows, made.study.baseline, logs)}


def test_detections_are_made_once(made, tmp_path, monkeypatch):
    run = made.row("3 layers, mdconv").finished[0][0]
    out = run.folder / "detections.json"
    item = "dict(image_id=7, category_id=9, bbox=[1, 2, 3, 4], score=0.75)"
    calls = tmp_path / "calls"
    code = f"""
open({str(calls)!r}, "a").write(json.dumps(args) + "\\n")
pathlib.Path(args[args.index("--out") + 1]).write_text(json.dumps([{item}]))"""
    stub(monkeypatch, tmp_path / "stub.py", code)
    assert pictures.detections(run) == {7: [([8, 8, 20, 20], 5, 0.9)]}  # 0.4 is too little
    assert not calls.exists()
    new = {7: [([1, 2, 3, 4], 9, 0.75)]}
    out.write_text('[{"image_id": 7, "sc')  # cut off
    assert pictures.detections(run) == new
    os.utime(out, (0, 0))  # older than the checkpoint
    assert pictures.detections(run) == new
    assert pictures.detections(run) == new
    config, checkpoint, *options = json.loads(calls.read_text().splitlines()[1])
    assert (config, checkpoint) == (str(run.config), str(run.folder / "epoch_2.pth"))
    assert options == ["--work-dir", str(run.folder / "test"), "--out", str(out)]
    assert len(calls.read_text().splitlines()) == 2


def test_damaged_checkpoint(made, tmp_path, monkeypatch):
    run = made.row("3 layers, mdconv").finished[0][0]
    (run.folder / "detections.json").unlink()
    (made.row("6 layers, mdconv").finished[0][0].folder / "last_checkpoint").unlink()
    stub(
        monkeypatch, tmp_path / "stub.py", "print('loads'); sys.exit(f'error: {args[1]} <broken>')"
    )
    text = made.write().read_text()
    path = run.folder / "epoch_2.pth"
    said = f"tools/test.py failed on {path}: error: {path} &lt;broken&gt;"
    assert f"3 layers, mdconv: {said}" in text
    assert "6 layers, mdconv: no checkpoint in " in text
    assert text.count("7.png, regular &lt;b&gt;|$x$: 1 box") == 1  # the others are shown
    (made.study.path.parent / "val.json").unlink()
    text = made.write().read_text()
    assert "the evaluation set cannot be shown: cannot read annotation file" in text


def test_pictures(made):
    shown = pictures.make_pictures(made.study, made.rows)
    assert [slide.name for slide in shown.slides] == ["7.png", "8.png", "9.png"]
    names = ["regular <b>|$x$", "3 layers, mdconv", "6 layers, mdconv"]
    assert shown.cells == names
    assert shown.slides[0].counts == {"annotated": 1} | dict.fromkeys(names, 1)
    assert shown.slides[1].counts == {"annotated": 1} | dict.fromkeys(names, 0)
    truth, found, empty = (
        np.asarray(Image.open(io.BytesIO(panel)).convert("RGB")).astype(int)
        for panel in (
            shown.slides[0].panels["annotated"],
            shown.slides[0].panels[names[0]],
            shown.slides[1].panels[names[0]],
        )
    )
    assert truth.shape == (288, 384, 3)  # 64 x 48, enlarged six times
    # The left edges of the boxes at x = 5 and x = 8, of the second and the first class.
    for image, x, y, index in ((truth, 31, 100, 1), (found, 49, 110, 0)):
        colour = np.array(pictures._colour(index, 2))
        assert abs(image[y - 10 : y + 10, x] - colour).mean() < 45
        assert abs(empty[y - 10 : y + 10, x] - colour).mean() > 60
    made.study.pictures["cells"] = []
    best = ["regular <b>|$x$", "6 layers, mdconv"]
    assert pictures.make_pictures(made.study, made.rows).cells == best


ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
SIZES = {"laptop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    def lacking(what: str) -> None:
        if os.environ.get("DCN_REQUIRE_BROWSER"):
            pytest.fail(f"{what}, and DCN_REQUIRE_BROWSER is set")
        pytest.skip(what)

    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("playwright is not installed")
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        lacking("no Chromium: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return make(tmp_path_factory.mktemp("study")).write()


@pytest.fixture(params=SIZES)
def page(request, browser, report):
    width, height = SIZES[request.param]
    context = browser.new_context(viewport=dict(width=width, height=height))
    page = context.new_page()
    page.set_default_timeout(5000)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("data:", report.as_uri())) or wrong.append(request.url)
        ),
    )
    page.goto(report.as_uri())
    yield page
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    context.close()


def looks(locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"))


def colours(image: np.ndarray) -> int:
    return len(np.unique(image @ np.array([1 << 16, 1 << 8, 1])))


def boxes_apart(page, selector: str) -> int:
    boxes = [item.bounding_box() for item in page.locator(selector).all() if item.is_visible()]
    width = page.viewport_size["width"]
    for i, a in enumerate(boxes):
        assert a["width"] > 100
        assert a["height"] > 20
        assert a["x"] >= 0
        assert a["x"] + a["width"] <= width
        for b in boxes[:i]:
            beside = a["x"] >= b["x"] + b["width"] or b["x"] >= a["x"] + a["width"]
            below = a["y"] >= b["y"] + b["height"] or b["y"] >= a["y"] + a["height"]
            assert beside or below, (selector, a, b)
    return len(boxes)


def test_look(page):
    assert page.title() == 'A <i>study</i> & "more"'
    assert page.locator("h1").inner_text() == 'A <i>study</i> & "more"'
    assert boxes_apart(page, "header, main > section") == 8
    assert boxes_apart(page, ".plots figure") == 4
    assert boxes_apart(page, ".slide:not([hidden]) figure") == 4
    assert boxes_apart(page, "h1, .lead, dl, h2, .scroll, .plots, .bar, details, li") == 19
    for image in page.locator("img").all():
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
        assert image.get_attribute("alt")
    for section in page.locator("main > section").all():
        assert colours(looks(section)) > 20
    for figure in page.locator(".plots figure").all():
        assert colours(looks(figure)) > 100
    marked = page.locator("#results tr.baseline")
    assert marked.inner_text().startswith("regular <b>|$x$ (baseline)")
    clear = page.locator("#results td.better").all_inner_texts()
    assert len(clear) == 2
    assert all(text.endswith("▲") for text in clear)
    assert page.locator("th:not([scope])").count() == 0
    cost = page.locator("#cost tbody tr").nth(3).locator("td").all_inner_texts()
    assert cost == ["+0.100", "0.701", "1.17", "501", "1.25", "", ""]
    assert (
        page.locator("#failed li")
        .inner_text()
        .startswith(f"3 layers, dconv, seed 1: {ERROR}, see ")
    )
    assert page.locator("#not li").all_inner_texts() == ["9 layers, mdconv: seed 0, 1"]


def test_dark(page):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for selector in ("#results", ".plots img >> nth=0", ".plots img >> nth=2"):
            image = looks(page.locator(selector)).astype(int).sum(2) / 3
            ground, text = image[-10, 10], (image.min() if scheme == "light" else image.max())
            assert (
                (ground > 240 and text < 90) if scheme == "light" else (ground < 40 and text > 200)
            )


def test_everything_that_can_be_clicked(page):
    page.evaluate("document.addEventListener('click', e => e.target.dataset.clicked = 1, true)")
    for table in page.locator("table:has(th button)").all():
        before = table.locator("tbody tr").all_inner_texts()
        for column, button in enumerate(table.locator("th button").all()):
            header = table.locator("thead th").nth(column)
            cells = table.locator(f"tbody tr > :nth-child({column + 1})")
            button.click()
            assert header.get_attribute("aria-sort") == "ascending"
            up = cells.all_inner_texts()
            button.click()
            assert header.get_attribute("aria-sort") == "descending"
            down = cells.all_inner_texts()

            def key(text, column=column):
                return text.lower() if column == 0 else float(text.split()[0])

            filled = [text for text in up if text]
            assert len(set(filled)) > 1 or column in (7, 8) or "×" in button.inner_text()
            values = [key(text) for text in filled]
            assert values == sorted(values)
            assert [key(text) for text in down[: len(filled)]] == values[::-1]
            assert set(up[len(filled) :] + down[len(filled) :]) <= {""}  # the empty are last
            button.click()
            assert header.get_attribute("aria-sort") == "none"
            assert table.locator("tbody tr").all_inner_texts() == before
        for button in table.locator("th button").all()[:2]:
            button.click()
        orders = [header.get_attribute("aria-sort") for header in table.locator("thead th").all()]
        assert orders[:3] == ["none", "ascending", "none"]

    details = page.locator("details").all()
    assert [part.locator("tbody tr").count() for part in details] == [3, 3, 6]
    for part in details:
        table = part.locator("table")
        assert not table.is_visible()
        part.locator("summary").click()
        assert table.is_visible()
        line = table.locator("tbody tr").first.locator("td").all_inner_texts()
        assert line == ["0.20", "0.50", "12.5%", "0.50 ± 0.06"]

    def place() -> str:
        (shown,) = page.locator(".slide:visible").all()
        text = page.locator("#place").inner_text()
        assert text.endswith(shown.get_attribute("data-name"))
        return text

    assert place() == "Image 1 of 3, 7.png"
    first = looks(page.locator(".slide:visible img").first)
    page.locator("#next").click()
    assert place() == "Image 2 of 3, 8.png"
    assert not np.array_equal(first, looks(page.locator(".slide:visible img").first))
    page.locator("#previous").click()
    assert place() == "Image 1 of 3, 7.png"
    page.locator("#previous").click()  # round
    assert place() == "Image 3 of 3, 9.png"
    for press, expected in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.keyboard.press(press)
        assert place().startswith(f"Image {expected} of 3")
    page.locator("#results .scroll").focus()
    page.keyboard.press("ArrowRight")  # there it scrolls
    assert place().startswith("Image 1 of 3")

    for i, box in enumerate(page.locator("input").all()):
        panels = page.locator(".slide:visible figure")
        names = panels.locator("figcaption").all_inner_texts()
        box.uncheck()
        visible = [name for name in names if panels.filter(has_text=name).first.is_visible()]
        assert page.locator(f'.slide:visible [data-panel="{i}"]').is_hidden()
        assert len(visible) == 3
        page.locator("#next").click()  # the choice holds for all images
        assert page.locator(f'.slide:visible [data-panel="{i}"]').is_hidden()
        page.locator("#previous").click()
        box.check()
        assert page.locator(".slide:visible figure:visible").count() == 4
    assert page.locator("a, button, summary, input, select").count() == 11 + 8 + 3 + 2 + 4
    assert page.locator(":is(a, button, summary, input, select):not([data-clicked])").count() == 0
