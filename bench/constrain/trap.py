"""The trap of `crates/testkit/tests/constrain.rs` with genlm-control's AWRS-SMC.

The model begins with `a` (0.9) and then says `c` with probability 0.01, or with `b` (0.1) and then says `c`
with 0.9; only `ac` and `bc` are allowed. The posterior of `ac` is 1/11. Prints the mass that weighted
particles give it on average, by number of particles, as our test does with
`cargo test --release -p tessera-testkit --test constrain -- --nocapture trap`.

Usage: trap.py [RUNS]
"""

import asyncio
import sys
import time

import numpy as np
from genlm.control import AWRS, SMC, Potential

WORDS = [b"a", b"b", b"c", b"d"]
NEXT = {
    (): [0.9, 0.1, 0, 0, 0],
    (b"a",): [0, 0, 0.01, 0.99, 0],
    (b"b",): [0, 0, 0.9, 0.1, 0],
}
ENDS = [0, 0, 0, 0, 1]


class Model(Potential):
    def logs(self, context):
        with np.errstate(divide="ignore"):
            return np.log(np.array(NEXT.get(tuple(context), ENDS), dtype=float))

    async def prefix(self, context):
        return sum(self.logs(context[:i])[WORDS.index(t)] for i, t in enumerate(context))

    async def complete(self, context):
        return await self.prefix(context) + self.logs(context)[-1]

    async def logw_next(self, context):
        return self.make_lazy_weights(self.logs(context))


class Allowed(Potential):
    async def prefix(self, context):
        text = b"".join(context)
        return 0.0 if any(whole.startswith(text) for whole in (b"ac", b"bc")) else -np.inf

    async def complete(self, context):
        return 0.0 if b"".join(context) in (b"ac", b"bc") else -np.inf


async def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    posterior = 0.9 * 0.01 / (0.9 * 0.01 + 0.1 * 0.9)
    print(f"posterior of the trap {posterior:.4f}")
    for count in (1, 2, 5, 20, 60):
        smc = SMC(AWRS(Model(WORDS), Allowed(WORDS), autobatch=False), autobatch=False)
        start, mass, counted = time.perf_counter(), 0.0, 0
        for _ in range(runs):
            sequences = await smc(n_particles=count, ess_threshold=0.5, max_tokens=3)
            weights = np.array(sequences.normalized_weights)
            if np.isfinite(weights).all():
                trapped = [context[0] == b"a" for context, _ in sequences]
                mass += float(weights[np.array(trapped)].sum())
                counted += 1
        each = (time.perf_counter() - start) / runs
        print(f"{count:>3} particles: {mass / counted:.4f}, total variation "
              f"{abs(mass / counted - posterior):.4f}, {1e3 * each:.1f} ms a run, {counted} runs")


if __name__ == "__main__":
    asyncio.run(main())
