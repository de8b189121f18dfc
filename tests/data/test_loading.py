import cv2
import mmcv
import numpy as np
import pytest
import torch
from dcndet.data.errors import DataError
from dcndet.data.loading import LoadImageFromFile, read_image
from mmdet.registry import TRANSFORMS
from mmengine.registry import init_default_scope
from PIL import Image


@pytest.fixture(autouse=True)
def scope():
    """Of a config for mmdet, whatever a test before this one ran."""
    init_default_scope("mmdet")


@pytest.fixture
def picture():
    """A uint8 RGB array [48, 64, 3] with smooth colours."""
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, 255 - x * 2 - y], -1).astype(np.uint8)


def load(path, **annotations):
    return TRANSFORMS.build({"type": "LoadImageFromFile"})({"img_path": str(path), **annotations})


def refusal(path, **annotations):
    with pytest.raises(DataError) as error:
        load(path, **annotations)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message  # a DataLoader worker's error is cut down to its last line
    return message


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp"])
def test_same_as_mmcv(tmp_path, picture, name):
    Image.fromarray(picture).save(tmp_path / name)
    result = load(tmp_path / name, height=48, width=64)
    image = result["img"]
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert result["img_shape"] == result["ori_shape"] == (48, 64)
    np.testing.assert_allclose(image.astype(int), mmcv.imread(str(tmp_path / name)), atol=2)


def test_channels_are_bgr(tmp_path):
    Image.new("RGB", (2, 2), (255, 128, 0)).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png")["img"][0, 0].tolist() == [0, 128, 255]


def test_to_float32(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    image = LoadImageFromFile(to_float32=True)({"img_path": str(tmp_path / "a.png")})["img"]
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, picture[..., ::-1])


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path, picture, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).convert("CMYK").save(path)
    np.testing.assert_allclose(read_image(path)[..., ::-1].astype(int), picture, atol=12)


def test_cmyk_with_ink(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cyan.tif")
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "black.tif")
    assert read_image(tmp_path / "cyan.tif")[0, 0].tolist() == [255, 255, 0]
    assert read_image(tmp_path / "black.tif")[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    path = str(tmp_path / f"a.{suffix}")
    cv2.imwrite(path, grey)
    image = read_image(path)
    np.testing.assert_array_equal(image, np.repeat((grey // 256)[..., None], 3, -1))


def test_16_bit_colour_is_scaled(tmp_path, picture):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, picture.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(path), picture)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes(tmp_path, picture, mode):
    image = Image.fromarray(picture).convert(mode)
    if "A" in mode:
        image.putalpha(40)
    image.save(tmp_path / "a.png")
    loaded = load(tmp_path / "a.png")["img"]
    expected = mmcv.imread(str(tmp_path / "a.png"))
    np.testing.assert_allclose(loaded.astype(int), expected, atol=1)


def test_exif_orientation_as_mmcv(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif, quality=95)
    result = load(tmp_path / "a.jpg", height=64, width=48)
    expected = mmcv.imread(str(tmp_path / "a.jpg"))
    assert result["img"].shape == expected.shape == (64, 48, 3)
    np.testing.assert_allclose(result["img"].astype(int), expected, atol=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (40, 1), (2, 2)])
@pytest.mark.parametrize("direction", ["horizontal", "vertical", "diagonal"])
def test_a_flipped_row_or_column_is_packed(tmp_path, size, direction):
    Image.effect_noise(size, 64).save(tmp_path / "a.png")
    results = load(tmp_path / "a.png")
    flip = TRANSFORMS.build({"type": "RandomFlip", "prob": 1.0, "direction": direction})
    pack = TRANSFORMS.build({"type": "PackDetInputs", "meta_keys": ("img_shape",)})
    packed = pack(flip(results))["inputs"]
    axes = {"horizontal": 1, "vertical": 0, "diagonal": (0, 1)}
    expected = np.flip(read_image(tmp_path / "a.png"), axes[direction])
    np.testing.assert_array_equal(packed.permute(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("content", "part"), [(b"", "zero bytes"), (b"<html>not found</html>", "not an image")]
)
def test_no_image(tmp_path, content, part):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert part in refusal(path)


def test_missing(tmp_path):
    assert "No such file" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated(tmp_path, picture, name, share):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 256, picture.shape).astype(np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "cannot decode" in refusal(path)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_refused(tmp_path, mode):
    Image.new(mode, (8, 8), 70000).save(tmp_path / "a.tif")
    assert "32 bits a channel" in refusal(tmp_path / "a.tif")


def test_another_size_than_annotated(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    message = refusal(tmp_path / "a.png", height=64, width=48)
    assert "is 64x48 pixels, but its annotations say 48x64" in message


def test_error_reaches_the_main_process(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    dataset = [{"img_path": str(tmp_path / "a.jpg")}]
    loader = torch.utils.data.DataLoader(dataset, num_workers=1, collate_fn=lambda b: load(**b[0]))

    def load(img_path):
        return LoadImageFromFile()({"img_path": img_path})

    with pytest.raises(DataError, match=r"a\.jpg has zero bytes"):
        next(iter(loader))


def test_too_many_pixels_are_refused_by_the_header(tmp_path):
    Image.effect_noise((64, 48), 99).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])  # nothing to decode
    with pytest.raises(DataError, match=r"a\.png: it has 64x48 pixels, more than 3,071"):
        read_image(tmp_path / "a.png", max_pixels=64 * 48 - 1)
    with pytest.raises(DataError, match="truncated"):
        read_image(tmp_path / "a.png", max_pixels=64 * 48)
