"""Pictures with their numbers beside them, as files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.dataset import BaseDataset
from PIL import Image

from ..engine.errors import EngineError
from .embedding import draw_embedding, embedding
from .offset_fields import draw_offset_fields, offset_fields
from .on_object import draw_on_object, on_object, on_object_table, summarise
from .receptive_field import ReceptiveField, draw_receptive_fields, receptive_field
from .sampling import draw_points, sampling_points

if TYPE_CHECKING:
    from ..inference.detector import Detector


def write_points(
    detector: "Detector", images: Sequence[str], out_dir: str | Path, **kwargs
) -> list[Path]:
    """Of each image NAME, `sampling_points` as NAME_points.png and .npz.

    Args:
        kwargs: at, layer and depth of `sampling_points`.

    Returns:
        The pictures.

    Raises:
        EngineError: two images have one name; and as `sampling_points`.
    """
    written = []
    for image, stem in _stems(images, out_dir):
        points = sampling_points(detector, image, **kwargs)
        written.append(_write(f"{stem}_points", draw_points(points), asdict(points)))
    return written


def write_offset_fields(
    detector: "Detector",
    images: Sequence[str],
    out_dir: str | Path,
    layers: Sequence[str] | None = None,
) -> list[Path]:
    """Of each image NAME, `offset_fields` as NAME_offsets.png and .npz.

    Names in the .npz are LAYER/length, LAYER/mask and LAYER/extent.

    Returns, raises: as `write_points`; and as `offset_fields`.
    """
    written = []
    for image, stem in _stems(images, out_dir):
        array, fields = offset_fields(detector, image, layers)
        numbers = _flat(fields) | {"image": array}
        written.append(_write(f"{stem}_offsets", draw_offset_fields(array, fields), numbers))
    return written


def write_receptive_fields(
    detectors: Mapping[str, "Detector"],
    images: Sequence[str],
    out_dir: str | Path,
    at: tuple[float, float] | None = None,
    layer: str | None = None,
    box: tuple[float, float, float, float] | str | None = "detected",
) -> list[Path]:
    """Of each image NAME, the `receptive_field` of every network as NAME_field.png and .npz.

    The position and the object's box are given, or those that the first network finds. Names in
    the .npz are TITLE/field, TITLE/area and so on.

    Args:
        detectors: by their titles.
        at, layer, box: of `receptive_field`.

    Returns, raises: as `write_points`; and as `receptive_field`.
    """
    written = []
    for image, stem in _stems(images, out_dir):
        fields: dict[str, ReceptiveField] = {}
        for title, detector in detectors.items():
            first = next(iter(fields.values()), None)
            place = (at, box) if first is None else (first.asked, first.box)
            fields[title] = receptive_field(detector, image, place[0], layer, place[1])
        written.append(_write(f"{stem}_field", draw_receptive_fields(fields), _flat(fields)))
    return written


def write_embedding(
    detector: "Detector", dataset: BaseDataset, out_dir: str | Path, images: int | None = None
) -> Path:
    """The `embedding` as embedding.png and .npz; returns the picture, raises as `embedding`."""
    embedded = embedding(detector, dataset, images)
    return _write(Path(out_dir, "embedding"), draw_embedding(embedded), asdict(embedded))


def write_on_object(
    detector: "Detector",
    dataset: BaseDataset,
    out_dir: str | Path,
    images: int | None = None,
    layers: Sequence[str] | None = None,
) -> tuple[Path, str]:
    """`on_object` as on_object.png, .md and .json (the summary), and on_object_images.csv.

    Returns:
        The picture, and what is in the .md.

    Raises:
        EngineError, DataError: as `on_object` and `summarise`.
    """
    shares = on_object(detector, dataset, images, layers)
    summary, comparisons = summarise(shares)
    stem = Path(out_dir, "on_object")
    stem.parent.mkdir(parents=True, exist_ok=True)
    table = on_object_table(summary, comparisons)
    Path(f"{stem}.md").write_text(f"{table}\n", encoding="utf-8")
    Image.fromarray(draw_on_object(summary, comparisons)).save(f"{stem}.png")
    summary.to_json(f"{stem}.json", orient="index", indent=1)
    shares.to_csv(f"{stem}_images.csv", index=False, float_format="%.6g")
    return Path(f"{stem}.png"), table


def _stems(images: Sequence[str], out_dir: str | Path) -> Iterator[tuple[str, Path]]:
    """Each image with the path, without a suffix, of what is written of it."""
    named: dict[str, str] = {}
    for image in images:
        name = Path(image).stem
        if name in named:
            raise EngineError(f"{named[name]} and {image}: both would be written as {name}")
        named[name] = image
    for name, image in named.items():
        yield image, Path(out_dir, name)


def _flat(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of dataclasses by NAME/FIELD."""
    return {f"{name}/{key}": v for name, part in parts.items() for key, v in asdict(part).items()}


def _write(stem: str | Path, picture: np.ndarray, numbers: Mapping[str, Any]) -> Path:
    """A picture and, beside it, its numbers as an .npz that loads without pickle."""
    path = Path(f"{stem}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    known = {name: np.asarray(value) for name, value in numbers.items() if value is not None}
    np.savez_compressed(f"{stem}.npz", **known)
    return path
