"""Slow, plain-Python definitions of the losses to test the tensor code against.

Every oracle takes the real passages of one list as two lists of floats, ``s`` (scores) and ``t``
(targets), and loops. None imports torch or shares code with ``rdl_core``.
"""

import math
from statistics import fmean


def average_ranks(values):
    """1-based ranks, highest value first; tied values share the mean of their positions."""
    order = sorted(values, reverse=True)
    places = {v: [k + 1 for k, w in enumerate(order) if w == v] for v in values}
    return [sum(places[v]) / len(places[v]) for v in values]


def smooth_ranks(s, temperature):
    """1-based; every passage counts half for itself."""
    return [0.5 + sum(1 / (1 + math.exp((x - y) / temperature)) for y in s) for x in s]


def softmax(values, temperature=1.0):
    total = sum(math.exp(v / temperature) for v in values)
    return [math.exp(v / temperature) / total for v in values]


def better_pairs(t):
    return [(i, j) for i in range(len(t)) for j in range(len(t)) if t[i] > t[j]]


def positive_places(t, which):
    return [i for i in range(len(t)) if (t[i] == max(t) if which == "best" else t[i] > min(t))]


def gains(t, gain):
    raw = [2 ** max(x, 0) - 1 if gain == "exp2" else max(x, 0) for x in t]
    ideal = sum(g / math.log2(k + 2) for k, g in enumerate(sorted(raw, reverse=True)))
    return [g / ideal if ideal else 0.0 for g in raw]


def ranknet(s, t, weighting="uniform"):
    p, pairs = average_ranks(t), better_pairs(t)
    weights = [1 / (p[i] + p[j]) if weighting == "inverse_rank_sum" else 1 for i, j in pairs]
    losses = [math.log(1 + math.exp(s[j] - s[i])) for i, j in pairs]
    return fmean([w * loss for w, loss in zip(weights, losses, strict=True)])


def margin_mse(s, t, margin=None):
    return fmean([(s[i] - s[j] - (margin or t[i] - t[j])) ** 2 for i, j in better_pairs(t)])


def bce(s, t, positives="best"):
    good, chance = positive_places(t, positives), [1 / (1 + math.exp(-x)) for x in s]
    return fmean([-math.log(p if i in good else 1 - p) for i, p in enumerate(chance)])


def lambda_loss(s, t, weighting="ndcg2pp", gain="exp2", mu=10.0, scale=1.0):
    g, terms = gains(t, gain), []
    r = average_ranks([(score, -worth) for score, worth in zip(s, t, strict=True)])  # ties: worst first
    every = [(i, j) for i in range(len(t)) for j in range(len(t)) if i != j]
    for i, j in every if weighting in ("ndcg1", "arp1") else better_pairs(t):
        swap = abs(1 / math.log2(1 + r[i]) - 1 / math.log2(1 + r[j])) * abs(g[i] - g[j])
        far = max(abs(r[i] - r[j]), 1)  # < 1 only for exact duplicates, which weigh 0
        near = (1 / math.log2(1 + far) - 1 / math.log2(2 + far)) * abs(g[i] - g[j])
        weight = {
            "lambdarank": swap, "ndcg1": g[i] / math.log2(1 + r[i]), "ndcg2": near,
            "ndcg2pp": swap + mu * near, "arp1": max(t[i], 0), "arp2": abs(t[i] - t[j]),
        }[weighting]  # fmt: skip
        terms.append(weight * math.log2(1 + math.exp(-scale * (s[i] - s[j]))))
    return fmean(terms)


def info_nce(s, t, positives="best", temperature=1.0):
    good, e = positive_places(t, positives), [math.exp(x / temperature) for x in s]
    bad = sum(e[j] for j in range(len(s)) if j not in good)
    return fmean([-math.log(e[i] / (e[i] + bad)) for i in good])


def listnet(s, t, distribution="targets", temperature=1.0):
    p = softmax(t if distribution == "targets" else [1 / r for r in average_ranks(t)])
    return -sum(a * math.log(b) for a, b in zip(p, softmax(s, temperature), strict=True))


def kl_div(s, t, temperature=1.0):
    p, q = softmax(t, temperature), softmax(s, temperature)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def choice_losses(s, t):
    """-log of the chance of each passage against the strictly worse ones."""
    lists = list(zip(s, t, strict=True))
    worse = [sum(math.exp(x - y) for x, target in lists if target < limit) for y, limit in lists]
    return [math.log(1 + others) for others in worse]


def list_mle(s, t):
    return sum(choice_losses(s, t))


def p_list_mle(s, t):
    alpha = [2 ** (len(t) - p) - 1 for p in average_ranks(t)]
    return sum(a / sum(alpha) * loss for a, loss in zip(alpha, choice_losses(s, t), strict=True))


def adr_mse(s, t, discount="log2", temperature=1.0):
    pairs = zip(average_ranks(t), smooth_ranks(s, temperature), strict=True)
    divisors = {"log2": lambda p: math.log2(p + 1), "reciprocal": lambda p: p, "none": lambda p: 1}
    return fmean([(p - r) ** 2 / divisors[discount](p) for p, r in pairs])


def approx_ndcg(s, t, gain="exp2", temperature=1.0):
    g, ranks = gains(t, gain), smooth_ranks(s, temperature)
    return any(g) - sum(x / math.log2(1 + r) for x, r in zip(g, ranks, strict=True))


def approx_mrr(s, t, positives="best", temperature=1.0):
    ranks = smooth_ranks(s, temperature)
    return 1 - 1 / min(ranks[i] for i in positive_places(t, positives))


def neural_ndcg(s, t, gain="exp2", temperature=1.0, sinkhorn_steps=10):
    """NeuralSort with alternate scaling of columns and rows, in plain probabilities."""
    n, g = len(s), gains(t, gain)
    spread = [sum(abs(a - b) for b in s) for a in s]
    p = [softmax([k * x - y for x, y in zip(s, spread, strict=True)], temperature)
         for k in range(n - 1, -n, -2)]  # fmt: skip
    for _ in range(sinkhorn_steps):
        columns = [sum(column) for column in zip(*p, strict=True)]
        p = [[x / total for x, total in zip(row, columns, strict=True)] for row in p]
        p = [[x / sum(row) for x in row] for row in p]
    gain_at = [sum(w * x for w, x in zip(row, g, strict=True)) for row in p]
    return any(g) - sum(x / math.log2(k + 2) for k, x in enumerate(gain_at))
