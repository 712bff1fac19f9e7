"""Pseudo-queries: cut from their own passage, the same ones everywhere, never empty words alone."""

import subprocess
import sys

import pandas as pd
import pytest
from bm25s.stopwords import STOPWORDS_EN_PLUS
from hypothesis import given
from hypothesis import strategies as st

from rdl_core.data.crops import crops

WORDS = ["Fox", "the", "of", "river", "runs.", "is", "blue;", "whale's", "sings", "(deep)", "a"]


def frame(*texts):
    ids = [f"d{number}" for number in range(len(texts))]
    return pd.DataFrame({"doc_id": ids, "text": list(texts)}, dtype="str")


@given(st.lists(st.sampled_from(WORDS), max_size=40))
def test_a_crop_is_some_words_in_a_row_of_one_sentence(words):
    text = " ".join(words)
    for query in crops(frame(text))["query"]:
        bare = "".join(c for c in text.lower() if c.isalnum() or c in "' -")
        assert f" {query} " in f" {bare} "
        found = query.split()
        assert 2 <= len(found) <= 9
        assert found[0] not in STOPWORDS_EN_PLUS
        assert found[-1] not in STOPWORDS_EN_PLUS


def test_another_process_cuts_the_same():
    """Python's own hash of a text differs between processes; a crop must not."""
    text = "red foxes hunt small mice in the snow while blue whales sing under the ice all winter"
    code = (
        "import pandas as pd; from rdl_core.data.crops import crops; "
        f"print(crops(pd.DataFrame({{'doc_id': ['d0'], 'text': [{text!r}]}}))['query'][0])"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == crops(frame(text))["query"][0]


def test_passages_draw_for_themselves():
    text = "red foxes hunt small mice in the snow while blue whales sing under the ice all winter"
    both, alone = crops(frame(text, text)), crops(frame(text))
    assert both["query"][0] == alone["query"][0]
    many = crops(frame(*[text] * 30))["query"]
    assert many.nunique() > 10


@pytest.mark.parametrize(("fewest", "most"), [(0, 3), (5, 4)])
def test_impossible_lengths_are_refused(fewest, most):
    with pytest.raises(ValueError, match="expected 1 <= fewest <= most"):
        crops(frame("a b c"), fewest=fewest, most=most)
