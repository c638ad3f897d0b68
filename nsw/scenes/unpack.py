"""Unpack an archive inside one folder and nowhere else."""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from nsw.errors import InputError

_CLUTTER = ("__MACOSX", ".DS_Store")


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .zip or .tar archive into the new folder `target`, whole or not at all.

    Every member is looked at before the first is written; files are written to a folder beside the target, which is
    renamed at the end.

    Raises:
        InputError: a damaged archive, or a member that is absolute, climbs out with "..", or is a link or a device.
    """
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as opened:
                    _write(work, archive, list(_zip_members(opened, archive)), lambda member: opened.open(member))
            elif tarfile.is_tarfile(archive):
                with tarfile.open(archive) as opened:
                    _write(work, archive, list(_tar_members(opened, archive)), lambda member: opened.extractfile(member))
            else:
                raise InputError(f"{archive}: neither a .zip nor a .tar archive; delete it and download it again.")
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError):
            raise InputError(f"{archive}: the archive is damaged; delete it and download it again.") from None
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(work: Path, archive: Path, members: list[tuple[str, object]], open_member) -> None:
    paths = [_inside(name, archive) for name, _ in members]
    if not paths:
        raise InputError(f"{archive}: the archive holds no files; delete it and download it again.")
    for path, (_, member) in zip(paths, members, strict=True):
        file = work / path
        file.parent.mkdir(parents=True, exist_ok=True)
        source: IO[bytes]
        with open_member(member) as source, file.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)


def _inside(name: str, archive: Path) -> Path:
    """Return a member's path below the target; Windows' separators and drives count on every system."""
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts or "\0" in name:
        raise InputError(
            f'{archive}: refused, because its member "{name[:80]}" would be written outside of its folder; delete the archive.'
        )
    return Path(*windows.parts)


def _zip_members(opened: zipfile.ZipFile, archive: Path) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    for member in opened.infolist():
        mode = member.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(
                f'{archive}: refused, because its member "{member.filename[:80]}" is a link or a device; delete the archive.'
            )
        _inside(member.filename, archive)
        if not member.is_dir() and not _is_clutter(member.filename):
            yield member.filename, member


def _tar_members(opened: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for member in opened.getmembers():
        if not (member.isfile() or member.isdir()):
            raise InputError(
                f'{archive}: refused, because its member "{member.name[:80]}" is a link or a device; delete the archive.'
            )
        _inside(member.name, archive)
        if member.isfile() and not _is_clutter(member.name):
            yield member.name, member


def _is_clutter(name: str) -> bool:
    return any(part in _CLUTTER for part in PurePosixPath(name).parts)
