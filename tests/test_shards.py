"""Shards become the whole, or are refused by name."""

from pathlib import Path

import pytest

from rdl_tools.shards import in_turn, whole


def test_shards_come_together_in_the_order_in_which_they_were_dealt():
    queries = [f"q{i}" for i in range(11)]
    assert in_turn([queries[i::3] for i in range(3)]) == queries
    identities = {Path(f"{n}"): {"depth": 9, "shard": [n, 3]} for n in (3, 1, 2)}
    assert whole(identities) == {"depth": 9, "shard": [1, 1]}


@pytest.mark.parametrize(("identities", "telling"), [
    ([{"shard": [1, 2]}], r"got \[1\] of 2; missing: 2/2: .*--shard"),
    ([{"shard": [3, 3]}], "missing: 1/3, 2/3"),
    ([{"shard": [1, 1]}] * 2, r"once, got \[1, 1\] of 1; missing: none"),
    ([{"shard": [1, 2]}, {"shard": [2, 3]}], r"1 was made .* than 0: shard is \[1, 3\], not \[1, 2\]"),
    ([{"shard": [1, 2], "x": 1}, {"shard": [2, 2]}], "configuration than 0: x is None, not 1"),
])  # fmt: skip
def test_shards_that_do_not_belong_together_are_refused(identities, telling):
    with pytest.raises(ValueError, match=telling):
        whole({Path(str(i)): identity for i, identity in enumerate(identities)})
