"""Nothing that is read runs, leads out of its folder, or is shown as anything but text."""

import ast
import csv
import re
from pathlib import Path

import pandas as pd
import pytest

from rdl_study import tables
from rdl_study.store import project_folder

ROOT = project_folder()
TREES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "rdl_core").rglob("*.py"))}
CALLS = [
    (path, node, ast.unparse(node.func))
    for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)
]  # fmt: skip


def given(node, name):
    return next((ast.unparse(k.value) for k in node.keywords if k.arg == name), None)


def test_there_are_calls_to_look_at():
    assert sum(name.endswith("from_pretrained") for _, _, name in CALLS) > 8


def test_no_pickle_is_read_anywhere():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            wrong = {"pickle", "joblib", "dill", "shelve", "marshal", "cloudpickle"}
            assert not wrong.intersection(n.partition(".")[0] for n in names if n), path
    for path, node, name in CALLS:
        assert name not in ("torch.load", "pd.read_pickle", "pandas.read_pickle", "yaml.load"), path
        if name == "np.load":
            assert given(node, "allow_pickle") == "False", path


def test_code_of_models_is_never_run():
    for path, node, _ in CALLS:
        assert given(node, "trust_remote_code") in (None, "False"), path


def test_weights_are_read_from_safetensors_alone():
    for path, node, name in CALLS:
        if name.startswith("AutoModel") and name.endswith(".from_pretrained"):
            assert given(node, "use_safetensors") == "True", f"{path}:{node.lineno}"


def test_no_archive_chooses_where_its_files_go():
    """Members are read by their names one by one; none is written to the place that it asks for."""
    for path, node, name in CALLS:
        found = re.search(r"(^|\.)(extract|extractall|unpack_archive)$", name)
        assert not found, f"{path}:{node.lineno}"


def test_markup_in_a_table_is_shown_as_text():
    harm = '<script>alert("x")</script>'
    table = pd.DataFrame({"query": [harm], harm: [1.0]}, index=[harm])
    shown = tables.as_html(table).data
    assert shown.count("&lt;script&gt;") == 3
    assert "<script" not in shown


def test_licences_cover_the_lock_file():
    with (ROOT / "book" / "licences.csv").open() as file:
        listed = {f"{row['package']}=={row['version']}" for row in csv.DictReader(file)}
    assert listed == set(Path(ROOT, "requirements.lock").read_text().split())


@pytest.mark.parametrize("query_id", ["../../x", "/etc/x", "a\\b"])
def test_an_id_is_never_a_path(query_id, tmp_path, monkeypatch):
    """A run and judgments of such ids are read, measured and written; no file is named by them."""
    from rdl_core.data.formats import read_candidates, read_qrels, write_run
    from rdl_core.evaluate import per_query

    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    Path("first.run").write_text(f"{query_id} Q0 ../../d 1 2.5 t\n{query_id} Q0 e 2 1.5 t\n")
    Path("qrels").write_text(f"{query_id} 0 ../../d 1\n")
    frame = read_candidates("first.run")
    write_run(frame, "again.run")
    assert per_query(read_qrels("qrels"), frame)["nDCG@10"].tolist() == [1.0]
    assert {p.name for p in tmp_path.rglob("*")} == {"a", "b", "first.run", "qrels", "again.run"}
