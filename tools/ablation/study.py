"""A study: a base config, what is varied, and the runs that follow from it."""

import copy
import hashlib
import itertools
import json
import os
import re
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from dcndet.models.engine import EngineError
from dcndet.models.engine.options import merge_options, read_config
from mmengine.config import Config

from dcn import LAYERS

KEYS = {"title": str, "base": str, "axes": dict, "rows": list, "seeds": list, "pairs": list}
KEYS |= dict.fromkeys(("baseline", "metrics", "options", "pictures"), dict)
CHOICES = {
    "conv": tuple(LAYERS),
    "pool": ("roipool", "align", "dpool", "mdpool"),
    "mimic": ("off", "foreground", "background", "both"),
}
AXES = ("layers", "stages", *CHOICES)  # with a name of their own
LABELS = {"layers": "{} layers", "conv": "{}", "pool": "{}", "mimic": "mimic {}"}
WEIGHTS = r'"(?:load_from|checkpoint)": ("(?:\\.|[^"\\])+")'  # in a config's JSON
# Of the tables of results.
COLUMNS = ("cell", "seed", "seeds", "state", "folder", "error", "seconds", "finished", "failed")
COLUMNS += ("difference", "low", "high", "seeds needed", "parameters", "gflops", "memory_mb")
COLUMNS += ("seconds_per_iteration",)
OWN = ("randomness.seed", "work_dir", "resume")  # set by tools/ablate.py itself


class StudyError(EngineError):
    """A study that cannot be run as it is."""


@dataclass(frozen=True)
class Metrics:
    """What is measured after the last epoch.

    Args:
        keys: what is logged, by the column's name; the first is what cells are compared by.
        digits: of a value, behind the point.
        meaning: a sentence for the report.
    """

    keys: dict[str, str]
    digits: int
    meaning: str

    @property
    def main(self) -> str:
        return next(iter(self.keys))

    def text(self, value: float, sign: str = " ") -> str:
        """The main metric with its name."""
        return f"{self.main}{sign}{value:.{self.digits}f}"


COCO = Metrics(
    {"AP": "coco/bbox_mAP", "AP50": "coco/bbox_mAP_50", "AP75": "coco/bbox_mAP_75"},
    3,
    "AP is COCO's, from 0 to 1",
)
ACCURACY = Metrics({"top-1": "accuracy/top1"}, 2, "Accuracies are in percent of the images")


@dataclass(frozen=True)
class Cell:
    """One row of the study's table: a configuration, run once per seed."""

    name: str
    settings: dict[str, Any]  # axis -> value
    config: Config = field(compare=False)

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.+-]+", "_", self.name).strip("_")


@dataclass(frozen=True)
class Run:
    """One training: a cell with a seed, in a folder of its own."""

    cell: Cell
    seed: int
    folder: Path  # of tools/train.py: logs and checkpoints
    config: Path  # that tools/train.py is given
    content: Config  # of that file
    metrics: Metrics  # that it logs

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def identity(self) -> list[str]:
        """Hashes: of the config's content, which does not change with how it is written down, and
        of the weights that it starts from, unless some are missing.
        """
        contents = [_canonical(self.content).encode()]
        if self.weights and all(path.is_file() for path in self.weights):
            hashes = (_file_hash(path, path.stat().st_mtime_ns) for path in self.weights)
            contents.append("".join(hashes).encode())
        return [hashlib.sha256(content).hexdigest() for content in contents]

    @cached_property
    def weights(self) -> list[Path]:
        """The local files that `load_from` and every `init_cfg` name."""
        named = re.findall(WEIGHTS, _canonical(self.content))
        return [Path(each).expanduser() for each in map(json.loads, named) if "://" not in each]


@dataclass(frozen=True)
class Study:
    """A study file, read and checked.

    A study file is a Python config with

    - `base`: the config that is varied, relative to the study file;
    - `axes`: a dict of lists; the cells are their product. A name is one of `AXES` or any key that
      the base config has or could have (`'optim_wrapper.optimizer.lr'`);
    - `rows`: a list of dicts of the same names, for combinations that do not form a grid, each
      with an optional `name`. With both, every row is combined with every point of the axes;
    - `seeds`: a list of ints;
    - optionally `title`; `baseline`, the settings of the cell that the others are compared with
      (the first cell if not given); `metrics`, what is logged by the name that a column gets, the
      first of which cells are compared by (the default is COCO's AP, or of a classifier the
      accuracy); `options`, keys of the config that hold for every cell; `pairs`, a list of two
      cell names each, whose differences are of interest beside those to the baseline; and
      `pictures`, for the report: `cells`, a list of cell names, and `images`, how many.

    In `load_from`, `{seed}` stands for the seed of the run.
    """

    path: Path
    title: str
    base: Path
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    baseline: Cell
    metrics: Metrics
    options: dict[str, Any]
    config: Config  # the base with the options
    pictures: dict[str, Any]
    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, path: str | Path) -> "Study":
        """Raises StudyError: no such file, or something in it that cannot be run."""
        path = Path(path)
        if not path.is_file():
            raise StudyError(f"study not found: {path}")
        try:
            content = Config.fromfile(path).to_dict()
        except Exception as error:  # a study is a program, and may raise what it pleases
            raise StudyError(f"{path} is not a study: {error}") from error
        try:
            return cls._checked(path, content)
        except EngineError as error:
            raise StudyError(f"{path}: {error}") from error

    @classmethod
    def _checked(cls, path: Path, content: dict[str, Any]) -> "Study":
        for key, value in content.items():
            _require(key in KEYS, f"{key}: unknown, expected some of {', '.join(KEYS)}")
            kind = KEYS[key]
            _require(isinstance(value, kind), f"{key}: expected a {kind.__name__}, got {value!r}")
        for key in ("base", "seeds"):
            _require(content.get(key), f"{key} is missing or empty")
        seeds = content["seeds"]
        whole = all(type(seed) is int and seed >= 0 for seed in seeds)
        _require(whole, f"seeds: expected whole numbers from 0, got {seeds}")
        _require(len(set(seeds)) == len(seeds), f"seeds: {seeds} has one of them twice")
        base = Path(os.path.relpath(path.parent / content["base"]))
        try:
            config = read_config(base)
        except Exception as error:  # so is a config
            raise StudyError(f"base: {error}") from error
        _require("max_epochs" in config.get("train_cfg", {}), f"{base} has no train_cfg.max_epochs")
        options = content.get("options", {})
        _merge(config, options, "options")
        cells = _cells(content, config)
        wanted = _normal(content.get("baseline", {"name": cells[0].name}))
        found = [c for c in cells if wanted.items() <= {"name": c.name, **c.settings}.items()]
        _require(len(found) == 1, f"baseline: {len(found)} cells are {wanted}, expected one")
        pictures = dict(cells=[], images=6) | content.get("pictures", {})
        unknown = ", ".join(pictures.keys() - {"cells", "images"})
        _require(not unknown, f"pictures: {unknown}: unknown, expected cells, images")
        whole = type(pictures["images"]) is int
        _require(whole, f"pictures: images: expected a number, got {pictures['images']!r}")
        pairs = content.get("pairs", [])
        for pair in pairs:
            two = isinstance(pair, list | tuple) and len({*map(str, pair)}) == len(pair) == 2
            _require(two, f"pairs: expected two names of cells, got {pair!r}")
        names = [cell.name for cell in cells]
        for key, named in (("pictures", pictures["cells"]), ("pairs", itertools.chain(*pairs))):
            for name in named:
                _require(name in names, f"{key}: no cell is named {name!r}; there are {names}")
        return cls(
            path=path,
            title=content.get("title", path.stem),
            base=base,
            cells=cells,
            seeds=tuple(seeds),
            baseline=found[0],
            metrics=_metrics(content, config),
            options=options,
            config=config,
            pictures=pictures,
            pairs=tuple(map(tuple, pairs)),
        )

    @property
    def names(self) -> list[str]:
        return [cell.name for cell in self.cells]

    def runs(self, folder: Path) -> list[Run]:
        """Every run of the study, seed by seed, so that all cells soon have a first result."""
        runs = []
        for seed, cell in itertools.product(self.seeds, self.cells):
            config = copy.deepcopy(cell.config)
            config.merge_from_dict({"randomness.seed": seed})
            if isinstance(config.get("load_from"), str):
                config.load_from = config.load_from.replace("{seed}", str(seed))
            path = folder / "configs" / f"{cell.folder}_seed-{seed}.py"
            own = folder / cell.folder / f"seed-{seed}"
            runs.append(Run(cell, seed, own, path, config, self.metrics))
        return runs


def _require(right: Any, message: str) -> None:
    if not right:
        raise StudyError(message)


def is_classification(config: Config) -> bool:
    """Whether it is evaluated by its accuracy."""
    evaluators = config.get("val_evaluator", {})
    evaluators = evaluators if isinstance(evaluators, list | tuple) else [evaluators]
    return any(evaluator.get("type") == "Accuracy" for evaluator in evaluators)


def _metrics(content: dict[str, Any], config: Config) -> Metrics:
    of_base = ACCURACY if is_classification(config) else COCO
    own = content.get("metrics", of_base.keys)
    right = own and all(isinstance(part, str) for item in own.items() for part in item)
    _require(right, f"metrics: expected what is logged by name, got {own!r}")
    for name in own:
        _require(name not in {*COLUMNS, *AXES}, f"metrics: the table has another column {name!r}")
    return replace(of_base, keys=own)


def _cells(content: dict[str, Any], config: Config) -> tuple[Cell, ...]:
    axes, rows = content.get("axes", {}), content.get("rows", [{}] if content.get("axes") else [])
    for axis, values in axes.items():
        listed = isinstance(values, list)
        _require(listed, f"axes: {axis}: expected a list of values, got {values!r}")
    for row in rows:
        _require(isinstance(row, dict), f"rows: expected dicts, got {row!r}")
    every = {*axes, *itertools.chain(*rows)}
    cells: dict[str, Cell] = {}
    names: dict[str, str] = {}  # by what the cell would train
    for row, point in itertools.product(rows, itertools.product(*axes.values())):
        settings = _normal(row | dict(zip(axes, point, strict=True)))
        labels = [settings.pop("name")] if "name" in row else []
        own = copy.deepcopy(config)
        for axis, value in settings.items():
            if axis in axes or "name" not in row:
                labels.append(_label(axis, value, every))
            _merge(own, _options(axis, value, own), "axes" if axis in axes else "rows")
        deformable = {"layers", "stages"} & {*settings} or config.model.backbone.get("deform")
        if "conv" in settings and not deformable:
            raise StudyError("conv: the base has no deformable layer; give layers")
        cell = Cell(", ".join(labels) or "base", settings, own)
        usable = re.match(r"[^.].{0,99}$", cell.folder)
        _require(usable, f"{cell.name!r} cannot name a folder; give the row a name")
        same = cells.setdefault(cell.folder, cell) == cell
        _require(same, f"two cells would be in the folder {cell.folder}")
        other = names.setdefault(_canonical(own), cell.name)
        _require(other == cell.name, f"the cells {other!r} and {cell.name!r} are the same")
    _require(cells, "no cell: give axes, rows or both")
    return tuple(cells.values())


def _normal(settings: dict) -> dict:
    """Without what makes no difference: no deformable layer is of no kind."""
    return {k: v for k, v in settings.items() if k != "conv" or settings.get("layers") != 0}


def _label(axis: str, value: Any, axes: set[str]) -> str:
    """What a cell's name says of an axis: the end of its key that no other of the `axes` has."""
    if axis == "layers" and value == 1:
        return "1 layer"
    if axis in LABELS:
        return LABELS[axis].format(value)
    steps = axis.split(".")
    ends = (".".join(steps[i:]) for i in reversed(range(len(steps))))
    others = [f".{other}" for other in axes - {axis}]
    end = next((e for e in ends if not any(o.endswith(f".{e}") for o in others)), axis)
    return f"{end}={value}"


def _options(axis: str, value: Any, own: Config) -> dict[str, Any]:
    """What an axis sets in a cell's config."""
    if axis in CHOICES and value not in CHOICES[axis]:
        raise StudyError(f"{axis}: expected one of {', '.join(CHOICES[axis])}, got {value!r}")
    match axis:
        case "layers" | "stages":
            listed = isinstance(value, list | tuple) and {*map(type, value)} == {bool}
            right = listed if axis == "stages" else type(value) is int and value >= 0
            wanted = "a bool per stage" if axis == "stages" else "a number of layers"
            _require(right, f"{axis}: expected {wanted}, got {value!r}")
            return {"model.backbone.deform": {"layers": None, "stages": None, axis: value}}
        case "conv":
            return {"model.backbone.deform.conv": value}
        case "pool" | "mimic" if "roi_head" not in own.model:
            raise StudyError(f"{axis}: the base is no two-stage detector")
        case "pool":
            head = own.model.roi_head
            return {f"model.roi_head.{k}.pool": value for k in head if "extractor" in k}
        case "mimic":
            return {"model.mimic": None} if value == "off" else {"model.mimic.on": value}
    return {axis: value}


def _merge(config: Config, options: dict[str, Any], where: str) -> None:
    for key in options:
        _require(key not in OWN, f"{where}: {key} is set for every run; seeds says which")
    merge_options(config, options, where, AXES)


@cache
def _file_hash(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _canonical(config: Config) -> str:
    return json.dumps(config.to_dict(), default=str, sort_keys=True)
