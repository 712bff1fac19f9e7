"""Tiny encoders, token stores and files, made from configurations: no test needs a network."""

import gc
import importlib.util
import json
import logging
import multiprocessing
import os
import random
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertModel
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.utils import logging as transformers_logging

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data import formats
from rdl_core.data.downloads import EMBEDDED_ENCODER, embedded_path
from rdl_core.tokens import TokenStore
from rdl_study.profile import load_profile
from rdl_tools import cli

torch.set_num_threads(1)
gc.set_threshold(100_000, 20, 100)  # a tenth of many tests' CPU time

WORDS = [f"w{i}" for i in range(40)]
KINDS = ("bert", "electra", "roberta", "modernbert")
_OWN = {  # ModernBERT's layers are global, local, ...; a local one sees three to either side
    "bert": {}, "electra": {"embedding_size": 12},
    **dict.fromkeys(("roberta", "xlm-roberta"), {"type_vocab_size": 1, "max_position_embeddings": 66}),
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 6, "bos_token_id": 0,
                   "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2},
}  # fmt: skip


def make_tokenizer(kind, words=WORDS):
    """A fast tokenizer of whole words: ``[CLS] a [SEP] b [SEP]``, or ``<s> a </s></s> b </s>``."""
    special, pair = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"], processors.BertProcessing
    if "roberta" in kind:
        special, pair = ["<s>", "<pad>", "</s>", "<unk>"], processors.RobertaProcessing
    cls, pad, sep, unknown = special
    tokenizer = Tokenizer(models.WordLevel({x: i for i, x in enumerate([*special, *words])}, unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = pair((sep, 2), (cls, 0))
    segments = ["token_type_ids"] if kind in ("bert", "electra") else []
    names = {"model_input_names": ["input_ids", *segments, "attention_mask"], "model_max_length": 64}
    names |= {"cls_token": cls, "pad_token": pad, "sep_token": sep, "unk_token": unknown}
    return FastTokenizer(tokenizer_object=tokenizer, **names)


def make_model(kind, *, layers=2, seed=0, dropout=0.0, **own):
    """Random weights, some ten times larger than usual, so that scores differ."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(WORDS) + 4, "hidden_size": 24, "num_hidden_layers": layers,
        "num_attention_heads": 3, "intermediate_size": 32, "max_position_embeddings": 64,
        "pad_token_id": 1, "num_labels": 1, "initializer_range": 0.2,
        "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0,
        "embedding_dropout": dropout, "mlp_dropout": dropout, "classifier_dropout": dropout,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes | _OWN[kind] | own)
    return AutoModelForSequenceClassification.from_config(config)


def make_student(kind="bert", **own):
    model, tokenizer = make_model(kind, **own), make_tokenizer(kind)
    return CrossEncoder(model, tokenizer, query_tokens=5, passage_tokens=20).eval()


def make_texts(n, *, seed, longest):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(n)]


def weights(student):
    return {name: weight.detach().clone() for name, weight in student.model.named_parameters()}


def moved(before, after):
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def child_environment(**more):
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | more


def module_of(path):
    """The module of a file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def texts():
    """Seven queries and thirteen passages, some of them longer than a student reads."""
    return make_texts(7, seed=1, longest=8), make_texts(13, seed=2, longest=30)


@pytest.fixture(scope="session")
def stores(texts):
    """Token stores of the texts; the tokenizers of all kinds give the same ids."""
    return tuple(TokenStore.of_texts(part, make_tokenizer("bert")) for part in texts)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all workers share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def encoder_folder(shared):
    """A folder with a tiny encoder that reads what the embedded one reads."""
    folder = shared / "encoder"
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return str(folder)
        tokenizer = AutoTokenizer.from_pretrained(embedded_path(EMBEDDED_ENCODER))
        own = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "initializer_range": 0.02}
        own |= {"pad_token_id": 0, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        model = make_model("bert", **own)
        CrossEncoder(model, tokenizer, query_tokens=8, passage_tokens=8).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny(encoder_folder):
    """The profile mini with two layers, four steps a stage and eight test queries."""
    mini, own, stages = load_profile("mini"), {"teacher_encoder": encoder_folder}, {}
    own["first_stage"] = "bm25"  # of whose passages the LLM's scores are recorded: it is not asked
    few = {"steps": 4, "queries_per_step": 2, "list_size": 3, "learning_rate": 0.01}
    for name, stage in (("stage1", mini.stage1), ("stage2", mini.stage2)):
        lists, training = replace(stage.lists, n_queries=6, **own), replace(stage.training, **few)
        stages[name] = replace(stage, lists=lists, training=training)
    return replace(
        mini, encoder=encoder_folder, precision="float32", ablation_queries=6, ablation_steps=2,
        test=replace(mini.test, n_queries=8, depth=6, **own), **stages,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(shared):
    """For the tests of a file, a run store that those of other files share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDL_RUNS", str(shared / "runs"))
        yield


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A run store of a test's own: the folder."""
    monkeypatch.setenv("RDL_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def server():
    """Starts processes that have imported all they need."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["test_distill"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server looks nowhere else
        processes.Process(target=os.getpid).start()
    return processes


QUERIES = {f"q{i}": text for i, text in enumerate(make_texts(6, seed=1, longest=8))}
PASSAGES = {f"d{i}": text for i, text in enumerate(make_texts(13, seed=2, longest=30))}
PASSAGES |= {"twin": PASSAGES["d0"]}  # two passages that any model scores alike


def make_candidates():
    """Four to nine candidates of each query, both twins among them, either before the other."""
    rows = []
    for number, query_id in enumerate(QUERIES):
        others = [f"d{(number + 5 * place) % 12 + 1}" for place in range(2 + number)]
        docs = ["twin", *others, "d0"] if number % 2 else ["d0", *others, "twin"]
        rows += [(query_id, doc_id, rank) for rank, doc_id in enumerate(docs, start=1)]
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "rank"]).eval("score = -rank / 2")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder: first.run, taught.parquet (turned round), beir, qrels.txt, student, encoder, two."""
    folder, frame = tmp_path_factory.mktemp("files"), make_candidates()
    formats.write_run(frame, folder / "first.run")
    turned = frame.groupby("query_id")["rank"].rank(ascending=False).astype(int)
    frame.assign(teacher_rank=turned).to_parquet(folder / "taught.parquet")
    (folder / "beir").mkdir()
    for name, texts in (("queries", QUERIES), ("corpus", PASSAGES)):
        frame = pd.DataFrame(texts.items(), columns=["_id", "text"])
        frame.to_json(folder / "beir" / f"{name}.jsonl", orient="records", lines=True)
    qrels = "".join(f"{q} 0 d{i} {i % 3}\n" for q in QUERIES for i in range(13))
    (folder / "qrels.txt").write_text(qrels)
    make_student().save_pretrained(folder / "student")
    make_model("bert", num_labels=2).save_pretrained(folder / "two")
    BertModel(make_model("bert").config).save_pretrained(folder / "encoder")
    make_tokenizer("bert").save_pretrained(folder / "encoder")
    return folder


@pytest.fixture
def rdl(files, monkeypatch):
    """Run a command in the folder of the files; gives its result."""
    monkeypatch.setattr(cli, "set_up_process", transformers_logging.disable_progress_bar)
    monkeypatch.chdir(files)

    def run(*words, code=0):
        done = CliRunner().invoke(cli.app, list(map(str, words)))
        assert done.exit_code == code, done.output
        return done

    return run


@pytest.fixture(autouse=True)
def _logging_as_before():
    """Commands and notebooks configure logging, and tests that read messages come after them."""
    loggers = [logging.getLogger(name) for name in ("rdl_core", "rdl_tools", "rdl_study", "papermill")]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    transformers_logging.enable_progress_bar()
