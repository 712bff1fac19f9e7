"""The student: packed scores and gradients are the padded ones, here and wherever it is loaded."""

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from common import WORDS, make_model, make_student, make_tokenizer, weights
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder as Modules
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from rdl_core import attention, cross_encoder
from rdl_core.cross_encoder import ARCHITECTURES, CrossEncoder, training_record
from rdl_core.data.downloads import EMBEDDED_ENCODER
from rdl_core.files import content_hash, read_json, write_json
from rdl_core.tokens import TokenStore

PAIRS = torch.cartesian_prod(torch.arange(7), torch.arange(13))


def score(student, stores, pairs=PAIRS, *, token_budget=200, **own):
    return student.score(*stores, pairs[:, 0], pairs[:, 1], token_budget=token_budget, **own)


@torch.no_grad()
def fixed(student, stores, pairs=PAIRS):
    return score(student, stores, pairs)


def padded_scores(model, tokenizer, texts):
    """What plain transformers computes of texts cut as a student cuts them, in one padded batch."""
    pairs = [
        [" ".join(part[i].split()[:most]) for i in column]
        for part, column, most in zip(texts, PAIRS.T.tolist(), (5, 20), strict=True)
    ]
    return model(**tokenizer(*pairs, padding=True, return_tensors="pt")).logits[:, 0]


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


_BIASES = {f"{part}_bias": True for part in ("attention", "mlp", "norm", "classifier")}
MODELS = [  # layers of ModernBERT are global, local, global
    *((kind, {"layers": n}) for kind in ("bert", "modernbert") for n in (1, 2, 3)),
    *((kind, {}) for kind in ("electra", "roberta", "xlm-roberta")),
    # As the published encoders' own configurations do:
    *(("modernbert", {"layers": n, "classifier_pooling": "mean"}) for n in (1, 2, 3)),
    ("modernbert", {"layers": 3, **_BIASES}),
]


@pytest.mark.parametrize(("kind", "own"), MODELS)
def test_packed_scores_and_gradients_equal_padded_ones(kind, own, stores, texts):
    student, twin = make_student(kind, **own), make_model(kind, **own).eval()
    pull = torch.linspace(-1, 2, len(PAIRS))
    theirs = padded_scores(twin, student.tokenizer, texts)
    (theirs * pull).sum().backward()
    assert theirs.std() > 0.05
    torch.testing.assert_close(fixed(student, stores), theirs, atol=1e-5, rtol=0)
    student.train()  # without dropout
    ours = score(student, stores, token_budget=100)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    (ours * pull).sum().backward()
    ours, theirs = gradients(student.model), gradients(twin)
    assert ours.keys() == theirs.keys() == dict(twin.named_parameters()).keys()
    assert all(gradient.abs().max() > 1e-4 for n, gradient in ours.items() if "key.bias" not in n)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-4, rtol=1e-4, msg=name)


def test_a_long_passage_scores_as_the_best_piece_that_is_read(kind, stores):
    student, words = make_student(kind), stores[1].flat[:80].view(4, 20).tolist()

    def scores(*rows):
        pairs, passages = torch.tensor([[0, i] for i in range(len(rows))]), stores[1].from_lists(rows)
        return fixed(student, (stores[0], passages), pairs)

    alone, order = scores(*words).sort()
    assert alone.diff().min() > 1e-3
    long = sum((words[i] for i in order), [])  # the later, the better
    for student.chunks in (1, 2, 3, 9):
        expected = alone[[0, min(student.chunks, 4) - 1, 0]]
        torch.testing.assert_close(scores(long[:20], long, long[:20]), expected, atol=1e-5, rtol=0)


def plain_varlen(query, key, value, cu_query, cu_key, most, longest, *, scale, window_size=(-1, -1)):
    """`varlen_attn` in a loop; the last query stands at the last key, where a window counts from."""
    assert cu_query.dtype == cu_key.dtype == torch.int32
    assert (cu_query.diff().max(), cu_key.diff().max()) == (most, longest)
    attended = []
    for i in range(len(cu_key) - 1):
        q = query[cu_query[i] : cu_query[i + 1]]
        k, v = (x[cu_key[i] : cu_key[i + 1]] for x in (key, value))
        places = torch.arange(len(k))
        ahead = places - places[-len(q) :, None]
        seen = torch.ones_like(ahead, dtype=torch.bool)
        for side, width in ((-ahead, window_size[0]), (ahead, window_size[1])):
            seen &= (side <= width) | (width < 0)
        logits = (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(~seen, -torch.inf)
        attended.append(torch.einsum("hqk,khd->qhd", logits.softmax(-1), v))
    return torch.cat(attended)


@pytest.mark.parametrize("layers", [2, 3])
def test_variable_length_kernel_gets_what_it_takes(kind, layers, stores, monkeypatch):
    student, windows = make_student(kind, layers=layers), set()
    without = fixed(student, stores)

    def kernel(*args, **own):
        windows.add(own.get("window_size", (-1, -1)))
        return plain_varlen(*args, **own)

    for module in (attention, cross_encoder):
        monkeypatch.setattr(module, "has_varlen", lambda x: True)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    torch.testing.assert_close(fixed(student, stores), without, atol=1e-5, rtol=0)
    assert windows == ({(-1, -1), (3, 3)} if kind == "modernbert" else {(-1, -1)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layers", [2, 3])
def test_kernels_of_the_gpu_agree_with_those_of_the_cpu(kind, layers, stores):
    student, twin = (make_student(kind, layers=layers).train() for _ in range(2))
    student.cuda()
    exact = score(twin, stores)
    exact.square().sum().backward()
    on_gpu = [store.to("cuda") for store in stores]
    for precision, atol in (("float32", 1e-3), ("bfloat16", 0.1)):
        student.zero_grad()
        scores = score(student, on_gpu, PAIRS.cuda(), precision=precision)
        scores.square().sum().backward()
        torch.testing.assert_close(scores.cpu(), exact, atol=atol, rtol=0)
        for name, gradient in gradients(twin).items():
            ours = gradients(student)[name].cpu()
            assert (ours - gradient).norm() <= atol * gradient.norm() + 1e-3, name


def test_dropout_is_on_in_training_alone_in_encoder_and_head(kind, stores):
    student = make_student(kind, dropout=0.5)
    assert torch.equal(score(student, stores), score(make_student(kind), stores))
    student.train()
    assert not torch.equal(score(student, stores), score(student, stores))
    student.model.base_model.eval()  # the encoder's dropout hides the head's
    assert not torch.equal(score(student, stores), score(student, stores))


def test_head_names_are_the_weights_after_the_encoder(kind):
    of_bert, of_modern = {"bert.pooler.dense", "classifier"}, {"head.dense", "head.norm", "classifier"}
    known = {"bert": of_bert, "modernbert": of_modern}
    expected = known.get(kind, {"classifier.dense", "classifier.out_proj"})
    assert {name.rpartition(".")[0] for name in make_student(kind).head_names()} == expected


def test_a_saved_folder_holds_the_whole_student_and_code_beside_it_is_not_run(kind, stores, tmp_path):
    """What other libraries make of a folder is in test_export.py."""
    student = make_student(kind)
    student.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # who reads one reads all
    _, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    evil = {"auto_map": {"AutoModelForSequenceClassification": "evil.Evil"}}
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | evil)
    again = CrossEncoder.from_pretrained(tmp_path, trained=True).eval()
    torch.testing.assert_close(fixed(again, stores), fixed(student, stores), atol=1e-6, rtol=0)
    assert not (tmp_path / "ran").exists()


def test_a_student_is_known_by_its_folder_and_its_run_and_keeps_its_limits(tmp_path):
    make_student().save_pretrained(tmp_path / "model")
    weights_hash = content_hash(tmp_path / "model" / "model.safetensors")
    manifest = {"files": {"model/model.safetensors": weights_hash}}
    write_json(tmp_path / "manifest.json", manifest)
    for name in (tmp_path, str(tmp_path), tmp_path / "model"):
        student = CrossEncoder.from_pretrained(name)
        assert (student.query_tokens, student.passage_tokens) == (5, 20)
        assert training_record(name) == manifest
    CrossEncoder.from_pretrained(tmp_path, query_tokens=3).save_pretrained(tmp_path / "again")
    again = CrossEncoder.from_pretrained(tmp_path / "again")
    assert again.limits == {"query_tokens": 3, "passage_tokens": 20}  # as before there were chunks
    assert read_json(tmp_path / "again" / "config.json")["rdl_core"] == again.limits
    with pytest.raises(ValueError, match="limits of at least 1, got {'chunks': 0}: raise it, or leave"):
        CrossEncoder.from_pretrained(tmp_path, chunks=0)
    make_student(seed=1).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="model.safetensors is damaged: its SHA-256 is not that"):
        CrossEncoder.from_pretrained(tmp_path)
    published = CrossEncoder.from_pretrained(EMBEDDED_ENCODER)
    assert (published.query_tokens, published.passage_tokens) == (32, 256)


def test_an_encoder_gets_a_fresh_head_by_the_seed(files):
    def head(seed):
        torch.manual_seed(seed)
        student = CrossEncoder.from_pretrained(files / "encoder", query_tokens=5, passage_tokens=20)
        return weights(student)["classifier.weight"].tolist()

    assert head(0) == head(0) != head(1)


NO_MODEL = "is no folder or hub id of a model"


@pytest.mark.parametrize(("name", "weights", "says"), [
    ("none", None, NO_MODEL), ("beir", None, NO_MODEL), ("student", None, NO_MODEL),
    ("student", ("model.safetensors", b"cut"), NO_MODEL),
    ("student", ("pytorch_model.bin", b"pickled"), f"{NO_MODEL} .*model.safetensors"),
    ("encoder", None, "expected a trained .* distil a student from it"),
    ("two", None, "expected a model with one output, the score, got 2"),
])  # fmt: skip
def test_what_is_no_trained_student_is_refused(files, tmp_path, name, weights, says):
    folder = tmp_path / name
    if (files / name).exists():
        shutil.copytree(files / name, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if weights:
        (folder / weights[0]).write_bytes(weights[1])
    with pytest.raises(ValueError, match=f"{name}:? {says}"):
        CrossEncoder.from_pretrained(folder, trained=True)


def _without(name):
    return lambda weights: {k: w for k, w in weights.items() if not k.startswith(name)}


@pytest.mark.parametrize(("change", "trained", "says"), [
    (lambda weights: {f"module.{k}": w for k, w in weights.items()}, True, "are missing"),
    (_without("classifier"), True, "such as classifier.bias, classifier.weight: its scores would be"),
    (_without("bert.encoder.layer.1"), False, "missing.* bert.encoder.layer.1.attention"),
    (lambda w: w | {"bert.encoder.layer.7.output.dense.bias": torch.ones(1)}, False, "layer.7.output"),
    (lambda w: w | {"classifier.weight": torch.ones(3, 16)}, True, "no folder or hub id .*mismatched"),
])  # fmt: skip
def test_weights_that_are_not_the_models_are_refused_by_name(files, tmp_path, change, trained, says):
    """Transformers draws at random what a file lacks; its warning is easily missed."""
    shutil.copytree(files / "student", tmp_path / "s")
    weights = change(load_file(tmp_path / "s" / "model.safetensors"))
    save_file(weights, tmp_path / "s" / "model.safetensors", {"format": "pt"})
    if not trained:
        config = read_json(tmp_path / "s" / "config.json")
        write_json(tmp_path / "s" / "config.json", config | {"architectures": ["BertModel"]})
    with pytest.raises(ValueError, match=says):
        CrossEncoder.from_pretrained(tmp_path / "s", trained=trained)


def modular(folder, kind, *, pooling="cls", activation=nn.Tanh, bias=True, normed=False):
    """A cross-encoder of sentence-transformers' modules, as Ettin's re-rankers are."""
    make_model(kind).base_model.save_pretrained(folder / "encoder")
    make_tokenizer(kind).save_pretrained(folder / "encoder")
    encoder = Transformer(str(folder / "encoder"), transformer_task="feature-extraction")
    first = Dense(24, 24, bias=bias, activation_function=activation())
    last = Dense(24, 1, activation_function=nn.Identity(), module_output_name="scores")
    modules = [encoder, Pooling(24, pooling), first, *[LayerNorm(24)] * normed, last]
    torch.manual_seed(3)
    for module in modules[1:]:
        for weight in module.parameters():
            nn.init.normal_(weight)
    Modules(modules=modules).save_pretrained(str(folder / "modular"))
    return folder / "modular"


ETTIN = {"activation": nn.GELU, "bias": False, "normed": True}


@pytest.mark.parametrize(("kind", "own"), [
    ("modernbert", ETTIN), ("modernbert", ETTIN | {"pooling": "mean", "bias": True}),
    ("bert", {}), ("bert", {"bias": False}), ("electra", {"activation": nn.GELU}), ("roberta", {}),
])  # fmt: skip
def test_modular_cross_encoders_score_as_in_sentence_transformers(tmp_path, kind, own):
    folder = modular(tmp_path, kind, **own)
    limits = {"query_tokens": 5, "passage_tokens": 20}
    student = CrossEncoder.from_pretrained(folder, trained=True, **limits).eval()
    student.save_pretrained(tmp_path / "plain")
    pairs = [(WORDS[i], " ".join(WORDS[i : i + 4])) for i in range(9)]
    read = Modules(str(folder)).predict(pairs, activation_fn=nn.Identity(), convert_to_tensor=True)
    assert read.std() > 0.05
    for each in (student, CrossEncoder.from_pretrained(tmp_path / "plain", trained=True).eval()):
        stores = (TokenStore.of_texts(texts, each.tokenizer) for texts in zip(*pairs, strict=True))
        ours = fixed(each, [*stores], torch.arange(9)[:, None].expand(-1, 2))
        torch.testing.assert_close(ours, read, atol=1e-5, rtol=1e-5)


class Hub(SimpleHTTPRequestHandler):
    def end_headers(self):
        known = Path(self.translate_path(self.path)).is_file()
        headers = {"ETag": f'"{self.path}"', "X-Repo-Commit": "0" * 40}
        for header in (headers if known else {"X-Error-Code": "EntryNotFound"}).items():
            self.send_header(*header)
        super().end_headers()


def test_a_modular_cross_encoder_comes_from_a_hub(tmp_path, monkeypatch):
    folder = modular(tmp_path, "modernbert", **ETTIN)
    main = tmp_path / "hub" / "me" / "fox" / "resolve" / "main"
    shutil.copytree(folder, main)
    main.with_name("0" * 40).symlink_to(main)  # its commit
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=tmp_path / "hub")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home"))
        limits = {"query_tokens": 5, "passage_tokens": 20}
        read = CrossEncoder.from_pretrained("me/fox", trained=True, **limits).model.state_dict()
        server.shutdown()
    local = CrossEncoder.from_pretrained(folder, **limits).model.state_dict()
    assert read.keys() == local.keys()
    assert all(torch.equal(read[name], local[name]) for name in read)


@pytest.mark.parametrize(("kind", "own"), [
    ("modernbert", {"activation": nn.GELU}), ("modernbert", ETTIN | {"pooling": "max"}),
    ("modernbert", ETTIN | {"activation": nn.Softsign}), ("bert", {"pooling": "mean"}),
    ("bert", {"activation": nn.GELU}), ("bert", {"normed": True}),
])  # fmt: skip
def test_modules_that_are_no_head_of_transformers_are_refused(tmp_path, kind, own):
    folder = modular(tmp_path, kind, **own)
    with pytest.raises(ValueError, match=f"modular: expected Pooling, .* of {kind} has them, got"):
        CrossEncoder.from_pretrained(folder)


def test_tokenizers_that_do_not_fit_are_refused(files, tmp_path):
    tokenizer = shutil.ignore_patterns("token*", "vocab*")
    shutil.copytree(files / "encoder", tmp_path / "e", ignore=tokenizer)
    with pytest.raises(ValueError, match="knows no word, only .*: is its file missing"):
        CrossEncoder.from_pretrained(tmp_path / "e")
    student = make_student()
    limits = {"query_tokens": 5, "passage_tokens": 20}
    with pytest.raises(ValueError, match="gives passages segment 1, the model has 1, from 0"):
        CrossEncoder(make_model("bert", type_vocab_size=1), student.tokenizer, **limits)
    n = student.model.config.vocab_size
    student.tokenizer.add_tokens([f"xylophonium{i}" for i in range(n)])
    with pytest.raises(ValueError, match=rf"gives ids up to \d+, the model has {n}, from 0"):
        CrossEncoder(student.model, student.tokenizer, **limits)


def test_other_architectures_are_refused():
    sizes = {"vocab_size": 9, "dim": 8, "n_layers": 1, "n_heads": 1, "hidden_dim": 8}
    other = DistilBertForSequenceClassification(DistilBertConfig(**sizes, num_labels=1))
    with pytest.raises(ValueError, match=f"type {', '.join(ARCHITECTURES)}, got 'distilbert'"):
        CrossEncoder(other, make_tokenizer("bert"), query_tokens=5, passage_tokens=20)


@pytest.mark.parametrize("of_tokenizer", [64, 10**30, 30])
def test_lengths_past_the_encoder_are_refused_whatever_the_tokenizer_says(kind, of_tokenizer):
    """Many tokenizers name no limit; a long pair then failed only in the middle of a training."""
    model, tokenizer, longest = make_model(kind), make_tokenizer(kind), min(64, of_tokenizer)
    tokenizer.model_max_length = of_tokenizer
    room = longest - tokenizer.num_special_tokens_to_add(pair=True)
    CrossEncoder(model, tokenizer, query_tokens=room - 20, passage_tokens=20)
    with pytest.raises(ValueError, match=f"at most {longest} tokens .* are {longest + 1}: lower"):
        CrossEncoder(model, tokenizer, query_tokens=room - 19, passage_tokens=20)
