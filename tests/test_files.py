"""Files and folders: whole or not there, settings that are named, work that resumes in one way."""

import os
import signal
import threading
import time
from itertools import pairwise
from string import ascii_lowercase

import pytest

from rdl_core.config import StageConfig
from rdl_core.files import content_hash, read_json, read_settings, resumable

IDENTITY = {"config": {"a": 1, "b": [1, 2]}}


def squares(folder, *, dies_at=None, **own):
    """Work of five steps, each a line of a file; gives the manifest and the steps that were done."""
    done, path = [], folder / "squares.txt"
    with resumable(folder, IDENTITY, **own) as work:
        if work.manifest is None:
            for i in range(len(path.read_text().splitlines()) if path.exists() else 0, 5):
                if i == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                with path.open("a") as file:
                    file.write(f"{i * i}\n")
                done.append(i)
            work.finish(n=5)
    return work.manifest, done


def test_killed_work_goes_on_and_finished_work_is_given(tmp_path):
    if not (child := os.fork()):
        squares(tmp_path, dies_at=3)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "manifest.json").exists()
    manifest, done = squares(tmp_path)
    assert done == [3, 4]
    assert (manifest["config"], manifest["n"]) == (IDENTITY["config"], 5)
    assert manifest["files"] == {"squares.txt": content_hash(tmp_path / "squares.txt")}
    assert {"finished", "wall_s", "versions", "python"} < manifest.keys()
    assert {"torch", "openai"} < manifest["versions"].keys()
    assert squares(tmp_path) == (manifest, [])


@pytest.mark.parametrize(("name", "text", "says"), [
    ("x", "x", "holds x: expected a new or empty folder"),
    ("config.json", '{"config": {"a": 2, "b": [1, 3]}}',
     "config.a was 2, is 1; config.b.2 was 3, is 2.*: name another folder"),
    ("squares.txt", "0", "squares.txt changed since it was written: restore the file"),
    ("config.json", "{", "config.json is damaged: expected a JSON object"),
    ("manifest.json", "y", "manifest.json is damaged: expected a JSON object"),
])  # fmt: skip
def test_a_users_folder_is_refused_and_a_stores_is_computed_again(tmp_path, caplog, name, text, says):
    if name != "x":
        squares(tmp_path)
    (tmp_path / name).write_text(text)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=says):
        squares(tmp_path)
    assert before == {path: path.read_bytes() for path in before}
    assert squares(tmp_path, shared=True)[1] == list(range(5))
    assert "computing it again" in caplog.text
    assert not (tmp_path / "x").exists()


def test_an_identity_may_change_until_something_is_computed(tmp_path):
    """A mistyped option must not cost a new folder; answers brought along count as nothing."""
    (tmp_path / "answers.jsonl").write_text("")
    for identity in ({"config": 1}, IDENTITY):
        with resumable(tmp_path, identity, brought="answers.jsonl") as work:
            assert work.manifest is None
    assert read_json(tmp_path / "config.json") == IDENTITY


def test_two_cannot_work_in_a_users_folder_and_wait_in_a_shared_one(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(squares(tmp_path, shared=True)))
    with resumable(tmp_path, IDENTITY) as work:
        with pytest.raises(ValueError, match="another process works in this folder"):
            squares(tmp_path)
        thread.start()
        time.sleep(0.3)
        assert not results
        manifest = work.finish()
    thread.join()
    assert results == [(manifest, [])]  # it was given what the first one finished


YAML = {
    b"a: [": "is not valid YAML: .* line 1", b"!!python/name:os.system": "is not valid YAML",
    b"- 1": "expected lines of name: value", b"steps_: 4": "\n  steps_: unknown key",
    b"steps: 0\nloss: 3": ":\n  loss: .* string, got 3\n  steps: .*equal to 1, got 0",
    **dict.fromkeys([  # what means harm
        b"a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise(ascii_lowercase)).encode(),
        b"&a [*a]", b"[" * 5000, b"seed: [" + b"9" * 5000 + b"]", b"a: 1\nb: \x00", b"? [a, b]\n: c",
        b"!!python/object/apply:os.system [ls]",
    ], ""),
}  # fmt: skip
DAMAGED = dict.fromkeys([b"{", b"[]", b"\xff", b"[" * 10**5], "is damaged: expected a JSON object")


@pytest.mark.parametrize(("content", "says"), [*YAML.items(), *DAMAGED.items()], ids=len)
def test_files_that_do_not_fit_are_named(tmp_path, content, says):
    path = tmp_path / "x.file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"x.file.*{says}") as refused:
        read_json(path) if content in DAMAGED else read_settings(StageConfig, path)
    assert len(str(refused.value)) < 4000
