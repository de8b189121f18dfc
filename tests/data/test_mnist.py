import struct

import numpy as np
import pytest
from dcndet.data.errors import DataError
from dcndet.data.mnist import MNIST, RandomZoom, SmallDigits, ToChannels
from mmdet.registry import DATASETS


def write_mnist(root, count, labels=None):
    """MNIST's test set, of so many images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28), np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10 if labels is None else labels
    for split in ("train", "t10k"):
        header = struct.pack(">iiii", 2051, count, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">ii", 2049, len(labels))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return images


def test_mnist(tmp_path):
    images = write_mnist(tmp_path, 10000)
    dataset = DATASETS.build(
        dict(type="mmdet.MNIST", data_root=f"{tmp_path}/", train=False, group="plain", indices=50)
    )
    assert len(dataset) == 50
    assert dataset.metainfo["classes"] == tuple("0123456789")
    info = dataset.get_data_info(13)
    assert (info["gt_label"], info["group"], info["img_id"]) == (3, "plain", 13)
    some = MNIST(data_root=f"{tmp_path}/", train=False, indices=[13, 5])
    assert [some.get_data_info(i)["img_id"] for i in range(2)] == [13, 5]
    np.testing.assert_array_equal(info["img"], images[13])
    assert "group" not in MNIST(data_root=f"{tmp_path}/", train=False).get_data_info(0)


def test_mnist_that_is_not_there(tmp_path):
    with pytest.raises(
        DataError, match=r"no MNIST of 60000 images in .*/MNIST/raw .*download_mnist\.sh"
    ):
        MNIST(data_root=f"{tmp_path}/", train=True)


@pytest.mark.parametrize("damage", ["short", "few", "labels", "empty"])
def test_damaged_mnist(tmp_path, damage):
    write_mnist(
        tmp_path,
        20 if damage == "few" else 10000,
        np.zeros(9, np.uint8) if damage == "labels" else None,
    )
    file = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    if damage in ("short", "empty"):
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else -1])
    with pytest.raises(DataError, match=r"no MNIST of 10000 images in .*MNIST/raw "):
        MNIST(data_root=f"{tmp_path}/", train=False)


def test_small_digits_have_mnists_format():
    train, val = (SmallDigits(train=train) for train in (True, False))
    assert (len(train), len(val)) == (1437, 360)
    for dataset in (train, val):
        images = np.stack([dataset.get_data_info(i)["img"] for i in range(len(dataset))])
        assert (images.dtype, images.shape[1:]) == (np.uint8, (28, 28))
        assert images.max() == 255
        ink = images.any(axis=0)
        assert all(edge.any() for edge in (ink[4], ink[-5], ink[:, 4], ink[:, -5]))
        assert images.sum() == images[:, 4:-4, 4:-4].sum()
        labels = [dataset.get_data_info(i)["gt_label"] for i in range(len(dataset))]
        assert min(np.bincount(labels)) > 20


def test_channels():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colour = ToChannels(3)(dict(img=grey))["img"]
    np.testing.assert_array_equal(colour, np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(ToChannels(3)(dict(img=colour))["img"], colour)
    np.testing.assert_array_equal(ToChannels(1)(dict(img=colour))["img"], grey)
    np.testing.assert_array_equal(ToChannels(1)(dict(img=grey))["img"], grey)
    with pytest.raises(ValueError, match="channels: expected 1 or 3, got 2"):
        ToChannels(2)


def zoomed(image, index=0, **settings):
    return RandomZoom(**settings)(dict(img=image, img_id=index))["img"]


@pytest.fixture
def square():
    """Of 8×8 pixels, in the centre."""
    image = np.zeros((28, 28), np.uint8)
    image[10:18, 10:18] = 200
    return image


@pytest.mark.parametrize(("z", "side"), [(2, 4), (1, 8), (0.5, 16)])
def test_zoom_divides_the_size(square, z, side):
    out = zoomed(square, zoom=(z, z))
    expected = np.zeros_like(out)
    low = 14 - side // 2
    expected[low : low + side, low : low + side] = 200
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("size", [7, 10])
def test_centres_lie_on_each_other(size):
    """Of a ramp, output pixel o shows 10 times the input's position."""
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1))
    out = zoomed(ramp, zoom=(1.5, 1.5), size=size, interpolation="bilinear")
    expected = 10 * (11.5 + 1.5 * (np.arange(size) - (size - 1) / 2))
    np.testing.assert_allclose(out, np.tile(expected, (size, 1)), atol=1)


def test_a_larger_frame(square):
    out = zoomed(square, zoom=(1, 1), size=56)
    np.testing.assert_array_equal(out, np.pad(square, 14))


def test_zoom_notes_how_large_the_image_is_drawn():
    sample = dict(img=np.zeros((10, 20), np.uint8), img_id=0)
    noted = RandomZoom(zoom=(1, 2), per_axis=True, seed=0, size=56)(sample)
    drawn = np.random.default_rng([0, 0]).uniform(1, 2, size=2)
    assert (noted["ori_shape"], noted["img_shape"]) == ((10, 20), (56, 56))
    np.testing.assert_allclose(noted["scale_factor"], 1 / drawn)


def test_shift_and_axes(square):
    centres, sides = [], []
    for index in range(300):
        out = zoomed(square, index, zoom=(1, 2), shift=0.25, per_axis=True, seed=0)
        rows, columns = (np.flatnonzero(out.any(axis=axis)) for axis in (1, 0))
        centres.append([rows.mean() - 13.5, columns.mean() - 13.5])
        sides.append([len(rows), len(columns)])
    centres, sides = np.array(centres), np.array(sides)
    assert abs(centres.mean(axis=0)).max() < 0.6
    assert 5 < abs(centres).max() <= 8  # a quarter of 28, and a pixel for the rounding
    assert sides.min() >= 3
    assert sides.max() <= 9
    assert abs(np.corrcoef(centres.T)[0, 1]) < 0.2
    assert abs(np.corrcoef(sides.T)[0, 1]) < 0.2
    tied = [np.count_nonzero(zoomed(square, i, zoom=(1, 2), seed=0).any(axis=0)) for i in range(9)]
    assert len(set(tied)) > 1


def test_seed(square):
    settings = dict(zoom=(1, 2.5), shift=0.2)
    same = [zoomed(square, 3, **settings, seed=5) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert (zoomed(square, 4, **settings, seed=5) != same[0]).any()
    np.random.seed(0)
    first, second = (zoomed(square, 3, **settings) for _ in range(2))
    assert (first != second).any()
    np.random.seed(0)
    np.testing.assert_array_equal(zoomed(square, 3, **settings), first)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("zoom", (0, 1)),
        ("zoom", (2, 1)),
        ("zoom", 2),
        ("shift", -0.1),
        ("shift", 1),
        ("shift", "x"),
        ("zoom", ("a", "b")),
        ("zoom", "ab"),
        ("seed", -1),
        ("seed", "x"),
        ("size", 0),
        ("size", 2.0),
        ("interpolation", "cubic"),
    ],
)
def test_bad_zoom(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}: expected"):
        RandomZoom(**{"zoom": (1, 2), setting: value})
