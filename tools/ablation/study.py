"""A study: a base config, what is varied, and the runs that follow from it."""

import copy
import difflib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcndet.models.engine import EngineError
from mmengine.config import Config

KEYS = dict(
    title=str,
    base=str,
    axes=dict,
    rows=list,
    seeds=list,
    baseline=dict,
    options=dict,
    pictures=dict,
)


class StudyError(EngineError):
    """A study that cannot be run as it is."""


@dataclass(frozen=True)
class Cell:
    """One row of the study's table: a configuration, run once a seed."""

    name: str
    settings: dict[str, Any]  # axis -> value
    options: dict[str, Any]  # config key -> value

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
    text: str  # of that config
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """A study file, read and checked.

    A study file is a Python config with

    - `base`: the config that is varied, relative to the study file;
    - `axes`: a dict of lists; the cells are their product. A name is one of `AXES` or any key of
      the base config (`'optim_wrapper.optimizer.lr'`);
    - `rows`: a list of dicts of the same names, for what is no product, each maybe with a `name`.
      With both, every row is combined with every point of the axes;
    - `seeds`: a list of ints;
    - optionally `title`; `baseline`, the settings of the cell that the others are compared with
      (the first cell if not given); `options`, keys of the config that hold for every cell; and
      `pictures`, for the report: `cells`, a list of cell names, and `images`, how many.
    """

    path: Path
    title: str
    base: Path
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    baseline: Cell
    config: Config
    pictures: dict[str, Any]

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
        for key, value in content.items():
            if key not in KEYS:
                raise StudyError(f"{path}: {key}: unknown, expected some of {', '.join(KEYS)}")
            if not isinstance(value, KEYS[key]):
                kind = type(value).__name__
                raise StudyError(f"{path}: {key}: expected a {KEYS[key].__name__}, got a {kind}")
        for key in ("base", "seeds"):
            if not content.get(key):
                raise StudyError(f"{path}: {key} is missing or empty")
        seeds = tuple(content["seeds"])
        if not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise StudyError(f"{path}: seeds: expected whole numbers from 0, got {list(seeds)}")
        if len(set(seeds)) < len(seeds):
            raise StudyError(f"{path}: seeds: {list(seeds)} has one of them twice")
        base = (path.parent / content["base"]).resolve()
        if not base.is_file():
            raise StudyError(f"{path}: base: config not found: {content['base']}")
        try:
            config = Config.fromfile(base)
        except Exception as error:
            raise StudyError(f"{path}: base: {content['base']}: {error}") from error
        if "max_epochs" not in config.get("train_cfg", {}):
            raise StudyError(f"{path}: base: {content['base']} has no train_cfg.max_epochs")
        options = content.get("options", {})
        for key in options:
            _check_key(f"{path}: options", key, config)
        config.merge_from_dict(options)
        cells = _cells(path, content, config)
        _check_different(path, cells, config)
        baseline = cells[0]
        if "baseline" in content:
            wanted = _normal(content["baseline"])
            found = [cell for cell in cells if wanted.items() <= _named(cell).items()]
            if len(found) != 1:
                raise StudyError(f"{path}: baseline: {len(found)} cells are {wanted}, expected one")
            baseline = found[0]
        pictures = dict(cells=[], images=6) | content.get("pictures", {})
        if unknown := set(pictures) - {"cells", "images"}:
            raise StudyError(f"{path}: pictures: {unknown.pop()}: unknown, expected cells, images")
        names = [cell.name for cell in cells]
        if unknown := [name for name in pictures["cells"] if name not in names]:
            raise StudyError(
                f"{path}: pictures: no cell is named {unknown[0]!r}; there are {names}"
            )
        title = content.get("title", path.stem)
        return cls(path, title, base, cells, seeds, baseline, config, pictures)

    def runs(self, folder: Path) -> list[Run]:
        """Every run of the study, seed by seed, so that all cells soon have a first result."""
        return [
            _run(self.config, cell, seed, folder)
            for seed, cell in itertools.product(self.seeds, self.cells)
        ]


def _cells(path: Path, content: dict, config: Config) -> tuple[Cell, ...]:
    axes, rows = content.get("axes", {}), content.get("rows", [{}])
    for name, values in axes.items():
        if not isinstance(values, list):
            raise StudyError(f"{path}: axes: {name}: expected a list of values, got {values!r}")
    cells: dict[str, Cell] = {}
    for row in rows:
        if not isinstance(row, dict):
            raise StudyError(f"{path}: rows: expected dicts, got {row!r}")
        for point in itertools.product(*axes.values()):
            settings = row | dict(zip(axes, point, strict=True))
            name = settings.pop("name", None)
            if name is not None and axes:
                name = ", ".join([name, *(_label(axis, settings[axis]) for axis in axes)])
            settings = _normal(settings)
            options: dict[str, Any] = {}
            for axis, value in settings.items():
                where = f"{path}: {axis}"
                if axis in AXES:
                    options |= AXES[axis](where, value)
                else:
                    _check_key(where, axis, config)
                    options[axis] = value
            name = name or ", ".join(_label(*item) for item in settings.items()) or "base"
            cell = Cell(name, settings, options)
            if not re.match(r"[^.].{0,99}$", cell.folder):
                raise StudyError(f"{path}: {name!r} cannot name a folder; give the row a name")
            if (
                "conv" in settings
                and "layers" not in settings
                and not config.model.backbone.get("deform")
            ):
                raise StudyError(
                    f"{path}: conv: the base config has no deformable layer; give layers"
                )
            if cells.setdefault(cell.folder, cell) != cell:
                raise StudyError(f"{path}: two cells would be in the folder {cell.folder}")
    if not cells or (not axes and "rows" not in content):
        raise StudyError(f"{path} has no cell: give axes, rows or both")
    return tuple(cells.values())


def _normal(settings: dict) -> dict:
    """Without what makes no difference: no deformable layer is neither plain nor modulated."""
    return {k: v for k, v in settings.items() if k != "conv" or settings.get("layers") != 0}


def _named(cell: Cell) -> dict:
    return {"name": cell.name, **cell.settings}


def _label(axis: str, value: Any) -> str:
    if axis == "layers":
        return f"{value} layers"
    if axis == "mimic":
        return f"mimic {value}"
    return str(value) if axis in AXES else f"{axis.split('.')[-1]}={value}"


def _layers(where: str, value: Any) -> dict:
    if type(value) is not int or value < 0:
        raise StudyError(f"{where}: expected a number of layers, got {value!r}")
    return {"model.backbone.deform": dict(layers=value, stages=None)}


def _check_one_of(where: str, value: Any, *allowed: str) -> None:
    if value not in allowed:
        raise StudyError(f"{where}: expected one of {', '.join(allowed)}, got {value!r}")


def _conv(where: str, value: Any) -> dict:
    _check_one_of(where, value, "dconv", "mdconv")
    return {"model.backbone.deform.modulated": value == "mdconv"}


def _pool(where: str, value: Any) -> dict:
    _check_one_of(where, value, "align", "dpool", "mdpool")
    return {"model.roi_head.bbox_roi_extractor.pool": value}


def _mimic(where: str, value: Any) -> dict:
    _check_one_of(where, value, "off", "foreground", "background", "both")
    return {"model.mimic": None} if value == "off" else {"model.mimic.on": value}


# The axes with a name of their own: what they set in a config.
AXES = {"layers": _layers, "conv": _conv, "pool": _pool, "mimic": _mimic}


# Keys that a config may leave out, by the section that it must have.
OPTIONAL = {
    "model.backbone.deform": ("deform_groups",),
    "model.roi_head.bbox_roi_extractor.deform": ("gamma", "fc_channels"),
    "model.mimic": (
        *("num_rois", "crop_size", "loss_mimic.loss_weight", "loss_mimic.reduction"),
        "loss_cls.loss_weight",
    ),
}
# What tools/ablate.py sets itself.
OWN = ("randomness.seed", "work_dir", "resume", "load_from")


def _check_key(where: str, key: str, config: Config) -> None:
    """Raise StudyError where `config` has no such key, with those that come close."""
    if key in OWN:
        raise StudyError(f"{where}: {key} is set for every run; seeds says which")
    for section, names in OPTIONAL.items():
        if key in [f"{section}.{name}" for name in names]:
            key = section
    value: Any = config
    steps = key.split(".")
    for i, step in enumerate(steps):
        if isinstance(value, (list, tuple)) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, dict | Config) and step in value:
            value = value[step]
        else:
            known = list(value.keys()) if isinstance(value, dict | Config) else []
            if i == 0:
                known += list(AXES)
            near = difflib.get_close_matches(step, known) or known[:8]
            hint = f"; {'.'.join(steps[:i]) or 'it'} has {', '.join(near)}" if near else ""
            raise StudyError(f"{where}: the base config has no key {key}{hint}")


def _check_different(path: Path, cells: tuple[Cell, ...], config: Config) -> None:
    """Raise StudyError where two cells would train the same, or one cannot be configured."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        try:
            content = json.dumps(_configured(config, cell).to_dict(), default=str, sort_keys=True)
        except TypeError as error:
            raise StudyError(f"{path}: {cell.name}: {error}") from error
        if (other := seen.setdefault(content, cell)) is not cell:
            raise StudyError(f"{path}: the cells {other.name!r} and {cell.name!r} are the same")


def _configured(config: Config, cell: Cell) -> Config:
    config = copy.deepcopy(config)
    for key, value in cell.options.items():
        config.merge_from_dict({key: value})
    return config


def _run(config: Config, cell: Cell, seed: int, folder: Path) -> Run:
    config = _configured(config, cell)
    config.merge_from_dict({"randomness.seed": seed})
    name = f"{cell.folder}_seed-{seed}"
    return Run(
        cell,
        seed,
        folder / cell.folder / f"seed-{seed}",
        folder / "configs" / f"{name}.py",
        config.pretty_text,
        config.train_cfg.max_epochs,
    )
