"""Decoding and packing of images."""

import io

import mmcv.transforms
import mmdet.datasets.transforms
import mmengine.fileio as fileio
import numpy as np
from mmdet.registry import TRANSFORMS
from PIL import Image, ImageOps

from .errors import DataError


@TRANSFORMS.register_module()
class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """mmcv's transform of this name, but it refuses what OpenCV decodes silently.

    It has the same name because mmdet's inferencers look for it in a pipeline; mmdet's registry
    finds this one before mmcv's, which stays ``mmengine.LoadImageFromFile``.

    OpenCV fills up a truncated file with grey, and mmcv's Pillow backend clips 16 bits to white.
    Needs ``img_path``, and compares with ``height`` and ``width`` [pixels] where the dataset gives
    them. Sets ``img`` (uint8, height x width x 3, BGR), ``img_shape`` and ``ori_shape``.

    Args:
        to_float32 (bool): convert ``img`` to float32.
        backend_args (dict, optional): mmengine's file backend, for files which are not on a disk.

    Raises:
        DataError: the image is missing, empty, truncated, not an image, has 32 bits per channel, or
            is of another size than the annotations say.
    """

    def __init__(self, to_float32=False, backend_args=None):
        super().__init__(to_float32, imdecode_backend="pillow", backend_args=backend_args)

    def transform(self, results):
        path = results["img_path"]
        image = read_image(path, self.backend_args)
        size = image.shape[:2]
        expected = results.get("height", size[0]), results.get("width", size[1])
        if size != expected:
            raise DataError(
                f"image {path} is {size[1]}x{size[0]} pixels, but its annotations say "
                f"{expected[1]}x{expected[0]}"
            )
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = size
        return results


@TRANSFORMS.register_module(force=True)
class PackDetInputs(mmdet.datasets.transforms.PackDetInputs):
    """mmdet's transform, which takes its place, as it fails on a flipped row or column of pixels.

    Takes its arguments, sets what it does: ``inputs`` (channels x height x width).
    """

    def transform(self, results):
        if 1 in results["img"].shape[:2]:
            # Its stride is negative, which torch refuses, but numpy calls it contiguous.
            results["img"] = results["img"].copy()
        return super().transform(results)


def read_image(path, backend_args=None, max_pixels=None):
    """An image file as a uint8 array [height, width, 3], BGR, turned as its EXIF orientation says.

    Alpha is left out, as OpenCV does; 16 bits are scaled to 8. An animation is its first picture.
    One that has more than ``max_pixels`` by its header is refused before it is decoded.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, too large, or has 32 bits
            per channel.
    """
    try:
        content = fileio.get(path, backend_args=backend_args)
    except OSError as error:
        raise DataError(f"cannot read image {path}: {error.strerror or error}") from error
    if not content:
        raise DataError(f"image {path} has zero bytes")
    try:
        return _decode(content, max_pixels)
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that Pillow can read") from error
    except Exception as error:  # Pillow's decoders raise what they please on a broken file
        raise DataError(f"cannot decode image {path}: {error}") from error


def _decode(content, max_pixels):
    image = Image.open(io.BytesIO(content))
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise ValueError(f"it has {image.width}x{image.height} pixels, more than {max_pixels:,}")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a channel, not 8 or 16")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
