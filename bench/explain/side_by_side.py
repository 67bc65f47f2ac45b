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
    parser.add_argument("--probes", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--top", type=int, default=1)
    parser.add_argument("--rho", type=float, default=0.3)
    a = parser.parse_args()

    command = [
        a.tessera, "explain", "-q", "--json", "-m", a.directory, "--prompt", PROMPT, "--replace", "vocabulary",
        "--probes", str(a.probes), "--max-steps", str(a.steps), "--keep", str(a.keep), "--keep-share", "1",
        "--top", str(a.top), "--rho", str(a.rho),
    ]  # fmt: skip
    ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
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
    start = time.time()
    with torch.no_grad():
        law = torch.softmax(model(ids).logits[0, -1], -1)
        scores = evaluator(ids.repeat(a.probes, 1), target)
    seconds = time.time() - start
    stopped = evaluator.stop_mask
    kept = scores[stopped] if stopped.any() else scores
    theirs, error = kept.mean(0), kept.std(0) / len(kept) ** 0.5
    mine = torch.tensor([t["importance"] for t in ours["tokens"]])
    # Both means have an error; the probes that count are about as many on both sides.
    z = (mine - theirs) / (error * (1 + len(kept) / max(ours["stopped"], 1)) ** 0.5)

    print(f"target {ours['target_token']}: probability {ours['probability']:.4f} here, {law[target].item():.4f} in "
          f"transformers; probes that stopped {ours['stopped']} and {int(stopped.sum())} of {a.probes}")
    print(f"{'token':<8}{'here':>10}{'inseq':>10}{'standard errors':>18}")
    for part, m, t, s in zip(ours["tokens"], mine, theirs, z):
        print(f"{part['text']!r:<8}{m:>10.4f}{t:>10.4f}{s:>18.2f}")

    def ranks(x):
        return x.argsort().argsort().float()

    n = len(mine)
    spearman = 1 - 6 * ((ranks(mine) - ranks(theirs)) ** 2).sum() / (n * (n * n - 1))
    largest = z.abs().max().item()
    print(f"largest difference {largest:.2f} standard errors ({(mine - theirs).abs().max():.4f}), rank correlation "
          f"{spearman:.3f}; {ours['seconds']:.2f} s here, {seconds:.2f} s inseq "
          f"({torch.get_num_threads()} threads)")
    # Bonferroni over the positions at 1 in 10,000.
    print("same" if largest < 4.5 else "DIFFERENT")
    return largest >= 4.5


if __name__ == "__main__":
    raise SystemExit(main())
