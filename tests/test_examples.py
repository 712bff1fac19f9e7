"""The README's recipe runs as it stands there, and the rooms of the house open one way.

Mutations seen to fail: an argument of the recipe misspelt; `rdl_study` imported by the library.
"""

import re
import subprocess
import sys

import pandas as pd

from rdl_core.data.collections import load
from rdl_study.store import project_folder

README = (project_folder() / "README.md").read_text()
FEW = "from rdl_core import StageConfig"
FEWER_STEPS = {  # the paper's stages take days on a CPU
    '"all-MiniLM-L6-v2")': 'encoder, query_tokens=8, passage_tokens=16)',
    'folder="student")': (
        'folder="student", contrastive=StageConfig(sampler="single_relevant", loss="info_nce", '
        'targets="judgments", list_size=8, queries_per_step=4, steps=2), listwise=StageConfig('
        'sampler="top", loss="ranknet", targets="teacher", list_size=10, queries_per_step=4, steps=2))'
    ),
}


def test_the_recipe_of_the_readme_runs(tmp_path, monkeypatch, encoder_folder):
    """Three queries of the teacher's, five passages each; and the second time, nothing is trained."""
    monkeypatch.chdir(tmp_path)
    train = load("rdl/pydocs/train")
    queries, passages = train.queries["query_id"][:3], train.passages["doc_id"][:5]
    rows = [(q, d, i) for q in queries for i, d in enumerate(passages, start=1)]
    lines = [f"{q} Q0 {d} {rank} {-rank} teacher\n" for q, d, rank in rows]
    (tmp_path / "teacher.run").write_text("".join(lines))
    [recipe] = re.findall(r"```python\n(.*?)```", README, re.S)
    for text, small in FEWER_STEPS.items():
        assert text in recipe
        recipe = recipe.replace(text, small)
    names = {"encoder": encoder_folder}
    exec(f"{FEW}\n{recipe}", names)  # noqa: S102 - the README's own code
    run, n = names["run"], len(load("rdl/pydocs/test").queries)
    assert run["query_id"].nunique() == n
    again = dict(names)
    exec(f"{FEW}\n{recipe}", again)  # noqa: S102
    pd.testing.assert_frame_equal(run, again["run"])


LOADED = """
import sys
import rdl_core.cli, rdl_core.distill, rdl_core.rerank
print(*(name for name in sys.modules if name.startswith(("rdl_core", "rdl_study", "seaborn", "nbformat"))))
"""


def test_training_and_ranking_load_few_modules_and_none_of_the_study():
    """At most 35, so that a reader of the path from a run file to a training step sees an end."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=project_folder(), text=True, capture_output=True, check=True
    )
    modules = done.stdout.split()
    assert "rdl_core.distill" in modules
    assert len(modules) <= 35
    assert all(name.startswith("rdl_core") for name in modules)


def test_the_library_never_imports_the_study():
    imports = re.compile(r"^\s*(?:from|import) rdl_study\b", re.M)
    files = list((project_folder() / "rdl_core").rglob("*.py"))
    assert len(files) > 20
    assert [str(file) for file in files if imports.search(file.read_text())] == []
