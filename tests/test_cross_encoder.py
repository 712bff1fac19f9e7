"""The student: packed scores and gradients are the padded ones, here and wherever it is loaded.

MUTATIONS
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

from rdl_core.cross_encoder import ARCHITECTURES, CrossEncoder
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.data.tokens import TokenStore
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


def test_packed_scores_equal_padded_ones(kind, stores, texts):
    student, twin = make_student(kind), make_model(kind).eval()
    with torch.no_grad():
        ours = score(student, stores)
        theirs = padded_scores(twin, student.tokenizer, cut_pairs(texts, student))
    assert ours.shape == (91,)
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_electra_of_the_test_has_a_projection():
    assert make_student("electra").model.base_model.embeddings_project.in_features == 12


@pytest.mark.parametrize("layers", [1, 3])
def test_any_number_of_layers(stores, texts, layers):
    student, twin = make_student(layers=layers), make_model("bert", layers=layers).eval()
    with torch.no_grad():
        ours = score(student, stores)
        theirs = padded_scores(twin, student.tokenizer, cut_pairs(texts, student))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_packed_gradients_equal_padded_ones(kind, stores, texts):
    student, twin = make_student(kind).train(), make_model(kind).train()
    pull = torch.linspace(-1, 2, len(PAIRS))
    (score(student, stores, token_budget=100) * pull).sum().backward()
    (padded_scores(twin, student.tokenizer, cut_pairs(texts, student)) * pull).sum().backward()
    ours, theirs = (
        {n: p.grad for n, p in m.named_parameters() if p.grad is not None}
        for m in (student.model, twin)
    )
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


def test_resolve_precision():
    cpu = torch.device("cpu")
    assert {p: resolve_precision(p, cpu) for p in PRECISIONS} == {p: p for p in PRECISIONS}
    assert resolve_precision("auto", cpu) in PRECISIONS


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
    assert suffixes == {".json", ".safetensors"}
    texts = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert "rdl" not in texts
    assert "auto_map" not in texts


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
    config = DistilBertConfig(vocab_size=9, dim=8, n_layers=1, n_heads=1, hidden_dim=8, num_labels=1)
    with pytest.raises(ValueError, match="got 'distilbert'") as error:
        build(model=DistilBertForSequenceClassification(config))
    assert all(name in str(error.value) for name in ARCHITECTURES)


def test_several_outputs_are_refused():
    with pytest.raises(ValueError, match="got 2 outputs: load it with num_labels=1"):
        build(model=make_model("bert", num_labels=2))


def test_lengths_past_the_encoder_are_refused():
    build(query_tokens=41, passage_tokens=20)  # with [CLS] and twice [SEP] just 64
    with pytest.raises(ValueError, match="at most 64 tokens .* are 65: lower"):
        build(query_tokens=42, passage_tokens=20)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_lengths_past_the_position_table_are_refused_whatever_the_tokenizer_says(kind):
    """Many tokenizers name no limit; a long pair then failed only in the middle of a training."""
    tokenizer = make_tokenizer(kind)
    tokenizer.model_max_length = 10**30
    room = 64 - tokenizer.num_special_tokens_to_add(pair=True)
    build(make_model(kind), tokenizer, query_tokens=room - 20)
    with pytest.raises(ValueError, match="at most 64 tokens"):
        build(make_model(kind), tokenizer, query_tokens=room - 19)
