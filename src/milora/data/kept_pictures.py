"""Pictures that come without a file of their own, as files in the user's cache."""

import hashlib
import io
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from milora.method.files import write_bytes

GRAY = (128, 128, 128)


def keep_picture(content: bytes) -> Path:
    """Return the file of a picture with these bytes, written if it is not there."""
    path = user_cache_path("milora") / "pictures" / hashlib.sha256(content).hexdigest()[:32]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    return path


@cache
def keep_blank(size: tuple[int, int]) -> Path:
    """Return the file of a gray picture of this width and height."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size, GRAY).save(buffer, "PNG")
    return keep_picture(buffer.getvalue())
