"""examples/similarity_head.py: an architecture registered from outside trains, scores and is saved."""

from pathlib import Path

import pytest
import torch
from common import PASSAGES, QUERIES, make_candidates, make_model, make_student, module_of
from test_rerank import CORPUS
from transformers import AutoModelForSequenceClassification

from rdl_core.cpu import engine
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.distill import StageConfig, distill
from rdl_core.lists import RankedLists, rows_of

example = module_of(Path(__file__).parents[1] / "examples" / "similarity_head.py")
LIMITS, FRAME = {"query_tokens": 8, "passage_tokens": 30}, make_candidates()
IDS = ("query_id", CORPUS.query_ids), ("doc_id", CORPUS.doc_ids)
ROWS = [torch.tensor(rows_of(FRAME[name], ids, name)) for name, ids in IDS]


@pytest.fixture
def student(tmp_path):
    """Starts from an encoder with a head of its own, which is not used."""
    make_student("bert").save_pretrained(tmp_path / "encoder")
    return example.from_bi_encoder(tmp_path / "encoder", scale=2.0, **LIMITS).eval()


def score(scorer):
    with torch.no_grad():
        return scorer.score(CORPUS.queries, CORPUS.passages, *ROWS, token_budget=100)


def inputs(student):
    texts = FRAME["query_id"].map(QUERIES).tolist(), FRAME["doc_id"].map(PASSAGES).tolist()
    return student.tokenizer(*texts, padding=True, return_tensors="pt")


def test_before_training_the_score_is_the_cosine_of_the_two_means(student):
    """Of the encoder's own states; [CLS] counts for both texts."""
    batch = inputs(student)
    with torch.no_grad():
        states = make_model("bert").bert.eval()(**batch).last_hidden_state
    expected = []
    masks = batch["attention_mask"].bool(), batch["token_type_ids"].bool()
    for row, mask, passage in zip(states, *masks, strict=True):
        means = row[mask & ~passage].mean(0), torch.cat([row[:1], row[mask & passage]]).mean(0)
        expected.append(2 * torch.cosine_similarity(*means, dim=0))
    scores = score(student)
    assert scores.std() > 0.05
    torch.testing.assert_close(scores, torch.stack(expected), atol=1e-5, rtol=0)


def test_two_steps_train_it_and_the_saved_folder_scores_packed_as_padded(student, tmp_path):
    before = score(student)
    lists = RankedLists.from_frame(FRAME.assign(teacher_rank=10 - FRAME["rank"]), CORPUS)
    stage = StageConfig(steps=2, queries_per_step=3, list_size=4, learning_rate=1e-3)
    distill(student, lists, stage, seed=0, folder=tmp_path / "own")
    assert student.model.classifier.weight.abs().max() > 5e-4  # it was zero
    trained = score(student)
    assert (trained - before).abs().max() > 1e-3
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "own" / "model").eval()
    with torch.no_grad():
        padded = plain(**inputs(student)).logits[:, 0]
    torch.testing.assert_close(trained, padded, atol=1e-5, rtol=0)
    again = CrossEncoder.from_pretrained(tmp_path / "own", trained=True).eval()
    assert (again.query_tokens, again.passage_tokens) == (8, 30)
    torch.testing.assert_close(score(again), trained)
    torch.testing.assert_close(score(engine(again, "float32")), trained, atol=1e-4, rtol=0)


def test_another_encoder_is_refused(tmp_path):
    make_student("electra").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected an encoder of type bert, got 'electra'"):
        example.from_bi_encoder(tmp_path, **LIMITS)
