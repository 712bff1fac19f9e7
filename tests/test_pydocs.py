"""The embedded collection: what a docstring becomes, and that building it runs nobody's code.

Built from two small packages whose import raises; the real one is looked at once, as a whole.
"""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from textwrap import indent

import pandas as pd
import pytest

from rdl_core.data import pydocs
from rdl_core.data.collections import fingerprint
from rdl_core.data.pydocs import SPLITS, parse_docstring, split_of

_number = count()


def about(n_words):
    """A passage of that many words, another one each time."""
    return " ".join(["word"] * (n_words - 1) + [f"p{next(_number)}"])


def function(name, query, passage=None, see_also=""):
    section = f"\n\n    See Also\n    --------\n    {see_also}" if see_also else ""
    return f'def {name}():\n    """{query}.\n\n    {passage or about(20)}{section}\n    """\n\n\n'


RAISES = "raise RuntimeError('imported')\n\n\n"
TREE = {
    "pkga/__init__.py": RAISES + function("mean", "Return the mean of values", see_also="std, var"),
    "pkga/deep/mod.py": RAISES
    + function("std", "Return the spread of values", see_also="mean : first\n    pkgb.mean : other")
    + function("var", "Return the square of the spread", see_also="twice, nothing, var, pkgb.std")
    + f'class Thing:\n    """Keep all things together here.\n\n    {about(20)}\n    """\n\n'
    + indent(function("twice", "Make it twice as much", see_also="std\n    Thing"), "    ")
    + function("_private", "Nobody should read this one"),
    "pkga/two.py": function("twice", "Double the number of things")
    + function("first", "Say the very same thing") + function("second", "say the Very same thing")
    + function("three_words", "Only three words") + function("typed", "axis : int or none at all"),
    "pkga/tests/test_mod.py": function("test_it", "Test the mean of values here"),
    "pkga/broken.py": "def f(:\n",
    **{f"{x}-1.dist-info/METADATA": f"Name: {x}\nVersion: 1\n" for x in ("pkga", "pkgb")},
    "pkgb/__init__.py": RAISES + function("mean", "Give the other mean of values"),
    "pkgb/rare.py": function("mean", "Give a mean that few ask for"),
}  # fmt: skip


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Install the two packages instead of the real ones, and no standard library."""
    for name, text in TREE.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "stdlib").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("RDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pydocs, "PACKAGES", ("pkga", "pkgb"))
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda _: str(tmp_path / "stdlib"))
    pydocs.load.cache_clear()
    yield tmp_path / "site"
    pydocs.load.cache_clear()


def prints(frames):
    return [fingerprint(frame) for frame in frames]


WORDS = about(15)


@pytest.mark.parametrize(("docstring", "found"), [
    (f"Do it. {WORDS}", ("Do it", WORDS)), (f"Do\n    it\n\n    {WORDS}", ("Do it", WORDS)),
    (f"Do it. Then.\n\n{WORDS}", ("Do it", f"Then. {WORDS}")),
    (f"Do :func:`~a.b` to ``x``.\n\n{WORDS} :class:`C <d.C>`", ("Do a.b to x", f"{WORDS} C")),
    (f"Do it.\n\n.. versionadded:: 3\n\nNotes\n-----\n{WORDS}", ("Do it", f"Notes {WORDS}")),
    (f"Do it.\n\n{'x ' * 200}", ("Do it", "x " * 89 + "x")),
    (f"Read names (e.g. files, i.e. paths) twice. {WORDS}",
     ("Read names (e.g. files, i.e. paths) twice", WORDS)),
    (f"Read a, b etc. of it. {WORDS}", ("Read a, b etc. of it", WORDS)),
    (f"Read a, b etc. Then.\n\n{WORDS}", ("Read a, b etc", f"Then. {WORDS}")),
    ("", None), ("Do it.", None),
    (f"Do %(it)s.\n\n{WORDS}", None), (f"{{it}}\n\n{WORDS}", None),
])  # fmt: skip
def test_first_sentence_is_the_query_and_the_rest_the_passage(docstring, found):
    """Templates and single sentences give nothing."""
    entry = parse_docstring("pkg.f", docstring)
    assert (entry and (entry.query, entry.passage)) == found


@pytest.mark.parametrize(("section", "names"), [
    ("mean", "mean"), ("mean : Average.", "mean"), ("mean: Average.", "mean"),
    ("pkg.mean : Average : of all.", "pkg.mean"), ("mean, std, var : Moments.", "mean std var"),
    ("mean, std,\nvar", "mean std var"), ("mean\nstd\n\nvar : Square.", "mean std var"),
    ("mean :\n    Average, std of it.\nvar :\n    Square.", "mean var"),
    ("mean\n    Average, std\nvar", "mean var"), ("`mean`\n`~pkg.std` : Spread.", "mean pkg.std"),
    (":func:`~pkg.mean`\n:class:`Std` : Spread.\n:obj:`var`", "pkg.mean Std var"),
    (":func:`mean`, :func:`std` : Moments.", "mean std"), (":func:`mean` : Average.", "mean"),
    ("mean\n:func:`std` : Spread.", "mean std"), ("mean : Average.\nmean : Again.", "mean"),
])  # fmt: skip
@pytest.mark.parametrize("after", ["", "\n\nNotes\n-----\nAnd notes."], ids=["last", "notes"])
def test_see_also(section, names, after):
    """Numpydoc allows all of these; a name on the line after a bare one once got lost."""
    entry = parse_docstring("pkg.f", f"Do it.\n\n{WORDS}\n\nSee Also\n--------\n{section}{after}")
    assert list(entry.see_also) == names.split()
    assert entry.passage == WORDS + (" Notes And notes." if after else "")


def test_build_reads_every_documented_object(packages):
    """A query's own passage has grade 3, those that it names have grade 1."""
    queries, passages, qrels = pydocs.build()
    deep, two = "pkga.deep.mod", "pkga.two"
    asked = {
        "pkga.mean": "Return the mean of values", f"{two}.twice": "Double the number of things",
        f"{deep}.Thing": "Keep all things together here", f"{deep}.std": "Return the spread of values",
        f"{deep}.Thing.twice": "Make it twice as much",
        f"{deep}.var": "Return the square of the spread",
        "pkgb.mean": "Give the other mean of values", "pkgb.rare.mean": "Give a mean that few ask for",
    }  # fmt: skip
    assert dict(zip(queries["query_id"], queries["query"], strict=True)) == asked
    silent = {f"{two}.{name}" for name in ("first", "second", "three_words", "typed")}
    assert passages["doc_id"].tolist() == sorted(asked.keys() | silent)
    named = [
        ("pkga.mean", f"{deep}.std"), ("pkga.mean", f"{deep}.var"), (f"{deep}.std", "pkga.mean"),
        (f"{deep}.std", "pkgb.mean"),  # as written: neither pkga's mean nor pkgb's other one
        (f"{deep}.Thing.twice", f"{deep}.std"), (f"{deep}.Thing.twice", f"{deep}.Thing"),
        # var names `twice`, of which there are two, `nothing`, which is not there, itself, and
        # `pkgb.std`, which pkgb does not have: pkga's is another one
    ]  # fmt: skip
    grades = {(name, name): 3 for name in asked} | dict.fromkeys(named, 1)
    assert {(q, d): grade for q, d, grade in qrels.itertuples(index=False)} == grades


@pytest.mark.parametrize(("query_words", "passage_words", "n_queries", "n_passages"), [
    (3, 20, 0, 1), (4, 20, 1, 1), (30, 20, 1, 1), (31, 20, 0, 1), (5, 14, 0, 0), (5, 15, 1, 1),
    (5, 300, 1, 1),
])  # fmt: skip
def test_lengths_and_equal_passages(packages, query_words, passage_words, n_queries, n_passages):
    """Of two passages that are the same the first name's counts."""
    query, passage = "query " * (query_words - 1), about(passage_words)
    text = function("b", f"{query}b", passage) + function("a", f"{query}a", passage)
    (packages / "pkgb/__init__.py").write_text(text)
    queries, passages, _ = pydocs.build()
    for ids, n in ((queries["query_id"], n_queries), (passages["doc_id"], n_passages)):
        assert [x for x in ids if x in ("pkgb.a", "pkgb.b")] == ["pkgb.a"] * n


def test_a_build_is_the_same_under_another_hash_seed_and_imports_nothing(packages):
    code = f"""
from rdl_core.data import pydocs
from rdl_core.data.collections import fingerprint
pydocs.PACKAGES = {pydocs.PACKAGES!r}
pydocs.sysconfig.get_path = lambda _: {str(packages.parent / "stdlib")!r}
print([fingerprint(frame) for frame in pydocs.build()])
"""
    path = os.pathsep.join([str(packages), str(Path(pydocs.__file__).parents[2])])
    other = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": path}
    there = subprocess.check_output([sys.executable, "-c", code], text=True, env=other)
    assert there.strip() == str(prints(pydocs.build()))
    assert not {name for name in sys.modules if name.partition(".")[0] in ("pkga", "pkgb")}
    with pytest.raises(RuntimeError, match="imported"):
        __import__("pkga")


def test_load_builds_once_per_version(packages, monkeypatch):
    build, calls = pydocs.build, []
    monkeypatch.setattr(pydocs, "build", lambda: calls.append(1) or build())
    metadata = packages / "pkgb-1.dist-info/METADATA"
    for version, n_calls in (("1", 1), ("1", 1), ("2", 2)):
        metadata.write_text(metadata.read_text().replace("Version: 1", f"Version: {version}"))
        pydocs.load.cache_clear()
        assert prints(pydocs.load()) == prints(build())
        assert len(calls) == n_calls == len(list(Path(os.environ["RDL_CACHE"]).iterdir()))


def test_real_collection_holds_together():
    queries, passages, qrels = pydocs.load()
    assert len(queries) > 5000
    for column in (queries["query_id"], queries["query"].str.lower(), *map(passages.get, passages)):
        assert column.is_unique
    assert not qrels.duplicated(["query_id", "doc_id"]).any()
    assert set(qrels["doc_id"]) <= set(passages["doc_id"])
    own = qrels["query_id"] == qrels["doc_id"]
    assert qrels.loc[own, "query_id"].tolist() == queries["query_id"].tolist()
    assert qrels["relevance"].tolist() == own.map({True: 3, False: 1}).tolist()
    assert set(passages["doc_id"].str.partition(".")[0]) > {*pydocs.PACKAGES, "statistics", "json"}
    assert queries["split"].tolist() == [split_of(name) for name in queries["query_id"]]
    for drawn in (queries["split"], pd.Series([split_of(f"name{i}") for i in range(4000)])):
        assert drawn.value_counts(normalize=True).to_dict() == pytest.approx(SPLITS, abs=0.02)
