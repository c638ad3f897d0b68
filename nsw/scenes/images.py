"""Read pictures of every common kind into 8-bit arrays, or say in one sentence why a file cannot be read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from nsw.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
_UNSUPPORTED = {
    ".exr": "is an OpenEXR picture, whose values have no display range",
    ".hdr": "is a Radiance HDR picture, whose values have no display range",
    ".npy": "is an array, not a picture",
    ".heic": "is an HEIC photo, which needs a codec that is not free",
    ".heif": "is an HEIF photo, which needs a codec that is not free",
    ".dng": "is a raw photo",
    ".cr2": "is a raw photo",
    ".nef": "is a raw photo",
    ".arw": "is a raw photo",
    ".bin": "is ngp's own half-float dump",
}
_ORIENTATION_TAG = 0x0112
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
    struct.error,
)


def is_picture(path: Path) -> bool:
    """Return whether a file name ends like a picture that `read_picture` reads; hidden files never count."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if is_picture(path) and path.is_file())


def _open(path: Path):
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    what = _UNSUPPORTED.get(path.suffix.lower())
    if what:
        raise InputError(f"{path}: {what}; convert it to 8-bit or 16-bit PNG or to JPEG.")
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise InputError(f"{path}: this picture does not exist; restore it or remove its frame.") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder stands where a picture was expected; correct the frame's file name.") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read this picture; change its rights.") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path}: the picture has more than 178 million pixels; make it smaller first.") from None
    except UnidentifiedImageError:
        found = "an empty file" if path.stat().st_size == 0 else "not a picture that can be read"
        raise InputError(f"{path}: {found}; expected PNG, JPEG, TIFF, WebP or BMP: replace it or remove its frame.") from None
    except _DECODE_ERRORS as error:
        raise InputError(f"{path}: the picture cannot be read ({_one_line(error)}); replace it or remove its frame.") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def picture_size(path: Path) -> tuple[int, int, bool]:
    """Return (width, height, turned) of a stored picture, from its header.

    `turned` says that the EXIF orientation asks for a quarter turn, which exchanges width and height on screen.

    Raises:
        InputError: the file is missing or is no picture.
    """
    with _open(path) as image:
        try:
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        except _DECODE_ERRORS:
            orientation = 1
        return image.width, image.height, orientation in (5, 6, 7, 8)


def read_picture(path: Path, upright: bool = False) -> UInt8[np.ndarray, "H W c"]:
    """Return a picture as uint8 sRGB [H, W, 3], or [H, W, 4] with straight alpha when the file has transparency.

    Grey, palette, CMYK and 1-bit pictures become RGB; 16 bits become 8 by rounding.

    Args:
        path: PNG, JPEG, TIFF, WebP or BMP.
        upright: turn the picture as its EXIF orientation asks (photos); readers of posed pictures leave it as stored,
            because the poses belong to the stored pixels.

    Raises:
        InputError: missing, truncated, unknown or unsupported file.
    """
    from PIL import Image, ImageOps

    with _open(path) as image:
        try:
            image.load()
            if upright:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                return np.repeat(_eight_bits(np.asarray(image), path)[..., None], 3, axis=2)
            if image.mode == "F":
                raise InputError(
                    f"{path}: the picture stores floating-point values, which have no display range; convert it to PNG."
                )
            transparent = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
            return np.array(image.convert("RGBA" if transparent else "RGB"))
        except InputError:
            raise
        except Image.DecompressionBombError:
            raise InputError(f"{path}: the picture has more than 178 million pixels; make it smaller first.") from None
        except _DECODE_ERRORS as error:
            raise InputError(
                f"{path}: the picture is damaged or cut short ({_one_line(error)}); replace it or remove its frame."
            ) from None


def _eight_bits(values: np.ndarray, path: Path) -> UInt8[np.ndarray, "H W"]:
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path}: the picture has grey values outside 16 bits; convert it to PNG with 8 or 16 bits.")
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def read_mask(path: Path) -> Bool[np.ndarray, "H W"]:
    """Return a mask picture as bool [H, W]: True where it is at least half bright, that is where the pixel is to be used."""
    return read_picture(path)[..., :3].mean(axis=2) >= 127.5
