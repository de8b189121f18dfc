"""Sets of single digits, in memory: MNIST, and scikit-learn's digits, which need no download."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torchvision.datasets
from mmcv.transforms import BaseTransform
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.dataset import BaseDataset
from sklearn.datasets import load_digits

from .errors import DataError

SIDE = 28  # of an MNIST image, in pixels
BOX = 20  # what its digit fills
VAL_EVERY = 5  # of scikit-learn's digits


class _Digits(BaseDataset):
    METAINFO: ClassVar = dict(classes=tuple("0123456789"))

    def __init__(self, train, group=None, **kwargs):
        self.train = train
        self.group = group
        super().__init__(**kwargs)

    def load_data_list(self):
        images, labels = self._read()
        group = {} if self.group is None else {"group": self.group}
        samples = zip(images, labels.tolist(), strict=True)
        return [
            {"img": image, "img_id": i, "gt_label": label, **group}
            for i, (image, label) in enumerate(samples)
        ]


@DATASETS.register_module()
class MNIST(_Digits):
    """MNIST (LeCun et al., 1998): 60,000 handwritten digits to train on, 10,000 to test.

    A sample has ``img`` (uint8 [28, 28], ink is 255), ``img_id`` (its place in the split),
    ``gt_label`` and, if given, ``group``.

    Args:
        train (bool): which of the two splits.
        group (str, optional): a name under which :class:`Accuracy` counts these images as well.
        data_root (str): folder with ``MNIST/raw``, as torchvision's MNIST and
            ``scripts/download_mnist.sh`` write it.
        kwargs: all else that mmengine's BaseDataset takes, for example ``indices``, a number of
            images or a list of them.

    Raises:
        DataError: the files are missing or damaged.
    """

    def _read(self):
        count = 60000 if self.train else 10000
        try:
            mnist = torchvision.datasets.MNIST(self.data_root, self.train)
            if not len(mnist.data) == len(mnist.targets) == count:
                raise ValueError(f"{len(mnist.data)} images and {len(mnist.targets)} labels")
        except (RuntimeError, AssertionError, ValueError, OSError) as error:
            raise DataError(
                f"no MNIST of {count} images in {Path(self.data_root, 'MNIST/raw')} ({error}): "
                "scripts/download_mnist.sh downloads it, or set data_root to the folder that has "
                "MNIST/raw"
            ) from error
        return mnist.data.numpy(), mnist.targets.numpy()


@DATASETS.register_module()
class SmallDigits(_Digits):
    """scikit-learn's 1797 handwritten digits in MNIST's format: no download.

    The images of 8×8 pixels are enlarged to 20×20 in a frame of 28×28, as MNIST's are. Every fifth
    one is for evaluation. Samples and arguments are those of :class:`MNIST`.
    """

    def _read(self):
        digits = load_digits()
        chosen = (np.arange(len(digits.images)) % VAL_EVERY != 0) == self.train
        margin = (SIDE - BOX) // 2
        images = np.zeros((chosen.sum(), SIDE, SIDE), np.uint8)
        for image, ink in zip(images, digits.images[chosen] * (255 / 16), strict=True):
            large = cv2.resize(ink, (BOX, BOX), interpolation=cv2.INTER_LINEAR)
            image[margin:-margin, margin:-margin] = large.round()
        return images, digits.target[chosen]


@TRANSFORMS.register_module()
class ToChannels(BaseTransform):
    """Makes ``img`` grey [H, W] or BGR [H, W, 3], whichever it was.

    Args:
        channels (int): 1 or 3.

    Raises:
        ValueError: another number of channels.
    """

    def __init__(self, channels):
        if channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {channels!r}")
        self.channels = channels

    def transform(self, results):
        image = results["img"]
        if self.channels != (image.shape[2] if image.ndim == 3 else 1):
            code = cv2.COLOR_BGR2GRAY if self.channels == 1 else cv2.COLOR_GRAY2BGR
            results["img"] = cv2.cvtColor(image, code)
        return results


@TRANSFORMS.register_module()
class RandomZoom(BaseTransform):
    """Draws ``img`` smaller or larger, and somewhere else, by numbers from uniform distributions.

    As in Keras' ImageDataGenerator, output pixel o shows input pixel i = c + z·(o − c') + s, where
    c and c' are the centres of the two images, so that z *divides* the size of what is shown, and
    the shift s counts in pixels of the input. Pixels outside of the input are black. Like mmcv's
    Resize, it notes ``ori_shape`` (height, width) and ``scale_factor`` (1 / z across, 1 / z down).

    Args:
        zoom (Sequence[float]): lowest and highest z, positive.
        shift (float): s along each axis is at most this share of the input's side.
        per_axis (bool): draw z for each axis of its own, as Keras does.
        size (int, optional): side of the output in pixels; by default that of the input.
        interpolation (str): 'nearest' or 'bilinear'.
        seed (int, optional): draw from this and the sample's ``img_id``, the same in every epoch.
            By default every epoch draws anew.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, zoom, shift=0.0, per_axis=False, size=None, interpolation="nearest", seed=None
    ):
        pair = isinstance(zoom, Sequence) and len(zoom) == 2 and all(map(_is_number, zoom))
        if not pair or not 0 < zoom[0] <= zoom[1]:
            raise ValueError(f"zoom: expected the lowest and the highest, positive, got {zoom!r}")
        if not _is_number(shift) or not 0 <= shift < 1:
            raise ValueError(f"shift: expected a share of the side from 0 to 1, got {shift!r}")
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"size: expected a number of pixels from 1 up, got {size!r}")
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise ValueError(f"seed: expected an integer from 0 up, got {seed!r}")
        flags = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR}
        if interpolation not in flags:
            raise ValueError(f"interpolation: expected nearest or bilinear, got {interpolation!r}")
        self.zoom, self.shift, self.per_axis = zoom, shift, per_axis
        self.size, self.seed = size, seed
        self.flags = flags[interpolation] | cv2.WARP_INVERSE_MAP

    def transform(self, results):
        seed = None if self.seed is None else [self.seed, results["img_id"]]
        # Workers seed numpy's global generator by epoch.
        rng = np.random if seed is None else np.random.default_rng(seed)
        zoom = np.broadcast_to(rng.uniform(*self.zoom, size=1 + self.per_axis), 2)
        image = results["img"]
        before = np.array(image.shape[1::-1])  # (width, height)
        after = before if self.size is None else np.array([self.size, self.size])
        shift = rng.uniform(-self.shift, self.shift, size=2) * before
        offset = (before - 1) / 2 - zoom * (after - 1) / 2 + shift
        matrix = np.column_stack([np.diag(zoom), offset])
        results["img"] = cv2.warpAffine(image, matrix, after.tolist(), flags=self.flags)
        results["img_shape"] = results["img"].shape[:2]
        results["ori_shape"] = image.shape[:2]
        results["scale_factor"] = tuple((1 / zoom).tolist())
        return results


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)
