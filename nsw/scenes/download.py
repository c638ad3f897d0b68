"""Fetch public data sets: licence on screen, checked hash, resumed after a cut, unpacked only inside their folder."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from nsw.errors import InputError

_CHUNK = 1 << 15  # what a cut connection loses at most
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


@dataclass(frozen=True)
class Dataset:
    """A public data set as it is mirrored.

    Attributes:
        title: what it is.
        licence: shown before the download.
        addresses: tried in this order; all give the same file.
        sha256: of the archive; None where none is published.
        archive: file name, whose ending tells the kind (.zip, .tar, .tar.gz).
    """

    title: str
    licence: str
    addresses: tuple[str, ...]
    sha256: str | None
    archive: str


DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {
        "nerf-synthetic": Dataset(
            title="NeRF-Synthetic: eight path-traced objects, 800 x 800 pixels (Mildenhall et al. 2020)",
            licence="Models from blendswap.com, modified: chair (1DInc), ficus (Herberhold), hotdog (erickfree), materials "
            "(elbrujodelatribu) and mic (up3d.de) CC0; drums (bryanajones) CC-BY; ship (gregzaal) CC-BY-SA; lego "
            "(Heinzelnisse) CC-BY-NC, that is not for commercial use.",
            addresses=(
                "https://github.com/yxlao/nerfmirror/releases/download/20220618/nerf_synthetic.zip",
                _DRIVE + "18JxhpWD-4ZmuFKLzKlAw-w5PpzZxXOcG",
            ),
            sha256="f01fd1b4ab045b0d453917346f26f898657bb5bec4834b95fdad1f361826e45e",
            archive="nerf_synthetic.zip",
        ),
        "nerf_llff": Dataset(
            title="LLFF: eight forward-facing captures with a phone, 4032 x 3024 pixels (Mildenhall et al. 2019, 2020)",
            licence="Published by the authors of LLFF and NeRF for research; no separate licence of the pictures is known: ask "
            "them before any other use. https://github.com/bmild/nerf, https://github.com/Fyusion/LLFF",
            addresses=(
                "https://github.com/yxlao/nerfmirror/releases/download/20220618/nerf_llff_data.zip",
                _DRIVE + "16VnMcF1KJYxN9QId6TClMsZRahHNMW5g",
            ),
            sha256="5794b432feaf4f25bcd603addc6ad0270cec588fed6a364b7952001f07466635",
            archive="nerf_llff_data.zip",
        ),
        "mip-nerf-360": Dataset(
            title="mip-NeRF 360: seven unbounded captures with COLMAP poses (Barron et al. 2022)",
            licence="Published by the authors for research; no separate licence of the pictures is known: ask them before any "
            "other use. https://jonbarron.info/mipnerf360/",
            addresses=(
                "https://storage.googleapis.com/gresearch/refraw360/360_v2.zip",
                "https://fvdb-data.s3.us-east-2.amazonaws.com/fvdb-reality-capture/360_v2.zip",
            ),
            sha256=None,
            archive="360_v2.zip",
        ),
        "tanks-and-temples": Dataset(
            title="Tanks and Temples (train, truck) and Deep Blending (drjohnson, playroom) with COLMAP poses, as used by "
            "3D Gaussian Splatting (Knapitsch et al. 2017, Hedman et al. 2018, Kerbl et al. 2023)",
            licence="Tanks and Temples for non-commercial research, see https://www.tanksandtemples.org/license/; Deep Blending by "
            "its authors' terms, see https://github.com/Phog/DeepBlending",
            addresses=(
                "https://repo-sam.inria.fr/fungraph/3d-gaussian-splatting/datasets/input/tandt_db.zip",
                "https://huggingface.co/camenduru/gaussian-splatting/resolve/main/tandt_db.zip",
            ),
            sha256=None,
            archive="tandt_db.zip",
        ),
    }
)


def downloads_dir() -> Path:
    """Return where downloads are kept: $NSW_DOWNLOADS, else the user's cache folder of nsw."""
    if os.environ.get("NSW_DOWNLOADS"):
        return Path(os.environ["NSW_DOWNLOADS"]).expanduser()
    import pooch

    return Path(pooch.os_cache("nsw")) / "scenes"


def downloaded() -> dict[str, Path]:
    """Return the folders of the scenes that were downloaded, by "data set/scene"."""
    from nsw.scenes.loading import is_scene

    found: dict[str, Path] = {}
    for name in DATASETS:
        level = [downloads_dir() / name]
        for _ in range(4):
            level = [path for path in level if path.is_dir()]
            found.update({f"{name}/{path.name}": path for path in level if is_scene(path)})
            level = [child for path in level if not is_scene(path) for child in sorted(path.iterdir())]
    return found


def get(name: str, folder: str | Path | None = None, progress: bool = True) -> Path:
    """Download and unpack a public data set, and return its folder; what is there already is not fetched again.

    Args:
        name: a key of `DATASETS`.
        folder: where to put it, in a folder of its name; None for `downloads_dir()`, where `nsw.scenes.load` finds it.
        progress: show a progress bar.

    Raises:
        InputError: unknown name, no address that answers, a wrong hash, an archive that reaches outside its folder, or a
            full disk. Nothing half-unpacked is left; a cut download is kept and continued by the next call.
    """
    if name not in DATASETS:
        raise InputError(f'No data set "{name}" to download; there are {", ".join(DATASETS)}.')
    root = downloads_dir() if folder is None else Path(folder).expanduser()
    return fetch(name, DATASETS[name], root, progress)


def fetch(name: str, dataset: Dataset, root: Path, progress: bool = True) -> Path:
    """Download and unpack one data set into root/name; see `get`."""
    from nsw.scenes.unpack import unpack

    target = root / name
    if target.exists():
        print(f"{name} is already in {target}.")
        return target
    print(f"{dataset.title}\nLicence: {dataset.licence}\nInto: {target}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        archive = _fetch_archive(dataset, root, progress)
        unpack(archive, target)
        archive.unlink()
    except OSError as error:
        raise InputError(
            f"{error.filename or root}: cannot be written ({error.strerror or error}); choose another folder."
        ) from None
    return target


def _fetch_archive(dataset: Dataset, root: Path, progress: bool) -> Path:
    """Return the archive, from the first address that gives it whole and, where a hash is known, unchanged."""
    import pooch
    import requests

    archive, failures, last_was_hash = root / dataset.archive, [], False
    known = f"sha256:{dataset.sha256}" if dataset.sha256 else None
    pooch.get_logger().setLevel("ERROR")
    for address in dataset.addresses:
        try:
            pooch.retrieve(address, known, fname=dataset.archive, path=root, downloader=ResumingDownloader(root, progress))
        except InputError:
            raise
        except ValueError as error:
            last_was_hash = "hash" in str(error).lower()
            failures.append(
                f"{_host(address)} gave another file than expected (its SHA-256 differs)" if last_was_hash else str(error)
            )
        except (requests.RequestException, InterruptedError) as error:
            failures.append(f"{_host(address)} {_reason(error)}")
        else:
            if known is None:
                print(f"No hash is published for this archive, so it cannot be verified; its SHA-256 is {_sha256(archive)}.")
            return archive
    advice = (
        "nothing was kept" if last_was_hash else "check the connection and run the command again, which continues where it stopped"
    )
    raise InputError(f"{dataset.archive}: no address gave it: {'; '.join(failures)}; {advice}.")


class ResumingDownloader:
    """A downloader for `pooch.retrieve` that keeps what arrived and continues it by an HTTP range request.

    What has arrived lies in `<folder>/<hash of the address>.part` until it is whole; a connection that is cut goes on
    at once as long as each attempt brings something, and a later call goes on from the same file.
    """

    def __init__(self, folder: Path, progress: bool):
        self.folder, self.progress = folder, progress

    def __call__(self, url: str, output_file: str, pooch=None, check_only: bool = False) -> None:
        part = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}.part"
        while True:
            before = part.stat().st_size if part.exists() else 0
            if _receive(url, part, self.progress):
                os.replace(part, output_file)
                return
            if part.stat().st_size <= before:
                raise InterruptedError("cut the connection")


def _receive(url: str, part: Path, progress: bool) -> bool:
    """Append to `part` what the server sends from there on; return whether the file is whole now."""
    import requests
    from tqdm.auto import tqdm

    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
        if answer.status_code == 416:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(start):
                return True
            part.unlink()
            return _receive(url, part, progress)
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise requests.RequestException("answered with a web page instead of the archive")
        if answer.status_code != 206:
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        _check_room(part.parent, total, start)
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=_host(url), disable=not progress)
        with part.open("ab" if start else "wb") as file, bar:
            try:
                for chunk in answer.iter_content(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            except requests.RequestException:
                return False
    return total is None or part.stat().st_size == total


def _check_room(folder: Path, total: int | None, there: int) -> None:
    """Refuse a download for which the disk has no room: the archive, of which `there` bytes are here, and its contents."""
    free = shutil.disk_usage(folder).free
    if total is not None and free < (needed := 2.2 * total - there):
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB are free, the archive and its contents need {needed / 1e9:.1f} GB; "
            "choose another folder."
        )


def _host(url: str) -> str:
    return url.split("//", 1)[-1].split("/", 1)[0]


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"answered {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "did not answer within 30 s"
    if isinstance(error, requests.ConnectionError):
        return "could not be reached"
    return str(error)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
