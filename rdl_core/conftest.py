"""What the examples in docstrings use: a tiny student, a few texts, a tiny profile, a folder."""

import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.tokens import TokenStore
from rdl_study import tables, worked
from rdl_study.bench.full_size import FullSize, make_full_size
from rdl_study.grid import Part, effectiveness
from rdl_study.profile import Profile, load_profile

collect_ignore_glob = ["efficiency/peers/*"]  # for another environment


@pytest.fixture(scope="session")
def _store(tmp_path_factory):
    """A run store of its own, so that an example neither finds nor leaves anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDL_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


@pytest.fixture(autouse=True)
def _logging_as_before():
    """Commands and notebooks configure logging, and tests that read messages come after them."""
    loggers = [logging.getLogger(name) for name in ("rdl_core", "papermill")]
    before = [(one.handlers, one.propagate, one.level) for one in loggers]
    yield
    for one, (handlers, propagate, level) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.fixture(autouse=True)
def _examples(_store, _shared, doctest_namespace, tmp_path):
    """Names for an example."""
    doctest_namespace.update(_shared, folder=tmp_path)


@pytest.fixture(scope="session")
def _shared(_store, tmp_path_factory):
    tokenizer = AutoTokenizer.from_pretrained(encoder_path(EMBEDDED_ENCODER))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    student = CrossEncoder(
        BertForSequenceClassification(config), tokenizer, query_tokens=8, passage_tokens=8
    )
    encoder = tmp_path_factory.mktemp("encoder")
    student.save_pretrained(encoder)
    profile = _tiny(str(encoder))
    page = tables.compare(effectiveness(profile, ["bm25"])["bm25"])
    return {
        "main_page": page,
        "example": worked.pick(page),
        "tiny_student": student,
        "queries": TokenStore.of_texts(["red fox", "blue whale"], tokenizer),
        "passages": TokenStore.of_texts(["a fox is red", "whales sing", "noise"], tokenizer),
        "frame": pd.DataFrame({"query_id": "q", "doc_id": ["a", "b", "c"], "rank": [1, 2, 3]}),
        "profile": profile,
        "results": tables.compare(
            Part(
                profile=profile, baseline="BM25",
                systems={"BM25": "first_stage", "student": profile.student()},
            )
        ),
        "work": {
            "model": str(encoder), "bi_encoder": encoder_path(EMBEDDED_ENCODER), "query_tokens": 8,
            "passage_tokens": 8, "lists": [{"query": "red fox", "passages": ["a fox", "whales"]}],
        },
        "full_size_work": make_full_size(
            FullSize(n_passages=50, n_queries=4, depth=5, n_lists=2),
            tmp_path_factory.mktemp("full_size"),
        ),
        "Part": Part,
        "Path": Path,
        "pd": pd,
        "torch": torch,
    }


def _tiny(encoder: str) -> Profile:
    mini = load_profile("mini")
    few = {"steps": 2, "queries_per_step": 2, "list_size": 3}
    first, second = mini.stage1, mini.stage2
    return replace(
        mini,
        encoder=encoder,
        stage1=replace(
            first,
            lists=replace(first.lists, n_queries=6, teacher_encoder=encoder),
            training=replace(first.training, **few),
        ),
        stage2=replace(
            second,
            lists=replace(second.lists, n_queries=6, teacher_encoder=encoder),
            training=replace(second.training, **few),
        ),
        test=replace(mini.test, n_queries=6, depth=5, teacher_encoder=encoder),
        ablation_queries=5,
        ablation_steps=1,
    )
