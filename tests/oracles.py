"""Slow, plain-Python definitions to test the tensor code against.

Losses: every oracle takes the real passages of one list as two lists of floats, ``s`` (scores) and
``t`` (targets), and loops. None imports torch or shares code with ``rdl_core``.
"""

import math


def batch_losses(name, scores, targets, mask, **own):
    """Loss of each list, and whether it counts in the mean."""
    losses, counts = [], []
    for row, goals, real in zip(scores, targets, mask, strict=True):
        s = [x for x, keep in zip(row, real, strict=True) if keep]
        t = [x for x, keep in zip(goals, real, strict=True) if keep]
        counts.append(len(set(t)) > 1)
        losses.append(LOSS_ORACLES[name](s, t, **own) if counts[-1] else 0.0)
    return losses, counts


def average_ranks(values):
    """1-based ranks, highest value first; tied values share the mean of their positions."""
    order = sorted(values, reverse=True)
    places = {v: [k + 1 for k, w in enumerate(order) if w == v] for v in values}
    return [sum(places[v]) / len(places[v]) for v in values]


def pessimistic_ranks(s, t):
    """1-based ranks by score; among equal scores the worst target comes first."""
    order = sorted(zip(s, t, strict=True), key=lambda pair: (-pair[0], pair[1]))
    places = {pair: [k + 1 for k, other in enumerate(order) if other == pair] for pair in order}
    return [sum(places[pair]) / len(places[pair]) for pair in zip(s, t, strict=True)]


def smooth_ranks(s, temperature):
    return [
        1 + sum(1 / (1 + math.exp(-(s[j] - s[i]) / temperature)) for j in range(len(s)) if j != i)
        for i in range(len(s))
    ]


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def better_pairs(t):
    return [(i, j) for i in range(len(t)) for j in range(len(t)) if t[i] > t[j]]


def positive_places(t, which):
    if which == "best":
        return [i for i in range(len(t)) if t[i] == max(t)]
    return [i for i in range(len(t)) if t[i] > min(t)]


def gain_function(gain):
    return {"exp2": lambda t: 2 ** max(t, 0) - 1, "linear": lambda t: max(t, 0)}[gain]


def ideal_dcg(t, gain):
    best = sorted((gain_function(gain)(x) for x in t), reverse=True)
    return sum(g / math.log2(k + 2) for k, g in enumerate(best))


def mean(values):
    return sum(values) / len(values)


def ranknet(s, t, weighting="uniform"):
    p, logs = average_ranks(t), {(i, j): math.log(1 + math.exp(s[j] - s[i])) for i, j in better_pairs(t)}
    if weighting == "inverse_rank_sum":
        logs = {(i, j): log / (p[i] + p[j]) for (i, j), log in logs.items()}
    return mean(logs.values())


def margin_mse(s, t, margin=None):
    wanted = [t[i] - t[j] if margin is None else margin for i, j in better_pairs(t)]
    return mean([(s[i] - s[j] - m) ** 2 for (i, j), m in zip(better_pairs(t), wanted, strict=True)])


def hinge(s, t, comparison="pairwise", margin=1.0, positives="best"):
    if comparison == "pairwise":
        return mean([max(0.0, margin - (s[i] - s[j])) for i, j in better_pairs(t)])
    good = positive_places(t, positives)
    return mean([max(0.0, margin - (x if i in good else -x)) for i, x in enumerate(s)])


def bce(s, t, positives="best"):
    good = positive_places(t, positives)
    chance = [1 / (1 + math.exp(-x)) for x in s]
    return mean([-math.log(p if i in good else 1 - p) for i, p in enumerate(chance)])


def lambda_loss(s, t, weighting="ndcg2pp", gain="exp2", mu=10.0, scale=1.0):
    ideal = ideal_dcg(t, gain)
    g = [gain_function(gain)(x) / ideal if ideal > 0 else 0.0 for x in t]
    r = pessimistic_ranks(s, t)
    terms = []
    for i in range(len(t)):
        for j in range(len(t)):
            if i == j or (weighting not in ("ndcg1", "arp1") and not t[i] > t[j]):
                continue
            swap = abs(1 / math.log2(1 + r[i]) - 1 / math.log2(1 + r[j])) * abs(g[i] - g[j])
            far = max(abs(r[i] - r[j]), 1)  # < 1 only for exact duplicates, which weigh 0
            near = (1 / math.log2(1 + far) - 1 / math.log2(2 + far)) * abs(g[i] - g[j])
            weight = {
                "lambdarank": swap, "ndcg1": g[i] / math.log2(1 + r[i]), "ndcg2": near,
                "ndcg2pp": swap + mu * near, "arp1": max(t[i], 0), "arp2": abs(t[i] - t[j]),
            }[weighting]
            terms.append(weight * math.log2(1 + math.exp(-scale * (s[i] - s[j]))))
    return mean(terms)


def info_nce(s, t, positives="best", temperature=1.0):
    good = positive_places(t, positives)
    bad = sum(math.exp(s[j] / temperature) for j in range(len(s)) if j not in good)
    own = [math.exp(s[i] / temperature) for i in good]
    return mean([-math.log(e / (e + bad)) for e in own])


def listnet(s, t, distribution="targets", temperature=1.0):
    p = softmax(t if distribution == "targets" else [1 / r for r in average_ranks(t)])
    q = softmax([x / temperature for x in s])
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def kl_div(s, t, temperature=1.0):
    p, q = softmax([x / temperature for x in t]), softmax([x / temperature for x in s])
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _choices(s, t):
    """-log of the chance of each passage against the strictly worse ones."""
    chances = []
    for i in range(len(s)):
        worse = sum(math.exp(s[j]) for j in range(len(s)) if t[j] < t[i])
        chances.append(-math.log(math.exp(s[i]) / (math.exp(s[i]) + worse)))
    return chances


def list_mle(s, t):
    return sum(_choices(s, t))


def p_list_mle(s, t):
    alpha = [2 ** (len(t) - p) - 1 for p in average_ranks(t)]
    return sum(a / sum(alpha) * c for a, c in zip(alpha, _choices(s, t), strict=True))


def adr_mse(s, t, discount="log2", temperature=1.0):
    divide = {"log2": lambda p: math.log2(p + 1), "reciprocal": lambda p: p, "none": lambda p: 1}[discount]
    pairs = zip(average_ranks(t), smooth_ranks(s, temperature), strict=True)
    return mean([(p - r) ** 2 / divide(p) for p, r in pairs])


def approx_ndcg(s, t, gain="exp2", temperature=1.0):
    if ideal_dcg(t, gain) == 0:
        return 0.0
    ranks = smooth_ranks(s, temperature)
    dcg = sum(gain_function(gain)(x) / math.log2(1 + r) for x, r in zip(t, ranks, strict=True))
    return 1 - dcg / ideal_dcg(t, gain)


def approx_mrr(s, t, positives="best", temperature=1.0):
    ranks = smooth_ranks(s, temperature)
    return 1 - 1 / min(ranks[i] for i in positive_places(t, positives))


def relaxed_permutation(s, temperature, sinkhorn_steps):
    """NeuralSort with alternate scaling of columns and rows, in plain probabilities."""
    n = len(s)
    spread = [sum(abs(a - b) for b in s) for a in s]
    p = [
        softmax([((n + 1 - 2 * k) * s[i] - spread[i]) / temperature for i in range(n)])
        for k in range(1, n + 1)
    ]
    for _ in range(sinkhorn_steps):
        columns = [sum(row[i] for row in p) for i in range(n)]
        p = [[row[i] / columns[i] for i in range(n)] for row in p]
        p = [[x / sum(row) for x in row] for row in p]
    return p


def neural_ndcg(s, t, gain="exp2", temperature=1.0, sinkhorn_steps=10):
    if ideal_dcg(t, gain) == 0:
        return 0.0
    dcg = 0.0
    for k, row in enumerate(relaxed_permutation(s, temperature, sinkhorn_steps)):
        at_k = sum(w * gain_function(gain)(x) for w, x in zip(row, t, strict=True))
        dcg += at_k / math.log2(k + 2)
    return 1 - dcg / ideal_dcg(t, gain)


LOSS_ORACLES = {
    oracle.__name__: oracle
    for oracle in (
        ranknet, adr_mse, info_nce, listnet, list_mle, p_list_mle, lambda_loss, approx_ndcg, approx_mrr,
        neural_ndcg, margin_mse, kl_div, bce, hinge,
    )
}  # fmt: skip
