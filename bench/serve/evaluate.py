"""lm-evaluation-harness through `/v1/completions`, beside scoring in process: the same accuracy, choice for choice.

    tessera serve smollm2 --port 8080 &
    pip install "lm_eval[api]"
    bindings/python/test.sh                        # builds the Python module that scores in process
    PYTHONPATH=target/python-test python3 bench/serve/evaluate.py [--url http://127.0.0.1:8080] [--model smollm2]

The task is a local file of 40 questions with two choices each, made here; the harness asks for log-likelihoods as it does everywhere
(`local-completions`, echoed prompts, the server's own tokenizer). Exits with 1 where a choice or the accuracy differs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import lm_eval
import tessera
from lm_eval.tasks import TaskManager

PAIRS = [
    ("The capital of France is", " Paris", " Berlin"), ("The capital of Italy is", " Rome", " Oslo"), ("Two plus two is", " four", " nine"),
    ("The opposite of hot is", " cold", " tall"), ("A baby dog is called a", " puppy", " kitten"), ("The sun rises in the", " east", " west"),
    ("Water freezes into", " ice", " sand"), ("Bees make", " honey", " milk"), ("The color of grass is", " green", " purple"),
    ("A week has seven", " days", " months"), ("Fish live in", " water", " trees"), ("The largest planet is", " Jupiter", " Mars"),
    ("Birds can", " fly", " drive"), ("We see with our", " eyes", " ears"), ("Snow is", " white", " black"),
    ("The first month is", " January", " June"), ("A triangle has three", " sides", " wheels"), ("Cows eat", " grass", " stones"),
    ("At night we see the", " moon", " bread"), ("To cut paper, use", " scissors", " soup"),
]  # fmt: skip
"""Beginnings, what follows, and what does not."""


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="smollm2")
    arguments = parser.parse_args()
    questions = [
        {"question": prefix + text, "choices": [right, wrong] if place == 0 else [wrong, right], "answer": place}
        for prefix in ("", "Everyone knows this. ")
        for n, (text, right, wrong) in enumerate(PAIRS)
        for place in [n % 2]
    ]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "questions.jsonl"
        data.write_text("".join(json.dumps(question) + "\n" for question in questions))
        task = {
            "task": "tessera_local", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test",
            "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "choices", "doc_to_target": "answer",
            "target_delimiter": "", "metric_list": [{"metric": "acc"}],
        }  # fmt: skip
        given = {
            "model": arguments.model, "base_url": f"{arguments.url}/v1/completions", "tokenizer_backend": "remote", "num_concurrent": 4,
        }  # fmt: skip
        results = lm_eval.simple_evaluate(
            model="local-completions", model_args=given, tasks=[task], task_manager=TaskManager(), log_samples=True, bootstrap_iters=0
        )
    accuracy = results["results"]["tessera_local"]["acc,none"]
    samples = {sample["doc"]["question"]: sample for sample in results["samples"]["tessera_local"]}
    model = tessera.Model(arguments.model)
    right, widest = 0, 0.0
    for question in questions:
        own = [sum(model.score(question["question"], choice)) for choice in question["choices"]]
        theirs = [float(answer[0]) for answer in samples[question["question"]]["filtered_resps"]]
        right += max(range(2), key=own.__getitem__) == question["answer"]
        widest = max(widest, *(abs(a - b) for a, b in zip(own, theirs, strict=True)))
    own_accuracy = right / len(questions)
    print(f"{len(questions)} questions: accuracy {accuracy:.3f} by the harness, {own_accuracy:.3f} in process; log-likelihoods differ by {widest:.2e} at most")
    if accuracy != own_accuracy or widest > 1e-3:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
