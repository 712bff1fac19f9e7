"""The student in PyTerrier: its own checks of a transformer, and the scores of `rdl rerank`."""

import json
import tempfile

import ir_measures
import pandas as pd
import pyterrier as pt
import pytest
from common import PASSAGES, QUERIES, make_candidates, make_student
from pyterrier.testing import transformer_test_class

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.rerank import rerank
from rdl_core.tokens import TokenCorpus
from rdl_tools.adopt import Adopted
from rdl_tools.pyterrier import Reranker


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    make_student().save_pretrained(folder)
    return folder


@pytest.fixture
def results():
    frame = make_candidates()
    frame["query"], frame["text"] = frame["query_id"].map(QUERIES), frame["doc_id"].map(PASSAGES)
    return frame.rename(columns={"query_id": "qid", "doc_id": "docno"}).assign(rank=frame["rank"] - 1)


def expected(student, results):
    own = CrossEncoder.from_pretrained(student)
    names = {"qid": "query_id", "docno": "doc_id"}
    frame = results.rename(columns=names).assign(rank=results["rank"] + 1)
    queries = frame[["query_id", "query"]].drop_duplicates()
    passages = frame[["doc_id", "text"]].drop_duplicates()
    run = rerank(own, frame, TokenCorpus.of(queries, passages, own.tokenizer))
    return frame, run.set_index(["query_id", "doc_id"])["score"]


def test_scores_are_those_of_rerank_in_pyterriers_columns(student, results):
    _, wanted = expected(student, results)
    reranker = Reranker(student, precision="float32")
    for given in (
        results,
        results.sample(frac=1, random_state=0),
        results.drop(columns=["score", "rank"]),
    ):
        ranked = reranker(given.assign(kept=1))
        assert set(ranked.columns) == {"qid", "query", "docno", "text", "kept", "score", "rank"}
        assert len(ranked) == len(results)
        places = pd.MultiIndex.from_frame(ranked[["qid", "docno"]])
        assert ranked["score"].to_numpy() == pytest.approx(wanted[places].to_numpy(), abs=1e-5)
        assert ranked.groupby("qid")["score"].apply(lambda x: x.is_monotonic_decreasing).all()
        assert ranked.groupby("qid")["rank"].apply(lambda x: x.tolist() == [*range(len(x))]).all()
    assert reranker(results.head(0)).empty
    qrels = pd.DataFrame({"qid": ["q0"], "docno": ["d0"], "label": [1]})
    assert 0 < pt.Evaluate(ranked, qrels, [ir_measures.RR @ 10])["RR@10"] <= 1


def test_what_was_adopted_counts_where_there_are_scores(student, results, tmp_path):
    adopted = Adopted(weight=0.5, depth=3, slope=2.0, intercept=0.0, evidence={})
    (student / "adopted.json").write_text(json.dumps(vars(adopted)))
    frame, wanted = expected(student, results)
    places = pd.MultiIndex.from_frame(frame[["query_id", "doc_id"]])
    run = adopted.apply(frame, wanted[places].to_numpy())
    ranked = Reranker(student, precision="float32")(results)
    assert ranked["docno"].tolist() == run["doc_id"].tolist()
    assert ranked["score"].to_numpy() == pytest.approx(run["score"].to_numpy(), abs=1e-5)
    plain = Reranker(student, precision="float32", plain=True)(results)
    (student / "adopted.json").unlink()
    pd.testing.assert_frame_equal(plain, Reranker(student, precision="float32")(results))


def test_missing_columns_are_named_and_a_pipeline_declares_what_it_takes(student, results):
    reranker = Reranker(student)
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        reranker(results.drop(columns="text"))
    assert pt.inspect.transformer_inputs(reranker) == [["qid", "docno", "query", "text"]]
    outputs = pt.inspect.transformer_outputs(reranker, ["qid", "docno", "query", "text"])
    assert {"score", "rank"} <= set(outputs)
    assert len((reranker % 2)(results)) == 2 * results["qid"].nunique()


def saved():
    with tempfile.TemporaryDirectory() as folder:
        make_student().save_pretrained(folder)
        return Reranker(folder)


class TestTransformer(transformer_test_class(saved)):
    """PyTerrier's own checks, but for its drawing, which looks for links on the network."""

    test_schematic = None
