"""Downloads against a server in this process: whole, changed, cut, moved, and archives that try to escape."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from nsw import InputError
from nsw.scenes import download
from nsw.scenes.download import DATASETS, Dataset, fetch, get
from nsw.scenes.unpack import unpack


def zipped(members: dict[str, bytes], mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()


GOOD = {"set/a.txt": b"alpha", "set/deep/b.bin": np.random.default_rng(0).bytes(300_000), "__MACOSX/x": b"clutter"}
BODY = zipped(GOOD)


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`: name -> content; names in `server.cuts` break off once after so many bytes."""

    def do_GET(self):
        server, name = self.server, self.path.lstrip("/")
        server.asked.append((name, self.headers.get("Range")))
        if name not in server.files:
            self.send_error(404)
            return
        body, start = server.files[name], 0
        asked = self.headers.get("Range")
        if asked and name not in server.no_ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cuts = server.cuts.get(name, [])
        end = cuts.pop(0) if cuts else len(body)
        self.wfile.write(body[start:end])
        if end < len(body):
            self.wfile.flush()
            self.connection.close()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.cuts, server.asked, server.no_ranges, server.kind = {"good.zip": BODY}, {}, [], set(), "application/zip"
    server.address = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def dataset(server, *names: str, sha256: str | None = "right") -> Dataset:
    sha256 = hashlib.sha256(BODY).hexdigest() if sha256 == "right" else sha256
    return Dataset("A set", "CC0, for the test", tuple(server.address + name for name in names), sha256, "set.zip")


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_download_shows_its_licence_and_is_unpacked(server, tmp_path, capsys):
    folder = fetch("set", dataset(server, "good.zip"), tmp_path, progress=False)
    assert folder == tmp_path / "set" and listing(tmp_path) == ["set/set/a.txt", "set/set/deep/b.bin"]
    assert (folder / "set" / "a.txt").read_bytes() == b"alpha"
    shown = capsys.readouterr().out
    assert "CC0, for the test" in shown and str(folder) in shown
    server.asked.clear()
    assert fetch("set", dataset(server, "good.zip"), tmp_path, progress=False) == folder
    assert server.asked == [] and "already" in capsys.readouterr().out


def test_a_wrong_hash_is_refused_and_the_file_removed(server, tmp_path):
    with pytest.raises(InputError) as caught:
        fetch("set", dataset(server, "good.zip", sha256="0" * 64), tmp_path, progress=False)
    assert "SHA-256 differs" in str(caught.value) and "nothing was kept" in str(caught.value) and "\n" not in str(caught.value)
    assert listing(tmp_path) == []


def test_without_a_published_hash_the_computed_one_is_shown(server, tmp_path, capsys):
    fetch("set", dataset(server, "good.zip", sha256=None), tmp_path, progress=False)
    shown = capsys.readouterr().out
    assert "cannot be verified" in shown and hashlib.sha256(BODY).hexdigest() in shown


def test_a_cut_connection_is_continued_where_it_stopped(server, tmp_path):
    server.cuts["good.zip"] = [100_000, 200_000]
    fetch("set", dataset(server, "good.zip"), tmp_path, progress=False)
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for _, asked in server.asked[1:]]
    assert server.asked[0][1] is None and len(starts) == 2
    assert 60_000 < starts[0] <= 100_000 and 160_000 < starts[1] <= 200_000
    assert len(listing(tmp_path)) == 2


def test_a_later_call_continues_what_an_earlier_one_left(server, tmp_path):
    server.cuts["good.zip"] = [150_000, 150_000]  # the second attempt brings nothing, so the call gives up
    with pytest.raises(InputError, match="continues where it stopped"):
        fetch("set", dataset(server, "good.zip"), tmp_path, progress=False)
    (part,) = listing(tmp_path)
    kept = (tmp_path / part).stat().st_size
    assert part.endswith(".part") and 110_000 < kept <= 150_000
    server.asked.clear()
    fetch("set", dataset(server, "good.zip"), tmp_path, progress=False)
    assert server.asked == [("good.zip", f"bytes={kept}-")] and len(listing(tmp_path)) == 2


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.no_ranges.add("good.zip")
    server.cuts["good.zip"] = [100_000]
    fetch("set", dataset(server, "good.zip"), tmp_path, progress=False)
    assert len(listing(tmp_path)) == 2


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    address = server.address + "good.zip"
    (tmp_path / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}.part").write_bytes(BODY)
    fetch("set", dataset(server, "good.zip"), tmp_path, progress=False)
    assert len(listing(tmp_path)) == 2


def test_the_second_address_is_tried(server, tmp_path):
    fetch("set", dataset(server, "gone.zip", "good.zip"), tmp_path, progress=False)
    assert [name for name, _ in server.asked] == ["gone.zip", "good.zip"] and len(listing(tmp_path)) == 2


def test_no_address_answers(server, tmp_path):
    broken = replace(dataset(server, "gone.zip"), addresses=(server.address + "gone.zip", "http://127.0.0.1:1/x.zip"))
    with pytest.raises(InputError) as caught:
        fetch("set", broken, tmp_path, progress=False)
    assert "answered 404" in str(caught.value) and "could not be reached" in str(caught.value) and "\n" not in str(caught.value)


def test_a_web_page_instead_of_the_archive(server, tmp_path):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(InputError, match="web page instead"):
        fetch("set", dataset(server, "good.zip"), tmp_path, progress=False)


ESCAPES = {
    "up": {"ok.txt": b"1", "../evil.txt": b"2"},
    "up inside": {"a/../../evil.txt": b"2"},
    "absolute": {"/tmp_evil/evil.txt": b"2"},
    "Windows drive": {"C:\\evil.txt": b"2"},
    "Windows up": {"a\\..\\..\\evil.txt": b"2"},
    "Windows share": {"\\\\server\\share\\evil.txt": b"2"},
}


@pytest.mark.parametrize("name", ESCAPES)
def test_archives_that_reach_outside_are_refused_before_anything_is_written(server, tmp_path, name):
    server.files["evil.zip"] = zipped(ESCAPES[name])
    sha = hashlib.sha256(server.files["evil.zip"]).hexdigest()
    root = tmp_path / "root"
    with pytest.raises(InputError, match="refused.*outside of its folder"):
        fetch("set", dataset(server, "evil.zip", sha256=sha), root, progress=False)
    assert listing(tmp_path) == ["root/set.zip"] and not (root / "set").exists()


def test_links_in_zip_and_tar_are_refused(tmp_path):
    (tmp_path / "link.zip").write_bytes(zipped({"link": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777))
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("link/evil"), io.BytesIO())
    with tarfile.open(tmp_path / "up.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../evil"), io.BytesIO())
    for name in ("link.zip", "link.tar", "up.tar.gz"):
        with pytest.raises(InputError, match="refused"):
            unpack(tmp_path / name, tmp_path / "out")
    assert listing(tmp_path) == ["link.tar", "link.zip", "up.tar.gz"] and not (tmp_path / "out").exists()


def test_tar_is_unpacked(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("x/y.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert (tmp_path / "out" / "x" / "y.txt").read_bytes() == b"abc"


@pytest.mark.parametrize("content", [b"", b"junk" * 100, BODY[:200_000], BODY[:-4] + b"\0\0\0\0", b"\x1f\x8b" + bytes(100)])
def test_damaged_archives(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    try:
        unpack(tmp_path / "a.zip", tmp_path / "out")
    except InputError as error:
        assert "a.zip" in str(error) and "download it again" in str(error) and "\n" not in str(error)
        assert listing(tmp_path) == ["a.zip"] and not (tmp_path / "out").exists()
    else:
        assert (tmp_path / "out" / "set" / "deep" / "b.bin").read_bytes() == GOOD["set/deep/b.bin"]


def test_changed_bytes_inside_an_archive_are_noticed(tmp_path):
    body = bytearray(BODY)
    body[len(body) // 2] ^= 255
    (tmp_path / "a.zip").write_bytes(bytes(body))
    with pytest.raises(InputError, match="damaged"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert listing(tmp_path) == ["a.zip"]


def test_full_disk_and_unwritable_folder(server, tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9, len(BODY))
    with monkeypatch.context() as little:
        little.setattr(download.shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(InputError, match="GB are free.*another folder"):
            fetch("set", dataset(server, "good.zip"), tmp_path, progress=False)
    assert listing(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        fetch("set", dataset(server, "good.zip"), tmp_path / "file", progress=False)


def test_unknown_data_set_names_the_known_ones():
    with pytest.raises(InputError) as caught:
        get("nerf-syntetic")
    assert all(name in str(caught.value) for name in DATASETS)


def test_records_are_complete():
    for name, record in DATASETS.items():
        assert record.title and record.licence, name
        assert len(record.addresses) >= 2 and all(address.startswith("https://") for address in record.addresses), name
        assert record.sha256 is None or (len(record.sha256) == 64 and int(record.sha256, 16)), name
        assert record.archive.endswith((".zip", ".tar", ".tar.gz")), name


def test_get_uses_the_downloads_folder(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NSW_DOWNLOADS", str(tmp_path / "kept"))
    monkeypatch.setattr(download, "DATASETS", {"set": dataset(server, "good.zip")})
    assert get("set", progress=False) == tmp_path / "kept" / "set"
    assert get("set", folder=tmp_path / "here", progress=False) == tmp_path / "here" / "set"
