"""Pictures of questions, small enough that thousands of them fit into a page."""

import base64
import io
from dataclasses import dataclass, field

from milora.data.pictures import BadPictureError, open_picture

SIDE = 192  # pixels, at most
MOST = 2000  # different pictures of a page: about 10 MB


@dataclass(frozen=True, slots=True)
class Album:
    """The different pictures of a page as data URIs, by their files; None for a file that cannot be shown."""

    pictures: dict[str, str | None] = field(default_factory=dict)

    def add(self, paths: tuple[str, ...]) -> None:
        """Take in the pictures of a sample, while there is room."""
        for path in paths:
            if path not in self.pictures and len(self.pictures) < MOST:
                self.pictures[path] = _shrink(path)

    @property
    def shown(self) -> dict[str, str]:
        return {path: picture for path, picture in self.pictures.items() if picture}


def _shrink(path: str) -> str | None:
    try:
        picture = open_picture(path)
    except BadPictureError:  # it was there when the model saw it
        return None
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=55)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
