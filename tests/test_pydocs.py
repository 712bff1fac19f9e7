"""The embedded collection: what a docstring becomes, and that building it runs nobody's code.

Built from two small packages, installed for the test, whose import raises; the real collection is
looked at once, for what must hold of it as a whole.
"""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

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
    + 'class Thing:\n    """Keep all things together here.\n\n    ' + about(20) + '\n    """\n\n'
    + '    def twice(self):\n        """Make it twice as much.\n\n        ' + about(20)
    + "\n\n        See Also\n        --------\n        std\n        Thing\n" + '        """\n\n'
    + function("_private", "Nobody should read this one"),
    "pkga/two.py": function("twice", "Double the number of things")
    + function("first", "Say the very same thing")
    + function("second", "say the Very same thing")
    + function("three_words", "Only three words")
    + function("typed", "axis : int or none at all"),
    "pkga/tests/test_mod.py": function("test_it", "Test the mean of values here"),
    "pkga/broken.py": "def f(:\n",
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
    for package in ("pkga", "pkgb"):
        info = tmp_path / "site" / f"{package}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
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


def grades(frames):
    return {(q, d): grade for q, d, grade in frames.qrels.itertuples(index=False)}


# --- one docstring ------------------------------------------------------------------------------

WORDS = about(15)


@pytest.mark.parametrize(
    ("docstring", "query", "passage"),
    [
        (f"Do it.\n\n{WORDS}", "Do it", WORDS),
        (f"Do it. {WORDS}", "Do it", WORDS),
        (f"Do\n    it\n\n    {WORDS}", "Do it", WORDS),
        (f"Do it. Then.\n\n{WORDS}", "Do it", f"Then. {WORDS}"),
        (f"Do :func:`~a.b` to ``x``.\n\n{WORDS} :class:`C <d.C>`", "Do a.b to x", f"{WORDS} C"),
        (f"Do it.\n\n.. versionadded:: 3\n\nNotes\n-----\n{WORDS}", "Do it", f"Notes {WORDS}"),
        (f"Do it.\n\n{'x ' * 200}", "Do it", "x " * 89 + "x"),
        (f"Read names (e.g. files, i.e. paths) twice. {WORDS}",
         "Read names (e.g. files, i.e. paths) twice", WORDS),
        (f"Read a, b etc. of it. {WORDS}", "Read a, b etc. of it", WORDS),
        (f"Read a, b etc. Then.\n\n{WORDS}", "Read a, b etc", f"Then. {WORDS}"),
    ],
)  # fmt: skip
def test_first_sentence_is_the_query_and_the_rest_the_passage(docstring, query, passage):
    entry = parse_docstring("pkg.f", docstring)
    assert (entry.query, entry.passage) == (query, passage)


@pytest.mark.parametrize(
    "docstring", ["", "Do it.", f"Do %(it)s.\n\n{WORDS}", f"{{it}}\n\n{WORDS}"]
)
def test_templates_and_single_sentences_give_nothing(docstring):
    assert parse_docstring("pkg.f", docstring) is None


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("mean", ["mean"]),
        ("mean : Average.", ["mean"]),
        ("mean: Average.", ["mean"]),
        ("pkg.mean : Average : of all.", ["pkg.mean"]),
        ("mean, std, var : Moments.", ["mean", "std", "var"]),
        ("mean, std,\nvar", ["mean", "std", "var"]),
        ("mean\nstd\n\nvar : Square.", ["mean", "std", "var"]),
        ("mean :\n    Average, std of it.\nvar :\n    Square.", ["mean", "var"]),
        ("mean\n    Average, std\nvar", ["mean", "var"]),
        ("`mean`\n`~pkg.std` : Spread.", ["mean", "pkg.std"]),
        (":func:`mean` : Average.", ["mean"]),
        (":func:`~pkg.mean`\n:class:`Std` : Spread.\n:obj:`var`", ["pkg.mean", "Std", "var"]),
        (":func:`mean`, :func:`std` : Moments.", ["mean", "std"]),
        ("mean\n:func:`std` : Spread.", ["mean", "std"]),
        ("mean : Average.\nmean : Again.", ["mean"]),
    ],
)
@pytest.mark.parametrize("after", ["", "\n\nNotes\n-----\nAnd notes."], ids=["last", "notes"])
def test_see_also(section, names, after):
    """Numpydoc allows all of these; a name on the line after a bare one once got lost."""
    entry = parse_docstring("pkg.f", f"Do it.\n\n{WORDS}\n\nSee Also\n--------\n{section}{after}")
    assert list(entry.see_also) == names
    assert entry.passage == WORDS + (" Notes And notes." if after else "")


# --- the collection -----------------------------------------------------------------------------


def test_build_reads_every_documented_object(packages):
    frames = pydocs.build()
    deep, two = "pkga.deep.mod", "pkga.two"
    asked = {
        "pkga.mean": "Return the mean of values",
        f"{deep}.Thing": "Keep all things together here",
        f"{deep}.Thing.twice": "Make it twice as much",
        f"{deep}.std": "Return the spread of values",
        f"{deep}.var": "Return the square of the spread",
        f"{two}.twice": "Double the number of things",
        "pkgb.mean": "Give the other mean of values",
        "pkgb.rare.mean": "Give a mean that few ask for",
    }
    assert dict(zip(frames.queries["query_id"], frames.queries["query"], strict=True)) == asked
    silent = {f"{two}.{name}" for name in ("first", "second", "three_words", "typed")}
    assert set(frames.passages["doc_id"]) == asked.keys() | silent
    assert frames.passages["doc_id"].is_monotonic_increasing


def test_own_passage_has_grade_3_and_those_named_grade_1(packages):
    frames = pydocs.build()
    deep = "pkga.deep.mod"
    assert grades(frames) == {
        **{(name, name): 3 for name in frames.queries["query_id"]},
        ("pkga.mean", f"{deep}.std"): 1,
        ("pkga.mean", f"{deep}.var"): 1,
        (f"{deep}.std", "pkga.mean"): 1,
        (f"{deep}.std", "pkgb.mean"): 1,  # as written: neither pkga's mean nor pkgb's other one
        (f"{deep}.Thing.twice", f"{deep}.std"): 1,
        (f"{deep}.Thing.twice", f"{deep}.Thing"): 1,
        # var names `twice`, of which there are two, `nothing`, which is not there, itself, and
        # `pkgb.std`, which pkgb does not have: pkga's is another one
    }


@pytest.mark.parametrize(
    ("query_words", "passage_words", "asked", "kept"),
    [
        (3, 20, False, True), (4, 20, True, True), (30, 20, True, True), (31, 20, False, True),
        (5, 14, False, False), (5, 15, True, True), (5, 300, True, True),
    ],
)  # fmt: skip
def test_lengths_of_queries_and_passages(packages, query_words, passage_words, asked, kept):
    (packages / "pkgb/__init__.py").write_text(
        function("f", " ".join(["query"] * query_words), about(passage_words))
    )
    frames = pydocs.build()
    assert ("pkgb.f" in set(frames.queries["query_id"])) == asked
    assert ("pkgb.f" in set(frames.passages["doc_id"])) == kept


def test_equal_passages_are_kept_once(packages):
    same = about(20)
    (packages / "pkgb/__init__.py").write_text(
        function("b", "Say something of b", same) + function("a", "Say something of a", same)
    )
    ids = set(pydocs.build().passages["doc_id"])
    assert "pkgb.a" in ids
    assert "pkgb.b" not in ids


def test_two_builds_are_equal_also_under_another_hash_seed_and_import_nothing(packages):
    here = prints(pydocs.build())
    code = f"""
from rdl_core.data import pydocs
from rdl_core.data.collections import fingerprint
pydocs.PACKAGES = {pydocs.PACKAGES!r}
pydocs.sysconfig.get_path = lambda _: {str(packages.parent / "stdlib")!r}
print([fingerprint(frame) for frame in pydocs.build()])
"""
    path = os.pathsep.join([str(packages), str(Path(pydocs.__file__).parents[2])])
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": path},
    )  # fmt: skip
    assert there.stdout.strip() == str(here) == str(prints(pydocs.build()))
    assert not {name for name in sys.modules if name.partition(".")[0] in ("pkga", "pkgb")}
    with pytest.raises(RuntimeError, match="imported"):
        __import__("pkga")


def test_fingerprint_changes_with_any_text(packages):
    before = prints(pydocs.build())
    path = packages / "pkga/two.py"
    path.write_text(path.read_text().replace("Double the number", "Double the count"))
    queries, passages, qrels = prints(pydocs.build())
    assert (queries != before[0], passages == before[1], qrels == before[2]) == (True,) * 3
    path.write_text(path.read_text().replace("word word", "word other", 1))
    assert prints(pydocs.build())[1] != passages


def test_load_builds_once_per_version(packages, monkeypatch):
    built = prints(pydocs.load())
    cache = Path(os.environ["RDL_CACHE"])
    (folder,) = cache.iterdir()
    real = pydocs.build
    monkeypatch.setattr(pydocs, "build", lambda: pytest.fail("built again"))
    pydocs.load.cache_clear()
    assert prints(pydocs.load()) == built
    metadata = packages / "pkgb-1.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1", "Version: 2"))
    monkeypatch.setattr(pydocs, "build", real)
    pydocs.load.cache_clear()
    pydocs.load()
    assert len(set(cache.iterdir()) - {folder}) == 1


# --- the real one -------------------------------------------------------------------------------


def test_real_collection_holds_together():
    queries, passages, qrels = pydocs.load()
    assert len(queries) > 5000
    for column in (queries["query_id"], queries["query"].str.lower(), *map(passages.get, passages)):
        assert column.is_unique
    assert not qrels.duplicated(["query_id", "doc_id"]).any()
    assert set(qrels["query_id"]) == set(queries["query_id"]) <= set(passages["doc_id"])
    assert set(qrels["doc_id"]) <= set(passages["doc_id"])
    own = qrels["query_id"] == qrels["doc_id"]
    assert own.sum() == len(queries)
    assert qrels["relevance"].tolist() == own.map({True: 3, False: 1}).tolist()
    assert set(passages["doc_id"].str.partition(".")[0]) > {*pydocs.PACKAGES, "statistics", "json"}


def test_splits_are_disjoint_cover_all_and_keep_their_shares():
    queries = pydocs.load().queries
    shares = queries["split"].value_counts(normalize=True).to_dict()
    assert shares == pytest.approx(SPLITS, abs=0.02)
    assert queries["split"].tolist() == [split_of(name) for name in queries["query_id"]]
    drawn = [split_of(f"name{i}") for i in range(4000)]
    assert {s: drawn.count(s) / 4000 for s in SPLITS} == pytest.approx(SPLITS, abs=0.02)


def test_adding_a_package_moves_no_query(packages, monkeypatch):
    both = pydocs.build().queries.set_index("query_id")["split"]
    monkeypatch.setattr(pydocs, "PACKAGES", ("pkga",))
    alone = pydocs.build().queries.set_index("query_id")["split"]
    assert 0 < len(alone) < len(both)
    assert both[alone.index].equals(alone)
