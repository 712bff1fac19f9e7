"""A student in PyTerrier's pipelines: ``bm25 >> pt.text.get_text(index) >> Reranker("student")``.

Reference: Macdonald et al., CIKM 2021 (PyTerrier).
"""

from pathlib import Path

import pandas as pd
import pyterrier as pt

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.devices import default_device, resolve_precision
from rdl_core.evaluate import settle_ties
from rdl_core.rerank import rerank
from rdl_core.tokens import TokenCorpus
from rdl_tools.adopt import adopted_of

__all__ = ["Reranker"]


class Reranker(pt.Transformer):
    """Gives results the student's scores; takes ``qid, query, docno`` and a column of texts.

    Where they bring the first stage's ``score``, what `rdl adopt` chose counts, unless `plain`. Other
    columns stay. ValueError for no trained student; an error of PyTerrier's for missing columns.
    """

    def __init__(
        self, student: str | Path, *, text_field: str = "text", precision: str = "auto",
        plain: bool = False,
    ) -> None:  # fmt: skip
        self.student = CrossEncoder.from_pretrained(student, trained=True).to(default_device())
        self.text_field, self.precision = text_field, resolve_precision(precision, self.student.device)
        self.adopted = None if plain else adopted_of(student)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Results by score, best first; ``rank`` counts from 0, as PyTerrier's does."""
        pt.validate.result_frame(inp, extra_columns=["query", self.text_field])
        if inp.empty:  # PyTerrier asks for the columns in this way
            return inp.assign(score=0.0, rank=0)
        # Each row is a passage of its own: an index may give one docno several texts.
        frame = pd.DataFrame({
            "query_id": inp["qid"].astype(str), "query": inp["query"],
            "doc_id": [*map(str, range(len(inp)))], "text": inp[self.text_field],
        })  # fmt: skip
        scores = inp.get("score", pd.Series(0.0, inp.index))  # without any, rows are in order
        ranks = scores.groupby(frame["query_id"]).rank(ascending=False, method="first")
        frame = frame.assign(score=scores, rank=ranks.astype(int))
        tokens = TokenCorpus.of(frame.drop_duplicates("query_id"), frame, self.student.tokenizer)
        own, options = (self.student, frame, tokens), {"precision": self.precision}
        if self.adopted and "score" in inp:
            run = self.adopted.rerank(*own, **options)
        else:
            run = settle_ties(rerank(*own, **options), frame)
        rows = inp.drop(columns=["score", "rank"], errors="ignore").iloc[run["doc_id"].astype(int)]
        return pt.model.add_ranks(rows.reset_index(drop=True).assign(score=run["score"]))
