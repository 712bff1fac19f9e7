"""Re-ranking: the scores of one pair at a time, whatever the chunks, budgets, shards and row order."""

import gzip

import pandas as pd
import pytest
import torch
from common import PASSAGES, QUERIES, make_candidates, make_model, make_student, make_tokenizer

from rdl_core import rerank as module
from rdl_core.data.formats import read_run
from rdl_core.rerank import rerank
from rdl_core.tokens import TokenCorpus
from rdl_tools import rerank as tool
from rdl_tools import student
from rdl_tools.config import RerankConfig
from rdl_tools.rerank import merge_runs, rerank_files

CORPUS = TokenCorpus.of(
    pd.DataFrame(QUERIES.items(), columns=["query_id", "query"]),
    pd.DataFrame(PASSAGES.items(), columns=["doc_id", "text"]), make_tokenizer("bert"),
)  # fmt: skip


@pytest.fixture(scope="module")
def by_hand():
    """Each query's passages as plain transformers scores them, the first stage settling ties."""
    model, tokenizer, frame = make_model("bert").eval(), make_tokenizer("bert"), make_candidates()
    queries = [" ".join(QUERIES[x].split()[:5]) for x in frame["query_id"]]
    passages = [" ".join(PASSAGES[x].split()[:20]) for x in frame["doc_id"]]
    with torch.no_grad():
        scores = model(**tokenizer(queries, passages, padding=True, return_tensors="pt")).logits[:, 0]
    frame = frame.assign(score=scores.numpy().round(5))
    return frame.sort_values(["query_id", "score", "rank"], ascending=[True, False, True])


def by_pair(frame):
    return frame.set_index(["query_id", "doc_id"])["score"].to_dict()


@pytest.mark.parametrize(
    ("pairs_at_once", "own"),
    [(1, {"token_budget": 60}), (4, {"token_budget": 1}), (27, {"token_budget": 4096}), (1000, {}),
     (1000, {"precision": "bfloat16"}), (1000, {"precision": "int8"})],
)  # fmt: skip
def test_scores_are_those_of_transformers(by_hand, monkeypatch, pairs_at_once, own):
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", pairs_at_once)
    student, expected = make_student(dropout=0.5).train(), by_pair(by_hand)
    run = rerank(student, make_candidates().sample(frac=1, random_state=0), CORPUS, **own)
    assert run.columns.tolist() == ["query_id", "doc_id", "score"]
    most = {"bfloat16": 0.1, "int8": 0.2}.get(own.get("precision"), 2e-5)
    assert by_pair(run) == pytest.approx(expected, abs=most)
    away = max(abs(x - expected[pair]) for pair, x in by_pair(run).items())
    assert (away > 1e-4) == ("precision" in own)
    assert run["score"].nunique() >= by_hand["score"].nunique()  # and not rounded
    assert run["query_id"].ne(run["query_id"].shift()).sum() == run["query_id"].nunique()


def test_nothing_to_rerank_gives_an_empty_run_and_broken_weights_none():
    """BM25 finds nothing for some queries, perhaps for none of a small set."""
    student = make_student()
    run = rerank(student, make_candidates()[:0], CORPUS)
    assert (len(run), run.columns.tolist()) == (0, ["query_id", "doc_id", "score"])
    for value in (float("nan"), float("inf")):
        torch.nn.init.constant_(student.model.classifier.bias, value)
        with pytest.raises(ValueError, match="nan or infinity for query 'q0': its weights are broken"):
            rerank(student, make_candidates(), CORPUS)


@pytest.fixture
def to_file(files, tmp_path):
    """Re-rank first.run, or other candidates, into a file; gives its path."""

    def to_file(name, candidates="first.run", **own):
        paths = {"student": files / "student", "candidates": files / candidates, "out": tmp_path / name}
        config = {"collection": str(files / "beir"), "precision": "float32"} | own
        rerank_files(RerankConfig(**{key: str(path) for key, path in paths.items()}, **config))
        return tmp_path / name

    return to_file


@pytest.mark.parametrize("pairs_in_memory", [1, 10, 2**15])
def test_a_run_is_settled_and_written_in_parts(to_file, by_hand, monkeypatch, pairs_in_memory):
    monkeypatch.setattr(student, "_PAIRS_IN_MEMORY", pairs_in_memory)
    sizes = []
    counted = lambda s, c, *x, **own: sizes.append(len(c)) or rerank(s, c, *x, **own)  # noqa: E731
    monkeypatch.setattr(tool, "rerank", counted)
    packed = to_file("own.run.gz")
    run = read_run(packed)
    assert run["doc_id"].tolist() == by_hand["doc_id"].tolist()
    assert run["score"].to_numpy() == pytest.approx(by_hand["score"].to_numpy(), abs=2e-5)
    assert run.groupby("query_id")["score"].diff().dropna().lt(0).all()
    assert max(sizes) < pairs_in_memory + 9
    assert len(sizes) == {1: 6, 10: 4}.get(pairs_in_memory, 1)
    assert gzip.decompress(packed.read_bytes()).startswith(b"q0 Q0 ")


def test_a_run_that_breaks_off_leaves_what_was_there(to_file, files, tmp_path, monkeypatch):
    """The text that is missing is the last query's; those before it were ranked by then."""
    monkeypatch.setattr(student, "_PAIRS_IN_MEMORY", 1)
    (tmp_path / "broken.run").write_text((files / "first.run").read_text() + "q5 Q0 d99 10 -9.0 t\n")
    (tmp_path / "old.run").write_text("old")
    (tmp_path / "own.run.partial").write_text("q0 Q0 d99 1 99.0 t\n")  # of a killed one: not taken up
    for name in ("new.run", "old.run"):
        with pytest.raises(ValueError, match="'d99'"):
            to_file(name, tmp_path / "broken.run")
    assert (tmp_path / "old.run").read_text() == "old"
    assert not (tmp_path / "new.run").exists()
    assert to_file("own.run").read_bytes() == to_file("other.run").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_a_killed_run_goes_on_and_ranks_anew_what_changed(to_file, tmp_path, monkeypatch):
    """Hours on a CPU were lost with a run of 10,000 queries that was killed at its end."""
    monkeypatch.setattr(student, "_PAIRS_IN_MEMORY", 10)
    expected, n_scored = to_file("whole.run").read_bytes(), []

    def killed_at(number, name="own.run", **own):
        def rerank_or_die(*args, **options):
            n_scored.append(1)
            if len(n_scored) == number:
                raise KeyboardInterrupt
            return rerank(*args, **options)

        n_scored.clear()
        monkeypatch.setattr(tool, "rerank", rerank_or_die)
        return to_file(name, **own)

    with pytest.raises(KeyboardInterrupt):
        killed_at(3)
    assert not (tmp_path / "own.run").exists()
    assert killed_at(0).read_bytes() == expected
    assert len(n_scored) == 2  # of four parts
    assert not (tmp_path / "own.run.unfinished").exists()
    for name, own in {"int8.run": {"precision": "int8"}, "short.run": {"passage_tokens": 2}}.items():
        with pytest.raises(KeyboardInterrupt):
            killed_at(4, name, **own)
        assert killed_at(0, name).read_bytes() == expected
        assert len(n_scored) == 4  # nothing of another precision or length is taken
    with pytest.raises(KeyboardInterrupt):
        killed_at(4, "cut.run")
    part = tmp_path / "cut.run.unfinished" / "2" / "run.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    assert killed_at(0, "cut.run").read_bytes() == expected
    assert len(n_scored) == 2  # the damaged one, and the last


def test_shards_of_a_run_become_the_run_and_other_runs_are_refused(to_file, tmp_path, monkeypatch):
    """Other pairs share a batch: the last bits of a score, and the order of twins, may differ."""
    ids = ["query_id", "doc_id"]
    scores = lambda path: read_run(path).set_index(ids)["score"].sort_index()  # noqa: E731
    whole, merged, new = to_file("whole.run"), tmp_path / "merged.run", tmp_path / "new.run"
    first, second = shards = [to_file(f"{n}.run", shard=f"{n}/2") for n in (1, 2)]
    assert merge_runs([second, first], merged) == 6
    pd.testing.assert_series_equal(scores(merged), scores(whole), rtol=0, atol=1e-6)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # here; the processes compute on the CPU
    both = to_file("both.run")
    pd.testing.assert_series_equal(scores(both), scores(whole), rtol=0, atol=1e-6)
    assert not list(tmp_path.glob("both.run.*"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="whole.run is no run of a shard with whole.run.json"):
        merge_runs([whole], new)
    with pytest.raises(ValueError, match="tag is 'another', not 'rdl'"):
        merge_runs([first, to_file("other.run", shard="2/2", tag="another")], new)
    second.write_text(second.read_text().replace("rdl", "me", 1))
    with pytest.raises(ValueError, match="2.run changed since 2.run.json was written"):
        merge_runs(shards, new)
    assert not new.exists()
