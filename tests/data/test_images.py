import multiprocessing
import os

import pytest
import torch.distributed
from dcndet.data import images
from dcndet.data.errors import DataError
from dcndet.data.images import check_headers, decoding_fault, header_fault
from PIL import Image


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "a.jpg"
    path.parent.mkdir()
    Image.effect_noise((40, 30), 64).save(path)
    (tmp_path / "train.json").write_text("{}")
    return path


def entry(**settings):
    return {"file_name": "a.jpg", "width": 40, "height": 30, **settings}


def check(photo, *entries):
    check_headers(photo.parents[1] / "train.json", photo.parent, entries)


@pytest.mark.parametrize("fault", [header_fault, decoding_fault])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_size_is_that_of_the_turned_image(tmp_path, fault, suffix):
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    assert fault(path, 30, 40) is None
    assert fault(path, 40, 30) == f"{path}: 30x40 pixels, but its annotations say 40x30"


def test_faults_of_headers(photo):
    assert header_fault(photo, 40, 30) is None
    assert "No such file" in header_fault(photo.with_name("b.jpg"), 40, 30)
    photo.write_bytes(photo.read_bytes()[:-100])
    assert header_fault(photo, 40, 30) is None  # only decoding shows it
    assert "cannot decode" in decoding_fault(photo, 40, 30)
    photo.write_bytes(b"no image")
    assert "not an image" in header_fault(photo, 40, 30)
    photo.write_bytes(b"")
    assert "zero bytes" in header_fault(photo, 40, 30)


def test_a_good_set_is_remembered(photo, monkeypatch):
    check(photo, entry())
    monkeypatch.setattr(images, "header_fault", lambda *args: "looked")
    check(photo, entry())
    os.utime(photo.parents[1] / "train.json", ns=(1, 1))
    with pytest.raises(DataError, match="looked"):
        check(photo, entry())


def test_a_bad_set_is_not_remembered(photo):
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 of the 2 images in .*train\.json cannot be used"):
            check(photo, entry(), entry(width=41))


def test_a_removed_image_is_noticed(photo):
    check(photo, entry())
    photo.unlink()
    with pytest.raises(DataError, match="No such file"):
        check(photo, entry())


def test_a_set_beside_its_images_is_remembered(photo, monkeypatch):
    (photo.parent / "all.json").touch()
    check_headers(photo.parent / "all.json", photo.parent, [entry()])
    monkeypatch.setattr(images, "header_fault", lambda *args: "looked")
    check_headers(photo.parent / "all.json", photo.parent, [entry()])


def test_a_set_that_cannot_be_written_is_remembered_in_the_cache(photo, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / ".train.json.checked").mkdir()  # for root, who may write anywhere
    check(photo, entry())
    monkeypatch.setattr(images, "header_fault", lambda *args: "looked")
    check(photo, entry())
    assert len(list((tmp_path / "cache" / "dcndet" / "checked").iterdir())) == 1


def _process(rank, photo, port, queue):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    if rank == 1:
        images.header_fault = None  # would be called in vain
    try:
        check(photo, entry(width=41))
    except DataError as error:
        queue.put(str(error))
    torch.distributed.destroy_process_group()


def test_the_first_process_checks_for_all(photo):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    args = [(rank, photo, 29000 + os.getpid() % 1000, queue) for rank in range(2)]
    processes = [context.Process(target=_process, args=each) for each in args]
    for process in processes:
        process.start()
    messages = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert messages[0] == messages[1]
    assert "its annotations say 41x30" in messages[0]
