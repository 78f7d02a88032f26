"""What a user may give as a picture, and what is said of what cannot be read."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.files import UserError
from experiments.run.images import LONGEST, read_image, read_images, resized

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def as_array(path: Path) -> np.ndarray:
    return np.asarray(read_image(path, "task.image").image)


def test_any_mode_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    image = Image.fromarray(RGB)
    image.save(path)
    assert (as_array(path) == RGB).all()
    for mode in ("L", "1", "LA"):
        image.convert(mode).save(path)
        grey = np.asarray(image.convert(mode).convert("L"))
        assert (as_array(path) == grey[..., None]).all(), mode
    palette = image.quantize(8)
    palette.save(path)
    assert (as_array(path) == np.asarray(palette.convert("RGB"))).all()
    palette.save(path, transparency=palette.getpixel((0, 0)))
    assert (as_array(path)[0, 0] == 255).all()
    image.convert("CMYK").save(tmp_path / "x.tif")
    assert as_array(tmp_path / "x.tif").shape == RGB.shape


def test_transparent_parts_lie_over_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 255, 128]], np.uint8)
    Image.fromarray(np.dstack([np.full((1, 3, 3), 40, np.uint8), alpha])).save(tmp_path / "x.png")
    assert np.allclose(as_array(tmp_path / "x.png")[0, :, 0], [255, 40, 147.5], atol=1)


def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    assert (as_array(tmp_path / "x.png") == np.rot90(RGB, -1)).all()


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        Image.fromarray(RGB).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    images = read_images(tmp_path, "task.image")
    assert [image.name for image in images] == ["a.png", "b.png"]
    assert images[0].sha256 == images[1].sha256 and images[0].size == (5, 7)
    assert torch.equal(resized(images[0].image, 5, 7), torch.from_numpy(RGB).permute(2, 0, 1))
    assert resized(images[0].image, 8, 4).shape == (3, 8, 4)


def bad_files(folder: Path) -> None:
    Image.fromarray(RGB).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:90])
    (folder / "text.png").write_text("no picture")
    frames = [Image.new("L", (4, 4), 80 * i) for i in range(3)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "deep.png")
    Image.new("1", (LONGEST + 1, 1)).save(folder / "long.png")
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)  # nothing follows: it must not be decoded
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
    (folder / "empty").mkdir()


def test_what_cannot_be_read_is_told_in_a_line(tmp_path: Path) -> None:
    bad_files(tmp_path)
    for name, said in [
        ("nowhere.png", "there is no such file"),
        ("text.png", "not a picture that can be read: of no known format"),
        ("cut.png", "not a picture that can be read"),
        ("film.gif", "is animated (3 frames)"),
        ("deep.png", "has more than 8 bits a channel"),
        ("long.png", f"has {LONGEST + 1} x 1 pixels: at most {LONGEST} a side"),
        ("bomb.png", "not a picture that can be read: Image size (1600000000 pixels) exceeds limit"),
        ("empty", "there are no pictures in this folder"),
    ]:
        with pytest.raises(UserError) as error:
            read_images(tmp_path / name, "task.image")
        assert said in str(error.value) and str(error.value).startswith(f"task.image={tmp_path / name}: ")
        assert "\n" not in str(error.value) and "0x" not in str(error.value)
