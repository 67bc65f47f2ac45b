"""AWRS here and in genlm-control on the same distributions: weights, tokens drawn, questions, times.

Usage: compare.py OURS.json TOYS.json [DRAWS]

OURS.json is what `cargo run --release -p tessera-methods --example awrs` prints. A row fails if the two
mean weights differ by more than four standard errors, if either differs from the exact mass by as
much, or if the tokens drawn differ by a chi-square test at one in a thousand over all rows together.
"""

import asyncio
import json
import math
import sys
import time

import numpy as np
from genlm.control import AWRS, Potential
from scipy.stats import chi2_contingency, chisquare


class Toy(Potential):
    """The next token of any text has these probabilities; a text never ends."""

    def __init__(self, vocabulary, p):
        super().__init__(vocabulary)
        self.weights = np.array([*np.log(p), -np.inf])

    async def prefix(self, context):
        return 0.0

    async def complete(self, context):
        return -np.inf

    async def logw_next(self, context):
        return self.make_lazy_weights(self.weights)


class Listed(Potential):
    """Allows the listed tokens; counts the questions."""

    def __init__(self, vocabulary, allowed):
        super().__init__(vocabulary)
        self.allowed = allowed
        self.questions = 0

    async def prefix(self, context):
        self.questions += 1
        return 0.0 if not context or context[-1] in self.allowed else -np.inf

    async def complete(self, context):
        self.questions += 1
        return -np.inf


async def theirs(toy, draws):
    """Mean weight, its standard error, counts of tokens, questions a draw, seconds."""
    vocabulary = [b"t%d" % i for i in range(len(toy["p"]))]
    condition = Listed(vocabulary, {vocabulary[i] for i in toy["allowed"]})
    sampler = AWRS(Toy(vocabulary, toy["p"]), condition, seed=1, autobatch=False)
    weights, counts = [], [0] * len(vocabulary)
    start = time.perf_counter()
    for _ in range(draws):
        token, log_weight, _ = await sampler.sample([])
        weights.append(math.exp(log_weight))
        if log_weight > -math.inf:
            counts[vocabulary.index(token)] += 1
    seconds = time.perf_counter() - start
    weights = np.array(weights)
    error = weights.std() / math.sqrt(draws)
    return weights.mean(), error, counts, condition.questions / draws, seconds


def same_law(one, other):
    """The probability that two samples of one law differ as much as these."""
    table = np.array([[a, b] for a, b in zip(one, other) if a + b > 0]).T
    return 1.0 if table.shape[1] < 2 else chi2_contingency(table).pvalue


def has_law(counts, law):
    """The probability that a sample of `law` differs from it as much as this one."""
    pairs = [(c, q) for c, q in zip(counts, law) if q > 0]
    if any(c for c, q in zip(counts, law) if q == 0):
        return 0.0
    if len(pairs) < 2:
        return 1.0
    n = sum(counts)
    return chisquare([c for c, _ in pairs], [n * q for _, q in pairs]).pvalue


def main():
    ours = json.load(open(sys.argv[1]))
    toys = {toy["name"]: toy for toy in json.load(open(sys.argv[2]))}
    draws = int(sys.argv[3]) if len(sys.argv) > 3 else 4000
    peers = {name: asyncio.run(theirs(toy, draws)) for name, toy in toys.items()}
    level = 1e-3 / (2 * len(ours))
    faults = 0
    print(f"{'toy':<18}{'form':<11}{'Z':>8}{'ours':>18}{'genlm-control':>18}"
          f"{'p(law)':>8}{'p(same)':>9}{'questions':>14}{'us a draw':>16}")
    for row in ours:
        toy = toys[row["toy"]]
        mean, error, counts, questions, seconds = peers[row["toy"]]
        z = sum(toy["p"][i] for i in toy["allowed"])
        law = [toy["p"][i] / z if i in toy["allowed"] else 0.0 for i in range(len(toy["p"]))]
        fits, same = has_law(row["counts"], law), same_law(row["counts"], counts)
        off = [
            abs(row["mean_weight"] - z) > 4 * row["error"] + 1e-6,
            abs(mean - z) > 4 * error + 1e-6,
            abs(row["mean_weight"] - mean) > 4 * math.hypot(error, row["error"]) + 1e-6,
            min(fits, same) < level,
        ]
        faults += any(off)
        print(f"{row['toy']:<18}{row['form']:<11}{z:>8.4f}"
              f"{row['mean_weight']:>9.4f} +-{row['error']:.4f}{mean:>9.4f} +-{error:.4f}"
              f"{fits:>8.3f}{same:>9.3f}{row['questions']:>7.2f}{questions:>7.2f}"
              f"{1e6 * row['seconds'] / row['draws']:>8.2f}{1e6 * seconds / draws:>8.1f}"
              f"{'  differs' if any(off) else ''}")
    print(f"{len(ours) - faults} of {len(ours)} rows agree within Monte Carlo error")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
