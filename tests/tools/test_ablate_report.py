"""The report of an ablation study, of made-up runs, and in a browser as its readers have it."""

import json
import re

import cv2
import numpy as np
import pytest
import torch
from dcndet.models.engine import CheckpointError
from dcndet.models.inference import Detections

from tools.ablation import pictures, plots
from tools.ablation.report import as_text, write_report
from tools.ablation.results import Record, make_results
from tools.ablation.study import COCO, Study, StudyError

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
pictures = dict(cells=["regular <b>|$x$", "3 layers, mdconv"], images=3)
"""
BASE = """
dataset = dict(
    type="DetectionDataset", data_root="{root}/", ann_file="val.json", data_prefix=dict(img="val/"),
    metainfo=dict(classes=("disc", "box")), test_mode=True, pipeline=[],
)
train_dataloader = dict(dataset=dict(type="RepeatDataset", times=2, dataset=dataset))
val_dataloader = dict(dataset=dataset)
train_cfg = dict(max_epochs=2)
model = dict(backbone=dict(deform=None))
"""
AP = {"regular <b>|$x$": 0.4, "3 layers, dconv": 0.39, "3 layers, mdconv": 0.45}
AP["6 layers, mdconv"] = 0.5
ERROR = "error: <script>alert(1)</script>"


def make(root):
    """A study of five cells: the last is waiting, one run of 3 layers, dconv has failed."""
    (root / "val").mkdir(parents=True)
    content = {"images": [], "annotations": []}
    content["categories"] = [dict(id=5, name="disc"), dict(id=9, name="box")]
    for i in (7, 8, 9):
        cv2.imwrite(str(root / "val" / f"{i}.png"), np.full((48, 64, 3), 20 * i, np.uint8))
        content["images"].append(dict(id=i, file_name=f"{i}.png", width=64, height=48))
        box = dict(id=i, image_id=i, category_id=9, iscrowd=0, bbox=[5, 5, 30, 20], area=600)
        content["annotations"].append(box)
    (root / "val.json").write_text(json.dumps(content))
    (root / "base.py").write_text(BASE.format(root=root))
    (root / "study.py").write_text(STUDY)
    study = Study.read(root / "study.py")
    ended = []
    for run in study.runs(root / "runs"):
        name = run.cell.name
        if name not in AP:
            ended.append((run, Record()))
        elif name == "3 layers, dconv" and run.seed == 1:
            ended.append((run, Record(finished=False, error=ERROR)))
        else:
            ap = AP[name] + 0.002 * run.seed
            log(run.folder, run.cell.settings["layers"], ap)
            (run.folder / "epoch_2.pth").write_bytes(b"weights")
            (run.folder / "last_checkpoint").write_text("/moved/since/epoch_2.pth")
            metrics = dict.fromkeys(COCO.keys, ap)
            ended.append((run, Record(True, metrics=metrics, iteration=ap, memory=1e3 * ap)))
    return study, ended


def log(folder, layers, ap):
    lines = []
    for epoch in (1, 2):
        lines.append(dict(loss=3 / epoch, time=0.2, epoch=epoch, iter=epoch, step=epoch))
        figures = dict(mean=0.1 * epoch, p95=0.5, outside=0.125, mask_mean=0.5, mask_std=0.06)
        offsets = {f"offsets/conv{i}/{k}": v for i in range(layers) for k, v in figures.items()}
        lines += [{**offsets, "step": epoch}, {COCO.keys["AP"]: ap * epoch / 2, "step": epoch}]
    path = folder / "20000101_000000" / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module", autouse=True)
def _detector():
    """In place of the real one: finds a disc in 7.png."""
    boxes, scores, labels = torch.tensor([[8, 8, 28, 28]] * 2), torch.tensor([0.9, 0.4]), [0, 0]
    found = boxes, scores, torch.tensor(labels)

    def load(config, checkpoint):
        if checkpoint.read_bytes() != b"weights":
            raise CheckpointError("<broken>")
        return lambda paths, score_thr: [
            Detections(*(x[scores >= score_thr] for x in found), ("disc", "box"), None)
            if path.name == "7.png"
            else Detections(*(x[:0] for x in found), ("disc", "box"), None)
            for path in paths
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "Detector", load)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    results = make_results(*study, {})
    folder = tmp_path_factory.mktemp("report")
    return write_report(results, folder, "tools/ablate.py a&b.py", {"cpu": "<a> CPU", "no": None})


def test_markdown(page):
    text = page.with_name("report.md").read_text()
    assert text.startswith("# A &lt;i>study&lt;/i> &amp;")
    for line in (
        "command: `tools/ablate.py a&b.py`",
        *("epochs: 2", "seeds: 0, 1", "runs: 7 of 10 finished", "machine: cpu: &lt;a> CPU"),
    ):
        assert f"- {line}\n" in text
    assert re.search(r"^- base config: \S*base\.py$", text, re.M)
    assert re.search(r"^- data set: DetectionDataset \S+/ val\.json$", text, re.M)
    # Dunnett's critical value for two cells and three degrees of freedom is 3.87, which makes
    # 0.0055 of a pooled standard deviation of 0.0014; one cell has a single seed, one has none.
    lead = "Highest mean AP: 0.501, 6 layers, mdconv (+0.100 to the baseline, family-wise 95 % "
    assert f"\n{lead}interval +0.095 to +0.105). Intervals without zero: 2 of 2.\n" in text
    assert "family-wise 95 % (Dunnett, pooled variance of all cells)" in text
    cells = r"\| 0.451 ± 0.001 +\| \+0.050 +\| \+0.045 to \+0.055 +\| 2 +\|"
    assert re.search(rf"^\| 3 layers, mdconv +\| 2 +{cells}.* 0.451 \(×1.12\)", text, re.M)
    assert re.search(
        r"^\| 3 layers, dconv +\| 1 \(1 failed\) \| 0.390 +\| -0.011 +(\| +){2}", text, re.M
    )
    # The last that was logged, mean over the seeds.
    line = r"^\| 3 layers, mdconv +\| conv2 +\| 0.20 +\| 0.50 +\| 12.5% +\| 0.50 ± 0.06 +\|$"
    assert re.search(line, text, re.M)
    assert f"- 3 layers, dconv, seed 1: `{ERROR}`" in text
    plots = re.findall(r"\]\((plots/.*?)\)", text)
    assert len(plots) == 4
    assert all(cv2.imread(str(page.with_name("plots").parent / plot)).std() > 10 for plot in plots)


def test_plots_have_the_spread_and_the_intervals(study):
    results = make_results(*study, {})
    [axes] = plots._curves(results, "", "AP", "epoch", COCO.keys["AP"]).axes
    lines = dict(zip(results.logs, zip(axes.lines, axes.collections, strict=True), strict=True))
    line, band = lines["6 layers, mdconv"]
    assert line.get_ydata() == pytest.approx([0.2505, 0.501])
    std = 0.001 * 2**0.5
    bounds = band.get_paths()[0].vertices[:, 1]
    assert [bounds.min(), bounds.max()] == pytest.approx([0.2505 - std / 2, 0.501 + std])
    [axes] = plots._by_part(results).axes
    assert "family-wise 95 %\n(Dunnett, pooled variance of all cells)" in axes.get_xlabel()
    bars = axes.collections[0].get_segments()  # from the baseline, which has none, down
    cell = results.cells.loc["6 layers, mdconv"]
    ends = results.cells.iloc[0]["AP"] + cell[["low", "high"]].astype(float)
    assert bars[3][:, 0] == pytest.approx(ends.to_numpy())
    assert bars[0].size == bars[1].size == 0


def test_a_difference_that_no_hundred_seeds_find(study):
    results = make_results(*study, {})
    results.cells["seeds needed"] = float("inf")
    assert set(as_text(results)["seeds for 80 % power"]) == {">100"}


def test_one_seed_and_no_baseline(study, tmp_path):
    """A study that has just begun: no spread, no interval, nothing to compare with."""
    begun, ended = study
    ended = [
        (run, record if run.seed == 0 and run.cell != begun.baseline else Record())
        for run, record in ended
    ]
    text = write_report(make_results(begun, ended, {}), tmp_path, "", {}).read_text()
    assert "Highest mean AP: 0.500, 6 layers, mdconv.</p>" in text  # of no interval
    assert "regular &lt;b&gt;|$x$: no run has finished" in text
    nothing = make_results(begun, [(run, Record()) for run, _ in ended], {})
    with pytest.raises(StudyError, match=r"study\.py: no run has finished yet, there is nothing"):
        write_report(nothing, tmp_path, "", {})


def test_checkpoints_that_cannot_be_loaded(tmp_path):
    study, ended = make(tmp_path)
    runs = [run for run, _ in ended if run.cell.name in study.pictures["cells"]]
    (runs[1].folder / "epoch_2.pth").write_bytes(b"wei")  # cut off
    results = make_results(study, ended, {})
    text = write_report(results, tmp_path, "", {}).read_text()
    assert "<p>3 layers, mdconv: &lt;broken&gt;</p>" in text
    assert "7.png, regular &lt;b&gt;|$x$: 1 box" in text  # the others are shown
    (runs[0].folder / "last_checkpoint").unlink()
    text = write_report(results, tmp_path, "", {}).read_text()
    assert f"<p>regular &lt;b&gt;|$x$: no checkpoint in {runs[0].folder}</p>" in text
    for logs in runs[0].folder.rglob("scalars.json"):
        logs.unlink()  # the record is enough
    (tmp_path / "val" / "8.png").write_bytes(b"")
    text = write_report(results, tmp_path, "", {}).read_text()
    assert re.search(r"<p>the evaluation set cannot be shown: .*8\.png", text)


def test_page_in_a_browser(page, tab):
    wrong = []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: wrong.append(request.url))
    tab.goto(page.as_uri())
    assert tab.title() == 'A <i>study</i> & "more"'
    assert tab.evaluate("document.documentElement.scrollWidth") == 1280
    table = tab.locator("table").first
    names, ap = table.locator("tbody th"), table.locator("tbody td:nth-child(3)")
    assert names.first.inner_text() == "regular <b>|$x$ (baseline)"
    assert table.locator("td.better").count() == 2
    for _ in range(2):
        table.locator("thead button").nth(2).click()  # AP
    assert [text.split()[0] for text in ap.all_inner_texts()[:4]] == sorted(
        ["0.501", "0.451", "0.401", "0.390"], reverse=True
    )
    assert names.last.inner_text() == "9 layers, mdconv"  # without a result
    panels = tab.locator("figure:visible figcaption")
    assert panels.all_inner_texts()[:3] == [
        *("annotated: 1 box", "regular <b>|$x$: 1 box", "3 layers, mdconv: 1 box")
    ]
    slides = tab.get_by_label("Detections")
    slides.focus()
    for key, number in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        tab.keyboard.press(key)
        place = "e => e.scrollLeft / e.clientWidth"
        tab.wait_for_function(f"e => ({place})(e) === {number}", arg=slides.element_handle())
    tab.get_by_label("annotated").uncheck()
    assert panels.all_inner_texts()[:4] == [
        *("regular <b>|$x$: 1 box", "3 layers, mdconv: 1 box"),
        *("regular <b>|$x$: 0 boxes", "3 layers, mdconv: 0 boxes"),
    ]
    assert {url for url in wrong if not url.startswith("data:")} == {page.as_uri()}
