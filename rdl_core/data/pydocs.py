"""The embedded collection: a search task made from docstrings, on any machine, without a network.

A docstring's first sentence, which says what a function is for, is a query; the remainder (up to 90
words) is a passage. A query's own passage has grade 3, those that its "See Also" section names grade 1.
Sources are read with `ast`, not imported. The collection, and so its fingerprint, changes with the
versions of `PACKAGES`.
"""

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import warnings
from collections import namedtuple
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pandas as pd

from rdl_core.data.downloads import cache_folder
from rdl_core.files import resumable
from rdl_core.progress import progress

__all__ = ["PACKAGES", "SPLITS", "Entry", "Frames", "build", "load", "parse_docstring", "split_of"]

#: Libraries the project depends on anyway; the standard library comes on top.
PACKAGES = ("matplotlib", "numpy", "pandas", "scipy", "seaborn", "sklearn")
SPLITS = {"train": 0.80, "dev": 0.05, "test": 0.15}  #: Share of the queries in each split, in order.
_QUERY_WORDS, _PASSAGE_WORDS = range(4, 31), range(15, 91)
_SKIPPED = {  # tests, and copies of other people's packages
    "__pycache__", "_vendor", "externals", "idlelib", "lib2to3", "site-packages", "test", "testing",
    "tests",
}  # fmt: skip
_SEE_ALSO = re.compile(  # numpydoc's section, up to the next one
    r"^[ \t]*See Also\n[ \t]*-{3,}[ \t]*$(.*?)(?=^[ \t]*[A-Z][A-Za-z ]+\n[ \t]*-{3,}[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_ROLE = re.compile(r":[a-z:]+:`~?([^`<]+?)(?: <[^`]*>)?`")
_MARKUP = re.compile(r"^[ \t]*(\.\. [a-z-]+::.*|:no-?index:|[-=~]{3,}[ \t]*)$", re.MULTILINE)
#: Names at the start of an unindented line, up to a colon; a description is indented or follows it.
_SEE_ALSO_NAMES = re.compile(r"^([\w.]+(?:[ ]*,[ ]*[\w.]+)*)[ ]*,?[ ]*(?::|$)", re.MULTILINE)
#: A full stop after an abbreviation ends no sentence, after "etc" only before a capital letter.
_SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<!\bal)(?<!\bresp)(?<!\bapprox)"
    r"(?<!\betc(?=\. [^A-Z]))\. "
)


#: One documented object: its qualified name, first sentence, rest, and names under "See Also".
Entry = namedtuple("Entry", "name query passage see_also")
#: ``query_id, query, split``; ``doc_id, text``; ``query_id, doc_id, relevance``: an object's name is
#: the id of its query and its passage.
Frames = namedtuple("Frames", "queries passages qrels")


def parse_docstring(name: str, docstring: str) -> Entry | None:
    """Query, passage and names in a docstring; None for templates, and if it is one sentence."""
    text = inspect.cleandoc(docstring)
    if "%(" in text or "{" in text.partition("\n")[0]:
        return None
    head, _, rest = text.partition("\n\n")
    sentence, tail, *_ = *_SENTENCE_END.split(re.sub(r"\s+", " ", head), maxsplit=1), ""
    section = _SEE_ALSO.search(rest)
    lines = re.sub(r":[a-z:]+:(?=`)|[`~]", "", inspect.cleandoc(section[1])) if section else ""
    named = (x.strip(" .") for x in ",".join(_SEE_ALSO_NAMES.findall(lines)).split(","))
    see_also = tuple(dict.fromkeys(filter(None, named)))
    words = _plain(f"{tail}\n{_SEE_ALSO.sub('', rest, count=1)}").split()
    passage = " ".join(words[: _PASSAGE_WORDS.stop - 1])
    return Entry(name, _plain(sentence).rstrip(". "), passage, see_also) if passage else None


def split_of(name: str) -> str:
    """Split of a query, from the hash of its name: adding a package moves no other query."""
    draw = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
    for split, share in SPLITS.items():
        draw -= share
        if draw < 0:
            break
    return split


@lru_cache(maxsize=1)
def load() -> Frames:
    """The collection, from the cache if Python, `PACKAGES` and this file are the same; else `build`."""
    versions = [metadata.version("scikit-learn" if x == "sklearn" else x) for x in PACKAGES]
    code = Path(__file__).read_text(encoding="utf-8")
    key = hashlib.sha256("\n".join([sys.version, *PACKAGES, *versions, code]).encode()).hexdigest()
    folder = cache_folder() / f"pydocs-{key[:16]}"
    with resumable(folder, {"key": key}, shared=True) as work:
        if work.manifest is None:
            for name, frame in build()._asdict().items():
                frame.to_parquet(folder / f"{name}.parquet", index=False)
            work.finish()
    return Frames(*(pd.read_parquet(folder / f"{name}.parquet") for name in Frames._fields))


def build() -> Frames:
    """Read the installed sources and make the collection, past any cache."""
    entries = pd.DataFrame(sorted(_entries(), key=lambda entry: entry.name), columns=Entry._fields)
    entries = entries[entries["passage"].map(lambda x: len(x.split()) in _PASSAGE_WORDS)]
    entries = entries.drop_duplicates("passage").drop_duplicates("name", keep="last")
    by_last_part = entries.groupby(entries["name"].str.rpartition(".")[2])["name"].agg(list).to_dict()
    # "Initialize self" asks for nothing; "axis : int" is a parameter list
    asks = entries["query"].map(lambda x: len(x.split()) in _QUERY_WORDS and ":" not in x)
    asks &= ~entries["query"].map(str.lower).duplicated(keep=False)
    queries = entries.loc[asks, ["name", "query"]].set_axis(["query_id", "query"], axis=1)
    passages, qrels = entries[["name", "passage"]].set_axis(["doc_id", "text"], axis=1), []
    for name, see_also in zip(queries["query_id"], entries["see_also"][asks], strict=True):
        related = {_resolve(name, other, by_last_part) for other in see_also} - {None, name}
        qrels += [(name, name, 3), *((name, other, 1) for other in sorted(related))]
    queries["split"] = queries["query_id"].map(split_of)
    frames = queries, passages, pd.DataFrame(qrels, columns=["query_id", "doc_id", "relevance"])
    return Frames(*(frame.reset_index(drop=True) for frame in frames))


def _plain(text: str) -> str:
    """Take out markup that only a documentation tool reads."""
    return " ".join(_MARKUP.sub(" ", _ROLE.sub(r"\1", text)).replace("`", "").split())


def _resolve(name: str, other: str, by_last_part: dict[str, list[str]]) -> str | None:
    """Full name that `other`, written in the docstring of `name`, stands for; None if unclear."""
    same_last_part, scope = by_last_part.get(other.rpartition(".")[2], []), name
    while scope:
        scope = scope.rpartition(".")[0]
        if (full := f"{scope}.{other}" if scope else other) in same_last_part:
            return full
    top, _, within = other.partition(".")
    package = top if within and top in PACKAGES else name.partition(".")[0]
    fits = [candidate for candidate in same_last_part if candidate.startswith(f"{package}.")]
    return fits[0] if len(fits) == 1 else None


def _entries() -> Iterator[Entry]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    packages = [Path(importlib.util.find_spec(name).origin).parent for name in PACKAGES]
    files = [
        (".".join(part for part in parts if part != "__init__"), path)
        for base, folder in [(stdlib, stdlib), *((package.parent, package) for package in packages)]
        for path in sorted(folder.rglob("*.py"))
        if not _SKIPPED.intersection(parts := path.relative_to(base).with_suffix("").parts)
    ]
    for module, path in progress(files, total=len(files), what="reading docstrings"):
        with warnings.catch_warnings(action="ignore"):  # other people's invalid escapes
            try:
                stack = [(module, node) for node in ast.parse(path.read_bytes()).body]
            except SyntaxError:  # templates and files for other Python versions
                continue
        while stack:
            scope, node = stack.pop()
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                name = f"{scope}.{node.name}"
                if (text := ast.get_docstring(node)) and (entry := parse_docstring(name, text)):
                    yield entry
                if isinstance(node, ast.ClassDef):
                    stack.extend((name, child) for child in node.body)
