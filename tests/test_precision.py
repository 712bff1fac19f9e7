"""What precisions cost: means and differences of the right queries.

Seen to fail: queries of two collections with the same id taken for one; the difference the other way
round; a table over all where there is one collection.
"""

import pandas as pd
import pytest

from rdl_study.bench.precision import precision_table


def values(rows):
    return pd.DataFrame(rows, columns=["collection", "precision", "query_id", "nDCG@10"])


@pytest.fixture
def two():
    """The same ids in both collections; int8 loses 0.1 in the one and gains 0.3 in the other."""
    rows = [
        (collection, precision, query, value + (change if precision == "int8" else 0))
        for collection, change in (("a", -0.1), ("b", 0.3))
        for precision in ("float32", "int8")
        for query, value in (("1", 0.2), ("2", 0.6))
    ]
    return precision_table(values(rows)).set_index(["queries of", "precision"])


def test_each_collection_and_all_together(two):
    assert two["n"].to_dict() == {
        (name, precision): n
        for name, n in (("a", 2), ("b", 2), ("all", 4))
        for precision in ("float32", "int8")
    }
    assert two["difference"].xs("int8", level=1).tolist() == ["-0.1000", "+0.3000", "+0.1000"]
    assert two["nDCG@10"].tolist() == ["0.4000", "0.3000", "0.4000", "0.7000", "0.4000", "0.5000"]


def test_intervals_hold_the_difference(two):
    low, high = map(float, two.loc[("all", "int8"), "95 % interval"].split(" to "))
    assert -0.1 <= low < 0.1 < high <= 0.3
    assert two.loc[("a", "int8"), "95 % interval"] == "-0.1000 to -0.1000"


def test_one_collection_has_no_table_over_all():
    rows = [("a", p, q, 0.5) for p in ("float32", "bfloat16") for q in "12"]
    assert precision_table(values(rows))["queries of"].tolist() == ["a", "a"]
