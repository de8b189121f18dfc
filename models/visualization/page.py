"""The page of tools/visualize.py serve: what a detector finds, and where a clicked point looks."""

import math
import os
import re
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
from dcndet.data.errors import DataError
from dcndet.data.loading import read_image
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from mmengine.config import Config
from PIL import Image
from torch import nn

from ..classifiers import ImageClassifier
from ..engine.errors import EngineError
from ..inference.detector import Detections, Detector
from .annotated import validation_set
from .boxes import draw_boxes
from .figures import rendered, style
from .sampling import (
    SamplingPoints,
    add_points,
    chosen_layer,
    deformable_layers,
    sampling_points,
    short_name,
    stack_below,
)

try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
except ModuleNotFoundError as error:
    raise EngineError(
        f"the page needs {error.name}, which is not installed: "
        "pip install --no-deps -r requirements-page.txt"
    ) from error

MAX_BYTES = 32 * 2**20  # of an upload
MAX_PIXELS = 25_000_000
MAX_SESSIONS = 20  # each keeps its image in memory
MIN_SIDE, MAX_SIDE = 768, 1280  # of the picture: its longer side, in pixels
MAX_DEPTH = 3
EXAMPLES = 8
HOUR = 3600  # seconds

TITLE = "Where deformable convolutions look"
WHAT_TO_DO = (
    "Upload an image or take an example, then click anywhere on it: the points are where the "
    "layer's output position there samples the image."
)
LEGEND = "The larger and brighter, the more modulated. White: the same kernel without offsets. "
OF_POSITION = "Green cross: the output position nearest to the click."
OF_ROIS = "Lines lead from the centres of an RoI's bins to where offsets move them."
CSS = """
#picture img { max-height: 60vh; margin: auto; object-fit: contain; cursor: crosshair }
#caption .problem { color: #b91c1c; font-weight: 600 }
.dark #caption .problem { color: #fca5a5 }
#caption p { margin: .2em 0 }
#caption .bar { white-space: nowrap }
#caption .bar span { display: inline-block; width: 6em; height: .8em; margin: 0 .4em }
#examples .grid-container {
  grid-template: none / repeat(auto-fill, minmax(64px, 1fr)); grid-auto-rows: auto;
}
#examples .grid-container button { height: auto; min-height: 0; aspect-ratio: 1 }
#examples .grid-wrap { min-height: 0; max-height: none; overflow: visible }
"""


@dataclass(frozen=True, eq=False)
class Opened:
    """An image that is on the page.

    Attributes:
        found: what the detector finds in it, whatever its score.
        at: (x, y) that was clicked, in pixels of the image; None before a click.
    """

    found: Detections
    at: tuple[float, float] | None = None

    def clicked(self, pixel: Sequence[float]) -> "Opened":
        """The same, after a click on a pixel (x, y) of the picture that `look` gives."""
        height, width = self.found.image.shape[:2]
        columns, rows = picture_size(width, height)
        x = round((pixel[0] + 0.5) * width / columns - 0.5, 1)
        y = round((pixel[1] + 0.5) * height / rows - 0.5, 1)
        return replace(self, at=(min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)))


@dataclass(frozen=True, eq=False)
class Look:
    """What the page has of an image.

    Attributes:
        picture: with boxes and points, uint8 [H', W', 3], RGB.
        caption: HTML.
        boxes: class, score and corners (x1, y1, x2, y2 in pixels of the image), best first.
    """

    picture: np.ndarray
    caption: str
    boxes: list[list]


def open_image(detector: Detector, path: str | Path) -> Opened:
    """Detect objects in an uploaded file.

    Raises:
        DataError: it has more than `MAX_PIXELS`, or cannot be read or decoded. The message names
            the file without its folder, which whoever uploaded it does not know.
    """
    name = Path(path).name
    try:
        image = read_image(path, max_pixels=MAX_PIXELS)
    except DataError as error:
        raise DataError(str(error).replace(str(path), name)) from error
    return Opened(detector(image, score_thr=0.0))


def look(detector: Detector, opened: Opened, layer: str, depth: int, score: float) -> Look:
    """Boxes that score at least `score`, and what `sampling_points` says of where was clicked.

    Where it refuses, as RoI pooling does where nothing was detected, the caption says why.
    """
    found = opened.found
    image = np.ascontiguousarray(found.image[..., ::-1])
    keep = found.scores >= score
    boxes, scores = found.boxes[keep], found.scores[keep].tolist()
    labels = found.labels[keep].tolist()
    picture = draw_boxes(image, boxes, labels, scores, found.classes, MIN_SIDE, MAX_SIDE)
    try:
        points = sampling_points(detector, found.image, opened.at, layer, depth)
    except EngineError as error:
        caption = problem(error)
    else:
        picture, caption = _with_points(picture, points), _describe(points)
    rows = [
        [found.classes[label], f"{value:.2f}", ", ".join(f"{side:.0f}" for side in box)]
        for label, value, box in zip(labels, scores, boxes.tolist(), strict=True)
    ]
    return Look(picture, caption, rows)


def picture_size(width: int, height: int) -> tuple[int, int]:
    """(columns, rows) of the picture of an image, as `draw_boxes` makes it."""
    longer = max(width, height)
    scale = min(max(longer, MIN_SIDE), MAX_SIDE) / longer
    return max(1, round(width * scale)), max(1, round(height * scale))


def problem(error: Exception | str) -> str:
    """A message for the page, as HTML."""
    return f'<p class="problem" role="alert">{escape(str(error))}</p>'


def _with_points(picture: np.ndarray, points: SamplingPoints) -> np.ndarray:
    """Drawn on a picture of the whole image, [H, W, 3], whose size stays."""
    rows, columns = picture.shape[:2]
    height, width = points.image.shape[:2]
    dpi = max(rows, columns) / 3.84  # so that points are as large on every picture
    figure = Figure((columns / dpi, rows / dpi), dpi=dpi)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture, extent=(-0.5, width - 0.5, height - 0.5, -0.5), aspect="auto")
    axes.set_axis_off()
    with style():
        add_points(axes, points)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    return rendered(figure)


def _describe(points: SamplingPoints) -> str:
    names = " ← ".join(f"<b>{escape(name)}</b>" for name in points.layers)
    facts = [f"at ({points.at[0]:.1f}, {points.at[1]:.1f})"]
    if points.stride is not None:
        facts.append("stride {:.3g} × {:.3g} pixels".format(*points.stride))
    if points.rois is not None:
        facts[0] = f"RoIs: {len(points.rois)}"
    count = f"{len(points.x):,} points"
    if len(points.x) < points.total:
        count += f" that are read, of {points.total:,}"
    if points.outside:
        count += f", {points.outside:,} of them outside"
    weight = points.weight
    facts.append(count)
    if len(weight):
        what = "Δm" if len(points.layers) == 1 else "product of Δm"
        facts.append(f"mean {what} {weight.mean():.3g}")
    if len(weight) and np.ptp(weight) > 0:
        ends = f"{min(0, weight.min()):.2g}", f"{weight.max():.2g}"
        facts[-1] += f' <span class="bar">({_COLOUR_BAR.join(ends)})</span>'
    legend = LEGEND + (OF_POSITION if points.rois is None else OF_ROIS)
    return f"<p>{names}: {'; '.join(facts)}.</p><p>{legend}</p>"


_INFERNO = ", ".join(to_hex(matplotlib.colormaps["inferno"](i / 8)) for i in range(9))
_COLOUR_BAR = f'<span style="background: linear-gradient(to right, {_INFERNO})"></span>'


def layers_by_stage(model: nn.Module) -> dict[str, list[str]]:
    """Names of the deformable layers that sample the image, by the part of the model they are in.

    Raises:
        EngineError: there are none.
    """
    layers = deformable_layers(model)
    chosen_layer(model, layers, None)  # raises
    stages: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if layer.sampled != "scope":
            # layer3 of backbone.layer3.1.conv2, and levels.2 of backbone.levels.2.blocks.0
            part = re.match(r"\D+?\d+(?=\.)|[^.]+", short_name(name))[0]
            part = "RoI pooling" if layer.sampled == "rois" else part
            stages.setdefault(part, []).append(name)
    return stages


def make_page(detector: Detector, examples: Iterable[str | Path] = ()) -> gr.Blocks:
    """The page of one detector, which serves one request at a time.

    Args:
        examples: paths of images to take instead of an upload; the first is opened at once.

    Raises:
        EngineError: the model is a classifier, or none of its deformable layers samples the image.
        DataError: an example cannot be read or decoded.
    """
    if isinstance(detector.model, ImageClassifier):
        raise EngineError("the page shows detections, and this model is a classifier")
    stages = layers_by_stage(detector.model)
    first = chosen_layer(detector.model, deformable_layers(detector.model), None)
    stage_of = {name: stage for stage, names in stages.items() for name in names}
    depths = {name: _depth(detector.model, name) for name in stage_of}
    examples = [str(path) for path in examples]
    thumbnails = [_thumbnail(path) for path in examples]

    def show(opened: Opened | None, *settings) -> list:
        if opened is None:
            return [None, problem("Upload an image first, or take an example."), None]
        shown = look(detector, opened, *settings)
        return [shown.picture, shown.caption, shown.boxes]

    def open_file(path: str, before: Opened | None, *settings) -> list:
        try:
            opened = open_image(detector, path)
        except DataError as error:
            return [before, gr.skip(), problem(error), gr.skip()]
        return [opened, *show(opened, *settings)]

    def open_example(event: gr.SelectData, before: Opened | None, *settings) -> list:
        return open_file(examples[event.index], before, *settings)

    def open_first(*settings) -> list:
        return open_file(examples[0], *settings)

    def click(event: gr.SelectData, opened: Opened | None, *settings) -> list:
        opened = opened and opened.clicked(event.index)
        return [opened, *show(opened, *settings)]

    def choose_stage(chosen: str, opened: Opened | None, depth: int, score: float) -> list:
        layer = stages[chosen][-1]
        depth = min(depth, depths[layer])
        return [layer, depth, *show(opened, layer, depth, score)]

    def choose_layer(opened: Opened | None, layer: str, depth: int, score: float) -> list:
        depth = min(depth, depths[layer])
        return [stage_of[layer], depth, *show(opened, layer, depth, score)]

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        opened = gr.State()
        gr.Markdown(f"# {TITLE}\n{WHAT_TO_DO}")
        with gr.Row():
            with gr.Column(scale=3):
                picture = gr.Image(
                    interactive=False, show_label=False, format="png", buttons=[], elem_id="picture"
                )
                caption = gr.HTML(elem_id="caption", padding=False)
                gallery = gr.Gallery(
                    thumbnails,
                    show_label=False,
                    columns=EXAMPLES,
                    height="auto",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    visible=bool(examples),
                    elem_id="examples",
                )
            with gr.Column(scale=1, min_width=300):
                upload = gr.UploadButton(
                    "Upload an image", variant="primary", file_types=["image"], elem_id="upload"
                )
                stage = gr.Radio([*stages], value=stage_of[first], label="Stage")
                layer = gr.Dropdown(
                    [(short_name(name), name) for name in stage_of], value=first, label="Layer"
                )
                depth = gr.Radio(
                    [*range(1, MAX_DEPTH + 1)], value=1, label="Depth: layers looked through"
                )
                score = gr.Slider(0.05, 0.95, 0.3, step=0.05, label="Boxes with a score from")
                boxes = gr.Dataframe(
                    headers=["class", "score", "x1, y1, x2, y2"],
                    label="Found",
                    interactive=False,
                    elem_id="boxes",
                )
        settings = [layer, depth, score]
        shown = [picture, caption, boxes]
        alone = dict(
            concurrency_id="detector",
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=[picture],
            api_visibility="private",
        )
        upload.upload(open_file, [upload, opened, *settings], [opened, *shown], **alone)
        gallery.select(open_example, [opened, *settings], [opened, *shown], **alone)
        picture.select(click, [opened, *settings], [opened, *shown], **alone)
        stage.input(choose_stage, [stage, opened, depth, score], [layer, depth, *shown], **alone)
        layer.input(choose_layer, [opened, *settings], [stage, depth, *shown], **alone)
        depth.input(show, [opened, *settings], shown, **alone)
        score.release(show, [opened, *settings], shown, **alone)
        if examples:
            page.load(open_first, [opened, *settings], [opened, *shown], **alone)
    return page


def _depth(model: nn.Module, layer: str) -> int:
    """How many layers can be looked through from `layer` inwards."""
    layers = deformable_layers(model)
    return 1 if layers[layer].sampled == "rois" else len(stack_below(layers, layer))


def _thumbnail(path: str) -> Image.Image:
    thumbnail = Image.fromarray(read_image(path, max_pixels=MAX_PIXELS)[..., ::-1])
    thumbnail.thumbnail((128, 128))
    return thumbnail


def example_images(cfg: Config) -> list[str]:
    """Paths of `EXAMPLES` images of the config's val set, spread over it; [] if it is not here.

    Raises:
        DataError: its annotations are here, but cannot be used.
    """
    settings = (cfg.get("val_dataloader") or {}).get("dataset", {})
    annotations = Path(settings.get("data_root") or "", settings.get("ann_file") or "")
    if not annotations.is_file():
        return []
    dataset = validation_set(cfg)
    step = math.ceil(len(dataset) / EXAMPLES)
    return [dataset.get_data_info(i)["img_path"] for i in range(0, len(dataset), step)]


def serve(cfg: Config, checkpoint: str, device: str | None, host: str, port: int) -> None:
    """Serve the page of a detector until Ctrl-C. Nothing is fetched from the internet, nor sent.

    Args:
        port: 0 takes a free one; the address is printed.

    Raises:
        EngineError: `host` and `port` cannot be listened on, or see `Detector` and `make_page`.
        DataError: see `example_images` and `make_page`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise EngineError(f"--host {host} --port {port}: {error.strerror}") from error
    with listening, TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads and pictures
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # removes it
        page = make_page(Detector(cfg, checkpoint, device), example_images(cfg))
        page.state_session_capacity = MAX_SESSIONS
        app = gr.mount_gradio_app(
            FastAPI(),
            page,
            path="/",
            css=CSS,
            footer_links=[],
            run_history=False,
            max_file_size=MAX_BYTES,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
        )
        name = f"[{host}]" if family == socket.AF_INET6 else host
        print(f"http://{name}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends the connections that open pages keep, instead of cancelling them with a traceback."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.routes[-1].app.stop_event.set()  # of what is mounted
        await super().shutdown(sockets)
