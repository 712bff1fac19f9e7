"""Files and folders: whole or not there, settings that are named, work that resumes in one way."""

import os
import signal
import threading
import time

import pytest

from rdl_core.config import StageConfig, WindowConfig
from rdl_core.files import content_hash, partial, read_json, read_settings, resumable, write_json

IDENTITY = {"config": {"a": 1, "b": [1, 2]}}


def squares(folder, identity=IDENTITY, *, n=5, dies_at=None, **own):
    """Work of five steps, each a line of a file; gives the manifest and the steps that were done."""
    done = []
    with resumable(folder, identity, **own) as work:
        if work.manifest is None:
            path = folder / "squares.txt"
            begun = len(path.read_text().splitlines()) if path.exists() else 0
            for i in range(begun, n):
                if i == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                with path.open("a") as file:
                    file.write(f"{i * i}\n")
                done.append(i)
            work.finish(n=n)
    return work.manifest, done


def test_killed_work_goes_on_and_finished_work_is_given(tmp_path):
    child = os.fork()
    if not child:
        squares(tmp_path, dies_at=3)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "manifest.json").exists()
    manifest, done = squares(tmp_path)
    assert done == [3, 4]
    assert manifest["config"] == IDENTITY["config"]
    assert manifest["files"] == {"squares.txt": content_hash(tmp_path / "squares.txt")}
    assert manifest["n"] == 5
    assert {"finished", "wall_s", "versions", "python"} < manifest.keys()
    assert squares(tmp_path) == (manifest, [])


def _other(folder):
    squares(folder, {"config": {"a": 2, "b": [1, 3]}})


def _changed(folder):
    squares(folder)
    (folder / "squares.txt").write_text("0\n")


def _cut(folder):
    squares(folder)
    os.truncate(folder / "config.json", 5)


REFUSED = {
    "something else": (lambda f: (f / "x").write_text("x"), "holds x: expected a new or empty folder"),
    "other identity": (_other, "config.a was 2, is 1; config.b.2 was 3, is 2.*: name another folder"),
    "changed file": (_changed, "squares.txt changed since it was written: restore the file"),
    "cut record": (_cut, "config.json is damaged: expected a JSON object"),
}


@pytest.mark.parametrize(("spoil", "says"), REFUSED.values(), ids=REFUSED)
def test_a_users_folder_is_refused_and_a_stores_is_computed_again(tmp_path, caplog, spoil, says):
    spoil(tmp_path)
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
    seconds = []
    with resumable(tmp_path, IDENTITY), pytest.raises(ValueError, match="another process works in this folder"):
        squares(tmp_path)

    def waits():
        started = time.monotonic()
        squares(tmp_path, shared=True)
        seconds.append(time.monotonic() - started)

    thread = threading.Thread(target=waits)
    with resumable(tmp_path, IDENTITY) as work:
        thread.start()
        time.sleep(0.3)
        work.finish()
    thread.join()
    assert seconds[0] > 0.25
    assert not (tmp_path / "squares.txt").exists()  # it was given what the first one finished


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(InterruptedError), partial(tmp_path / "x.json") as beside:
        beside.write_text("{")
        raise InterruptedError
    assert read_json(tmp_path / "x.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


YAML = {
    "no YAML": ("a: [", "is not valid YAML: .* line 1"), "a list": ("- 1", "expected lines of name: value"),
    "code": ("!!python/object/apply:os.system [ls]", "is not valid YAML"),
    "unknown": ("list_sise: 4", "does not fit:\n  list_sise: unknown key"),
    "several": ("steps: 0\nloss: 3", ":\n  loss: .* string, got 3\n  steps: .*equal to 1, got 0"),
    "of two fields": ("patience: 3", "\n  patience: needs dev_every, got patience 3 alone"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), YAML.values(), ids=YAML)
def test_settings_that_do_not_fit_are_named_with_their_file(tmp_path, text, says):
    path = tmp_path / "stage.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"stage.yaml.*{says}"):
        read_settings(StageConfig, path)


def test_numbers_may_be_written_as_yaml_takes_them_for_words(tmp_path):
    (tmp_path / "stage.yaml").write_text("learning_rate: 1e-3\nloss_options: {weighting: uniform}\n")
    stage = read_settings(StageConfig, tmp_path / "stage.yaml")
    assert stage == StageConfig(learning_rate=0.001, loss_options={"weighting": "uniform"})
    (tmp_path / "windows.yaml").write_text("window_size: 4\nstride: 2\n")
    assert read_settings(WindowConfig, tmp_path / "windows.yaml").stride == 2


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 10**5], ids=["cut", "list", "bytes", "deep"])
def test_json_that_is_no_object_is_called_damaged(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match="x.json is damaged: expected a JSON object"):
        read_json(tmp_path / "x.json")
