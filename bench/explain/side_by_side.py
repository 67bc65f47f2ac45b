"""ReAGent here and in inseq on the same model, prompt, target and settings.

Both estimate the mean importance of each position over many random probes. If they are the same method,
the means differ by their sampling error only: every position's difference is given in standard errors.
"""

import argparse
import json
import subprocess
import time

import torch
from inseq.attr.feat.ops.reagent_core import (
    DeltaProbImportanceScoreEvaluator,
    TopKStoppingConditionEvaluator,
    UniformTokenReplacer,
)
from transformers import LlamaForCausalLM

PROMPT = "Anna has 2 dogs."
# Text tokens of the toy: the bytes. The two marks after them are never drawn.
TEXT_TOKENS = 256


class UniformSampler:
    """Any text token, wherever it stands: `--replace vocabulary`."""

    def __call__(self, ids):
        return torch.randint(0, TEXT_TOKENS, ids.shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="what the example toy_directory wrote")
    parser.add_argument("--tessera", default="target/release/tessera")
    parser.add_argument("--probes", type=int, default=256, help="in one run, at most 256")
    parser.add_argument("--rounds", type=int, default=4, help="runs, each with a seed of its own")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--keep", type=int, default=5)
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--rho", type=float, default=0.3)
    a = parser.parse_args()

    def here(seed):
        command = [
            a.tessera, "explain", "-q", "--json", "-m", a.directory, "--prompt", PROMPT, "--replace", "vocabulary",
            "--probes", str(a.probes), "--max-steps", str(a.steps), "--keep", str(a.keep), "--keep-share", "1",
            "--top", str(a.top), "--rho", str(a.rho), "--seed", str(seed),
        ]  # fmt: skip
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    runs = [here(seed) for seed in range(a.rounds)]
    ours = runs[0]
    ids = torch.tensor([[t["token"] for t in ours["tokens"]]])
    target = torch.tensor([ours["target_token"]])

    model = LlamaForCausalLM.from_pretrained(a.directory, dtype=torch.float32).eval()
    torch.manual_seed(0)
    sampler = UniformSampler()
    evaluator = DeltaProbImportanceScoreEvaluator(
        model=model,
        tokenizer=None,
        token_replacer=UniformTokenReplacer(sampler=sampler, ratio=a.rho),
        stopping_condition_evaluator=TopKStoppingConditionEvaluator(
            model=model, sampler=sampler, top_k=a.top, keep_top_n=a.keep
        ),
        max_steps=a.steps,
    )
    # Its debug lines decode every token even when they are not shown.
    evaluator.tokenizer = type("Silent", (), {"decode": staticmethod(lambda ids: "")})()
    # Probes that stopped count, as in both programs.
    mine = torch.tensor([p["scores"] for run in runs for p in run["probes"] if p["stopped"]])
    seconds_here = sum(run["seconds"] for run in runs)
    start = time.time()
    theirs = []
    with torch.no_grad():
        law = torch.softmax(model(ids).logits[0, -1], -1)
        for _ in range(a.rounds):
            scores = evaluator(ids.repeat(a.probes, 1), target)
            theirs.append(scores[evaluator.stop_mask])
    theirs = torch.cat(theirs)
    seconds = time.time() - start
    error = (mine.var(0) / len(mine) + theirs.var(0) / len(theirs)).sqrt()
    means = mine.mean(0), theirs.mean(0)
    z = (means[0] - means[1]) / error

    print(f"target {ours['target_token']}: probability {ours['probability']:.4f} here, {law[target].item():.4f} in "
          f"transformers; probes that stopped {len(mine)} and {len(theirs)} of {a.probes * a.rounds}")
    print(f"{'token':<8}{'here':>10}{'inseq':>10}{'standard errors':>18}")
    for part, m, t, s in zip(ours["tokens"], *means, z):
        print(f"{part['text']!r:<8}{m:>10.4f}{t:>10.4f}{s:>18.2f}")

    def ranks(x):
        return x.argsort().argsort().float()

    n = len(z)
    spearman = 1 - 6 * ((ranks(means[0]) - ranks(means[1])) ** 2).sum() / (n * (n * n - 1))
    largest = z.abs().max().item()
    print(f"largest difference {largest:.2f} standard errors ({(means[0] - means[1]).abs().max():.4f}), rank correlation "
          f"{spearman:.3f}; {seconds_here:.2f} s here, {seconds:.2f} s inseq "
          f"({torch.get_num_threads()} threads)")
    # Bonferroni over the positions at 1 in 10,000.
    print("same" if largest < 4.5 else "DIFFERENT")
    return largest >= 4.5


if __name__ == "__main__":
    raise SystemExit(main())
