"""Pictures that a user gives, read whole and safely."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from experiments.files import UserError

LONGEST = 16_384  # pixels a side
MOST_PIXELS = 2**26


@dataclass(frozen=True)
class GivenImage:
    """A picture in RGB, the name of its file, and the hash of what the file holds."""

    name: str
    sha256: str
    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width


def read_images(path: Path, setting: str) -> list[GivenImage]:
    """Reads a picture, or all of a folder's in the order of their names. Raises UserError as `read_image`."""
    if not path.is_dir():
        return [read_image(path, setting)]
    Image.init()
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in Image.EXTENSION)
    if not files:
        raise UserError(f"{setting}={path}: there are no pictures in this folder")
    return [read_image(file, setting) for file in files]


def read_image(path: Path, setting: str) -> GivenImage:
    """Reads a picture of any mode: turned as its EXIF data says, transparent parts over white, in RGB.

    Raises UserError, beginning with the setting that names the file, for one that is not there, no picture, damaged,
    animated, of more than 8 bits a channel, or larger than any picture that could be meant.
    """
    where = f"{setting}={path}"
    if not path.is_file():
        raise UserError(f"{where}: there is no such file")
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is a lower one
        try:
            image = Image.open(io.BytesIO(content))
            check(image, where)
            image.load()
            turned = ImageOps.exif_transpose(image)
        except UserError:
            raise
        except Exception as error:  # PIL's readers let through whatever a damaged file leads them to
            reason = (
                "of no known format" if isinstance(error, UnidentifiedImageError) else str(error).partition("\n")[0]
            )
            raise UserError(f"{where}: not a picture that can be read: {reason}") from error
    return GivenImage(path.name, hashlib.sha256(content).hexdigest(), over_white(turned))


def check(image: Image.Image, where: str) -> None:
    """Raises UserError for a picture that is not to be decoded; only its header has been read so far."""
    if max(image.size) > LONGEST or image.width * image.height > MOST_PIXELS:
        raise UserError(
            f"{where}: has {image.width} x {image.height} pixels: "
            f"at most {LONGEST} a side and {MOST_PIXELS / 1e6:.0f} million are read"
        )
    # a phone's JPEG may bring a preview along, which makes it an MPO of two
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        raise UserError(f"{where}: is animated ({frames} frames): give one of its frames")
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{where}: has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits")


def over_white(image: Image.Image) -> Image.Image:
    """Returns a picture in RGB, laid over white where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def resized(image: Image.Image, height: int, width: int) -> Tensor:
    """Returns a picture's pixels, uint8 [3, height, width], by Lanczos's filter where its size is another."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
