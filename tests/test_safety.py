"""Nothing that is read runs or leads out of its folder."""

import ast
import re
from pathlib import Path

import pytest

from rdl_core.data.formats import read_candidates, read_qrels, write_run
from rdl_core.evaluate import per_query
from rdl_study.store import project_folder

PICKLES = {"pickle", "joblib", "dill", "shelve", "marshal", "cloudpickle"}
READERS = ("torch.load", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load")


def test_models_archives_and_arrays_are_read_in_the_safe_way_alone():
    rooms = [project_folder() / room for room in ("rdl_core", "rdl_tools", "rdl_study")]
    paths = [path for room in rooms for path in room.rglob("*.py")]
    loaders = []
    for path, node in ((x, node) for x in paths for node in ast.walk(ast.parse(x.read_text()))):
        where = f"{path}:{getattr(node, 'lineno', '')}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            assert not PICKLES.intersection(name.partition(".")[0] for name in names), where
        elif isinstance(node, ast.FunctionDef):
            loaders += [x for x in [ast.unparse(node)] if re.search(r"\bAutoModelFor\w+", x)]
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {x.arg: ast.unparse(x.value) for x in node.keywords}
            assert name not in READERS, where
            assert given.get("trust_remote_code", "False") == "False", where
            assert not re.search(r"(^|\.)(extract|extractall|unpack_archive)$", name), where
            assert name != "np.load" or given.get("allow_pickle") == "False", where
    assert len(loaders) == 4  # a student, its export, a local LLM; what is made of a GGUF file
    assert all(re.search("use_safetensors(=|': )True|gguf_file", text) for text in loaders)


@pytest.mark.parametrize("query_id", ["../../x", "/etc/x", "a\\b"])
def test_an_id_is_never_a_path(query_id, tmp_path, monkeypatch):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    Path("first.run").write_text(f"{query_id} Q0 ../../d 1 2.5 t\n{query_id} Q0 e 2 1.5 t\n")
    Path("qrels").write_text(f"{query_id} 0 ../../d 1\n")
    frame = read_candidates("first.run")
    write_run(frame, "again.run")
    assert per_query(read_qrels("qrels"), frame)["nDCG@10"].tolist() == [1.0]
    assert {p.name for p in tmp_path.rglob("*")} == {"a", "b", "first.run", "qrels", "again.run"}
