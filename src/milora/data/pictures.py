"""Files of pictures: opened whole or refused, and never decoded if they are too large to be in memory."""

import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from milora.method.errors import MiloraError

# No others: to read EPS or PDF, Pillow starts a program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, struct.error, zlib.error)
SIDEWAYS = (5, 6, 7, 8)  # EXIF's orientations that swap the sides
WAY_OUT = "replace the file, or set data.on_bad_row=drop: rows with such pictures are then dropped and counted"


class BadPictureError(MiloraError):
    """A picture that cannot be used, with its path."""


def open_picture(path: str) -> Image.Image:
    """Return a picture in RGB, turned as its EXIF says.

    Raises:
        BadPictureError: the file does not exist, is not a whole picture, or has more pixels than Pillow's limit, which
            is known before any of them is decoded.
    """
    with _opening(path) as picture:
        return _to_rgb(ImageOps.exif_transpose(picture))


def measure_picture(path: str) -> tuple[int, int]:
    """Return the width and the height of the picture that `open_picture` returns, mostly from the header alone.

    Raises:
        BadPictureError: see `open_picture`.
    """
    with _opening(path) as picture:
        is_turned = picture.getexif().get(0x0112, 1) in SIDEWAYS
        return (picture.height, picture.width) if is_turned else picture.size


def check_pictures(paths: Iterable[str]) -> dict[str, BadPictureError]:
    """Return what is wrong with each picture that cannot be used; one is decoded at a time."""
    found = {}
    for path in paths:
        try:
            with _opening(path) as picture:
                picture.draft("RGB", (1, 1))  # a JPEG is decoded at an eighth of its size, which reads all of the file
                picture.load()
        except BadPictureError as error:
            found[path] = error
    return found


@contextmanager
def _opening(path: str) -> Iterator[Image.Image]:
    if not Path(path).is_file():
        raise BadPictureError(f"the picture {path} does not exist", "check the path and data.image_dir")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that is damaged, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                yield picture
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise BadPictureError(f"the picture {path} has more than {limit} pixels", "make it smaller") from error
    except UnidentifiedImageError as error:
        raise BadPictureError(f"{path} is not a picture in a format of {', '.join(FORMATS)}", WAY_OUT) from error
    except BROKEN as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadPictureError(f"the picture {path} is damaged: {reason}", WAY_OUT) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of gray; `convert` would make everything above 255 white
        picture = picture.point(lambda value: value / 256).convert("L")
    if picture.mode == "P":
        picture = picture.convert("RGBA")  # transparency in a palette
    return picture.convert("RGB")
