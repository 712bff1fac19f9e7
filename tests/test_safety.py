"""Nothing that is read runs, leads out of its folder, or is shown as anything but text."""

import ast
import csv
import re
from pathlib import Path

import pandas as pd
import pytest

from rdl_core.data.formats import read_candidates, read_qrels, write_run
from rdl_core.evaluate import per_query
from rdl_study import tables
from rdl_study.store import project_folder

ROOT = project_folder()
PATHS = [path for room in ("rdl_core", "rdl_study") for path in (ROOT / room).rglob("*.py")]
TREES = {path: ast.parse(path.read_text()) for path in PATHS}
CALLS = [
    (f"{path}:{node.lineno}", node, ast.unparse(node.func))
    for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)
]  # fmt: skip
PICKLES = {"pickle", "joblib", "dill", "shelve", "marshal", "cloudpickle"}
READERS = ("torch.load", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load")


def test_models_archives_and_arrays_are_read_in_the_safe_way_alone():
    for path, tree in TREES.items():
        nodes = list(ast.walk(tree))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        assert not PICKLES.intersection(name.partition(".")[0] for name in names), path
    for where, node, name in CALLS:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert name not in READERS, where
        assert given.get("trust_remote_code", "False") == "False", where
        assert not re.search(r"(^|\.)(extract|extractall|unpack_archive)$", name), where
        if name == "np.load":
            assert given.get("allow_pickle") == "False", where
    functions = [x for tree in TREES.values() for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)]
    loaders = [text for text in map(ast.unparse, functions) if re.search(r"\bAutoModelFor\w+", text)]
    assert len(loaders) == 3  # a student, its export, a local LLM
    assert all(re.search("use_safetensors(=|': )True", text) for text in loaders)


def test_markup_in_a_table_is_shown_as_text():
    harm = '<script>alert("x")</script>'
    shown = tables.as_html(pd.DataFrame({"query": [harm], harm: [1.0]}, index=[harm])).data
    assert shown.count("&lt;script&gt;") == 3
    assert "<script" not in shown


def test_licences_cover_the_lock_file():
    with (ROOT / "book" / "licences.csv").open() as file:
        listed = {f"{row['package']}=={row['version']}" for row in csv.DictReader(file)}
    assert listed == set((ROOT / "requirements.lock").read_text().split())


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
