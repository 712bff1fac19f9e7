"""The student: packed scores and gradients are the padded ones, here and wherever it is loaded.

Mutations tried, one at a time; each made at least one test here fail:

- positions: RoBERTa's shift off by one, or none; the shift left out of the limit; only the
  tokenizer's limit, or only the table's; the limit itself refused.
- attention: mask ignored, in all layers or the last; one empty place seen; scale dropped; keys and
  values swapped. Window: ignored, wide or narrow by one, one-sided, padding seen through it, not
  in the last layer.
- kernel: scale or window dropped, one-sided; a single query with a window; int64 bounds; all
  queries for the first ones.
- BERT: last layer without residual, or for the last position; segments 0; no pooler, no dropout
  before the classifier; ELECTRA's projection skipped.
- ModernBERT: final norm, head or its dropout skipped; last layer without either residual, norm or
  rotation, or with the global one; one rotation for all layers; positions of the whole batch; mean
  over padding, before the norm, or ignored.
- scores: left in the batches' order, or put back inversely; bfloat16 in the head, or of the result;
  autocast never on; the pooled vector detached; queries not cut.
- checkpointing: never, always, at evaluation too, dropout drawn anew, not to be put off.
- head: without pooler; the classifier alone; norms of the encoder.
- similarity: [CLS] left out of the passage's mean; segments swapped; scale dropped; a head that is
  drawn at random; the head's name ignored.
- folders and checks: sigmoid named, or nothing; code run; pickles read; outputs not counted.

Not seen: empty places that see nothing. They matter only to kernels that make NaN of such rows.
"""

import json
from copy import deepcopy

import pytest
import torch
from conftest import make_model, make_student, make_tokenizer
from sentence_transformers import CrossEncoder as TheirCrossEncoder
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from rdl_core import attention, cross_encoder
from rdl_core.cross_encoder import ARCHITECTURES, CrossEncoder
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.tokens import TokenStore
from rdl_core.devices import PRECISIONS, resolve_precision

PAIRS = torch.cartesian_prod(torch.arange(7), torch.arange(13))


def score(student, stores, pairs=PAIRS, *, token_budget=200, **own):
    return student.score(*stores, pairs[:, 0], pairs[:, 1], token_budget=token_budget, **own)


def cut_pairs(texts, student):
    """The pairs as two lists of text, each cut to the words that a student reads."""
    lengths = (student.query_tokens, student.passage_tokens)
    return [
        [" ".join(part[i].split()[:most]) for i in column.tolist()]
        for part, column, most in zip(texts, PAIRS.T, lengths, strict=True)
    ]


def padded_scores(model, tokenizer, pairs):
    """What plain transformers computes, all pairs in one padded batch."""
    return model(**tokenizer(*pairs, padding=True, return_tensors="pt")).logits[:, 0]


# --- packed equals padded -----------------------------------------------------------------------


def assert_packed_is_padded(stores, texts, kind, **own):
    student, twin = make_student(kind, **own), make_model(kind, **own).eval()
    with torch.no_grad():
        ours = score(student, stores)
        theirs = padded_scores(twin, student.tokenizer, cut_pairs(texts, student))
    assert ours.shape == (91,)
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_packed_scores_equal_padded_ones(kind, stores, texts):
    assert_packed_is_padded(stores, texts, kind)


def test_electra_of_the_test_has_a_projection():
    assert make_student("electra").model.base_model.embeddings_project.in_features == 12


@pytest.mark.parametrize("layers", [2, 3], ids=["the last local", "the last global"])
def test_modernbert_of_the_test_has_both_kinds_of_layer(stores, layers):
    """Its sequences are so much longer than its window that a wrong window is seen."""
    student = make_student("modernbert", layers=layers)
    types = [layer.attention_type for layer in student.model.model.layers]
    assert types == ["full_attention", "sliding_attention", "full_attention"][:layers]
    with torch.no_grad():
        scores = score(student, stores)
        for places in (4, 8, 128):
            other = make_student("modernbert", layers=layers, local_attention=places)
            assert (score(other, stores) - scores).abs().median() > 1e-3, places


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_any_number_of_layers(kind, stores, texts, layers):
    assert_packed_is_padded(stores, texts, kind, layers=layers)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_modernbert_that_takes_the_mean(stores, texts, layers):
    """As the published encoders' own configurations do."""
    assert_packed_is_padded(stores, texts, "modernbert", layers=layers, classifier_pooling="mean")


def test_modernbert_with_biases(stores, texts):
    biases = {f"{part}_bias": True for part in ("attention", "mlp", "norm", "classifier")}
    assert_packed_is_padded(stores, texts, "modernbert", layers=3, **biases)


def test_xlm_roberta_goes_roberta_s_way(stores, texts):
    assert_packed_is_padded(stores, texts, "xlm-roberta")


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("own", [{}, {"layers": 3}], ids=["2 layers", "3 layers"])
def test_packed_gradients_equal_padded_ones(kind, stores, texts, own):
    student, twin = make_student(kind, **own).train(), make_model(kind, **own).train()
    pull = torch.linspace(-1, 2, len(PAIRS))
    (score(student, stores, token_budget=100) * pull).sum().backward()
    (padded_scores(twin, student.tokenizer, cut_pairs(texts, student)) * pull).sum().backward()
    ours, theirs = gradients(student.model), gradients(twin)
    assert ours.keys() == theirs.keys() == dict(twin.named_parameters()).keys()
    assert all(gradient.abs().max() > 1e-4 for n, gradient in ours.items() if "key.bias" not in n)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-4, rtol=1e-4, msg=name)


def test_embedded_encoder_packed_equals_padded():
    torch.manual_seed(0)
    student = CrossEncoder.from_pretrained(
        encoder_path(EMBEDDED_ENCODER), query_tokens=32, passage_tokens=64
    ).eval()
    twin = AutoModelForSequenceClassification.from_config(deepcopy(student.model.config))
    twin.set_attn_implementation("sdpa")
    twin.load_state_dict(student.model.state_dict())
    texts = ["what is a mean?", "the sum of the values, over their number", "Pelé (1940-2022)"]
    stores = [TokenStore.of_texts(texts, student.tokenizer)] * 2
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    words = [[texts[i] for i in column] for column in pairs.T.tolist()]
    with torch.no_grad():
        ours = score(student, stores, pairs)
        theirs = padded_scores(twin.eval(), student.tokenizer, words)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("token_budget", [1, 37, 100_000])
def test_neither_order_nor_company_of_a_pair_matters(kind, stores, token_budget):
    student = make_student(kind)
    order = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(0))
    order = torch.cat([order, order[:5]])
    with torch.no_grad():
        alone = torch.cat([score(student, stores, pair[None]) for pair in PAIRS])
        together = score(student, stores, PAIRS[order], token_budget=token_budget)
    torch.testing.assert_close(together, alone[order], atol=1e-5, rtol=0)


# --- variable-length kernels --------------------------------------------------------------------


def plain_varlen(
    query, key, value, cu_query, cu_key, most, longest, *, scale, window_size=(-1, -1)
):
    """What `varlen_attn` computes, one sequence at a time.

    As in the kernel, the last query stands at the last key, and a window counts from there.
    """
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
        weights = (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(~seen, -torch.inf)
        attended.append(torch.einsum("hqk,khd->qhd", weights.softmax(-1), v))
    return torch.cat(attended)


@pytest.mark.parametrize("layers", [2, 3])
def test_variable_length_kernel_gets_what_it_takes(kind, layers, stores, monkeypatch):
    student, calls = make_student(kind, layers=layers), []
    with torch.no_grad():
        without = score(student, stores)

    def kernel(*args, **own):
        calls.append(own)
        return plain_varlen(*args, **own)

    for module in (attention, cross_encoder):
        monkeypatch.setattr(module, "has_varlen", lambda x: True)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    with torch.no_grad():
        torch.testing.assert_close(score(student, stores), without, atol=1e-5, rtol=0)
    assert calls
    windows = {own.get("window_size", (-1, -1)) for own in calls}
    assert windows == ({(-1, -1), (3, 3)} if (kind, layers) == ("modernbert", 3) else {(-1, -1)})


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


# --- precision and mode -------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_layers_give_float32_scores(kind, stores, train):
    """Scores rounded to bfloat16 tie by the handful; the head's own arithmetic must not round."""
    student = make_student(kind).train(train)
    exact, scores = score(student, stores), score(student, stores, precision="bfloat16")
    assert scores.dtype == torch.float32
    assert len(scores.unique()) == len(exact.unique())
    assert (scores != scores.bfloat16().float()).float().mean() > 0.9
    assert 0 < (scores - exact).abs().max() < 0.1
    scores.sum().backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())


def test_dropout_is_off_at_evaluation_and_on_in_training(kind, stores):
    student, calm = make_student(kind, dropout=0.5), make_student(kind)
    assert torch.equal(score(student, stores), score(calm, stores))
    student.train()
    assert not torch.equal(score(student, stores), score(student, stores))


def backward(student, stores, *, dropout_seed=0):
    """Gradients of a training step, and the bytes that were kept for them."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in student.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # the storage itself: its address is not used again
        return tensor

    student.zero_grad()
    torch.manual_seed(dropout_seed)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = score(student, stores, token_budget=10_000).square().sum()
    loss.backward()
    return gradients(student), sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients_for_less_memory(kind, stores, dropout):
    student = make_student(kind, dropout=dropout, layers=6).train()
    plain, plain_bytes = backward(student, stores)
    student.gradient_checkpointing(True)
    saving, saving_bytes = backward(student, stores)
    assert plain.keys() == saving.keys() == dict(student.named_parameters()).keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    assert saving_bytes < 0.4 * plain_bytes
    other, _ = backward(student, stores, dropout_seed=1)
    assert all(torch.equal(other[name], saving[name]) for name in other) == (dropout == 0)
    student.gradient_checkpointing(False)
    assert backward(student, stores)[1] == plain_bytes


def test_checkpointing_keeps_bfloat16(kind, stores):
    student = make_student(kind, layers=3).train()
    found = []
    for on in (False, True):
        student.gradient_checkpointing(on)
        student.zero_grad()
        score(student, stores, precision="bfloat16").square().sum().backward()
        found.append(gradients(student))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_scores_without_training_are_not_checkpointed(stores, monkeypatch):
    def checkpoint(*_, **__):
        raise AssertionError("a layer was checkpointed")

    monkeypatch.setattr(cross_encoder, "checkpoint", checkpoint)
    student = make_student()
    student.gradient_checkpointing(True)
    score(student, stores)
    student.train()
    with pytest.raises(AssertionError, match="was checkpointed"):
        score(student, stores)


def test_the_head_has_dropout_of_its_own(kind, stores):
    """The encoders' dropout hides the head's where both are on."""
    student = make_student(kind, dropout=0.5).train()
    student.model.base_model.eval()
    assert not torch.equal(score(student, stores), score(student, stores))


def test_resolve_precision():
    cpu = torch.device("cpu")
    assert {p: resolve_precision(p, cpu) for p in PRECISIONS} == {p: p for p in PRECISIONS}
    assert resolve_precision("auto", cpu) in PRECISIONS


# --- the head -----------------------------------------------------------------------------------

HEADS = {
    "bert": {"bert.pooler.dense", "classifier"},
    "electra": {"classifier.dense", "classifier.out_proj"},
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "modernbert": {"head.dense", "head.norm", "classifier"},
    "bert-similarity": {"classifier"},
}


def test_head_names_are_the_weights_after_the_encoder(kind):
    student = make_student(kind)
    names = student.head_names()
    assert {name.rpartition(".")[0] for name in names} == HEADS[kind]
    weights = dict(student.model.named_parameters())
    assert names < weights.keys()
    bare = type(student.model.base_model)(student.model.config)
    drawn = {f"{student.model.base_model_prefix}.{name}" for name, _ in bare.named_parameters()}
    assert names >= weights.keys() - drawn


def test_a_similarity_starts_as_the_encoder_s_own_states_have_it(stores, texts, tmp_path):
    """Before any training: the cosine of the means over query and passage, read together."""
    make_student("bert").save_pretrained(tmp_path)
    lengths = {"query_tokens": 5, "passage_tokens": 20}
    student = CrossEncoder.from_pretrained(tmp_path, **lengths, head="similarity").eval()
    bare = make_model("bert").bert.eval()
    queries, passages = cut_pairs(texts, student)
    wanted = []
    for query, passage in zip(queries, passages, strict=True):
        inputs = student.tokenizer(query, passage, return_tensors="pt")
        with torch.no_grad():
            states = bare(**inputs).last_hidden_state[0]
        of_query = inputs["token_type_ids"][0] == 0
        means = states[of_query].mean(0), torch.cat([states[:1], states[~of_query]]).mean(0)
        wanted.append(20 * torch.cosine_similarity(*means, dim=0))
    with torch.no_grad():
        found = score(student, stores)
    assert found.std() > 0.1
    torch.testing.assert_close(found, torch.stack(wanted), atol=2e-4, rtol=0)
    student.save_pretrained(tmp_path / "again")
    again = CrossEncoder.from_pretrained(tmp_path / "again", **lengths).eval()
    with torch.no_grad():
        torch.testing.assert_close(score(again, stores), found)


@pytest.mark.parametrize(
    ("kind", "head", "says"),
    [
        ("electra", "similarity", "expected an encoder of type bert.*got 'electra'"),
        ("bert", "pooled", "head: expected one of own, similarity; got 'pooled'"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(kind, head, says, tmp_path):
    make_student(kind).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=says):
        CrossEncoder.from_pretrained(tmp_path, query_tokens=5, passage_tokens=20, head=head)


# --- folders ------------------------------------------------------------------------------------


def test_saved_folder_gives_the_same_scores_everywhere(kind, stores, texts, tmp_path):
    student = make_student(kind)
    student.save_pretrained(tmp_path)
    with torch.no_grad():
        ours = score(student, stores)
    assert ((ours < 0) | (ours > 1)).any()  # logits: a sigmoid on top would be seen
    pairs = cut_pairs(texts, student)
    plain, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(loading.values())
    with torch.no_grad():
        theirs = padded_scores(plain.eval(), AutoTokenizer.from_pretrained(tmp_path), pairs)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    model = TheirCrossEncoder(str(tmp_path), device="cpu", trust_remote_code=False)
    theirs = model.predict(
        list(zip(*pairs, strict=True)), convert_to_tensor=True, show_progress_bar=False
    )
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    again = CrossEncoder.from_pretrained(tmp_path, query_tokens=5, passage_tokens=20).eval()
    with torch.no_grad():
        torch.testing.assert_close(score(again, stores), ours, atol=1e-6, rtol=0)


def test_saved_folder_holds_no_pickle_and_nothing_of_ours(kind, tmp_path):
    make_student(kind).save_pretrained(tmp_path)
    suffixes = {path.suffix for path in tmp_path.iterdir()}
    own_code = kind == "bert-similarity"
    assert suffixes == {".json", ".safetensors"} | ({".py"} if own_code else set())
    texts = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert "rdl" not in texts
    assert ("auto_map" in texts) == own_code


def test_pickled_weights_and_code_beside_a_model_are_left_alone(tmp_path):
    student = make_student()
    student.save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    lengths = {"query_tokens": 5, "passage_tokens": 20}
    CrossEncoder.from_pretrained(tmp_path, **lengths)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "model.safetensors").unlink()
    torch.save(student.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        CrossEncoder.from_pretrained(tmp_path, **lengths)


# --- errors -------------------------------------------------------------------------------------


def build(model=None, tokenizer=None, query_tokens=5, passage_tokens=20):
    model = model or make_model("bert")
    tokenizer = tokenizer or make_tokenizer("bert")
    return CrossEncoder(
        model, tokenizer, query_tokens=query_tokens, passage_tokens=passage_tokens
    )


def test_other_architectures_are_refused():
    sizes = {"vocab_size": 9, "dim": 8, "n_layers": 1, "n_heads": 1, "hidden_dim": 8}
    config = DistilBertConfig(**sizes, num_labels=1)
    with pytest.raises(ValueError, match="got 'distilbert'") as error:
        build(model=DistilBertForSequenceClassification(config))
    assert all(name in str(error.value) for name in ARCHITECTURES)


def test_several_outputs_are_refused():
    with pytest.raises(ValueError, match="got 2 outputs: load it with num_labels=1"):
        build(model=make_model("bert", num_labels=2))


def test_tokenizer_s_own_limit_holds_where_it_is_the_smaller_one():
    tokenizer = make_tokenizer("bert")
    tokenizer.model_max_length = 30
    build(tokenizer=tokenizer, query_tokens=7)
    with pytest.raises(ValueError, match="at most 30 tokens .* are 31: lower"):
        build(tokenizer=tokenizer, query_tokens=8)


def test_lengths_past_the_encoder_are_refused():
    build(query_tokens=41, passage_tokens=20)  # with [CLS] and twice [SEP] just 64
    with pytest.raises(ValueError, match="at most 64 tokens .* are 65: lower"):
        build(query_tokens=42, passage_tokens=20)


def test_lengths_past_the_position_table_are_refused_whatever_the_tokenizer_says(kind):
    """Many tokenizers name no limit; a long pair then failed only in the middle of a training."""
    tokenizer = make_tokenizer(kind)
    tokenizer.model_max_length = 10**30
    room = 64 - tokenizer.num_special_tokens_to_add(pair=True)
    build(make_model(kind), tokenizer, query_tokens=room - 20)
    with pytest.raises(ValueError, match="at most 64 tokens"):
        build(make_model(kind), tokenizer, query_tokens=room - 19)
