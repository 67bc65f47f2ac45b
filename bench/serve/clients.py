"""Asks a running `tessera serve` with the official `openai` client and `llm`, both unchanged, and checks the answers.

    tessera serve smollm2 --port 8080 &
    pip install openai llm
    python3 bench/serve/clients.py [--url http://127.0.0.1:8080/v1] [--key KEY]

Prints a line a check; exits with 1 at the first that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import openai

from running import wait

def command_line(url: str, model: str) -> None:
    """The `llm` program, told of the server as its documentation says."""
    with tempfile.TemporaryDirectory() as home:
        known = [{"model_id": "here", "model_name": model, "api_base": url, "api_key_name": "here"}]
        (Path(home) / "extra-openai-models.yaml").write_text(json.dumps(known))
        (Path(home) / "keys.json").write_text(json.dumps({"here": "none"}))
        for more in ([], ["--no-stream"]):
            command = [sys.executable, "-m", "llm", "-m", "here", *more, "-o", "max_tokens", "12", "Say hello."]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LLM_USER_PATH": home}, timeout=120)
            assert done.returncode == 0 and done.stdout.strip(), done.stderr


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--key", default="none")
    arguments = parser.parse_args()
    wait(arguments.url.removesuffix("/v1"))
    client = openai.OpenAI(base_url=arguments.url, api_key=arguments.key, max_retries=0)

    def passed(name: str, shown: object) -> None:
        print(f"{name}: {str(shown)[:100]!r}")

    models = [known.id for known in client.models.list().data]
    model = models[0]
    passed("models", ", ".join(models))

    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "What is the capital of France?"}]
    chat = client.chat.completions.create(model=model, messages=messages, max_tokens=24, seed=1)
    again = client.chat.completions.create(model=model, messages=messages, max_tokens=24, seed=1)
    assert chat.choices[0].message.content == again.choices[0].message.content and chat.choices[0].message.content
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
    passed("chat", chat.choices[0].message.content)

    pieces, usage = [], None
    for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=24, seed=1, stream=True,
                                                stream_options={"include_usage": True}):  # fmt: skip
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(pieces) == chat.choices[0].message.content and usage.completion_tokens == chat.usage.completion_tokens
    passed("stream", f"{len(pieces)} pieces, the same text")

    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 24}, "large": {"type": "boolean"}},
              "required": ["city", "large"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    shaped = client.chat.completions.create(model=model, messages=messages, max_tokens=96, response_format=form, seed=1)
    read = json.loads(shaped.choices[0].message.content)
    assert set(read) == {"city", "large"} and isinstance(read["large"], bool)
    passed("json_schema", read)

    likely = client.chat.completions.create(model=model, messages=messages, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2)
    lines = likely.choices[0].logprobs.content
    assert lines and all(abs(line.logprob - line.top_logprobs[0].logprob) < 1e-9 for line in lines)
    passed("logprobs", [(line.token, round(line.logprob, 3)) for line in lines])

    given = client.completions.create(model=model, prompt="The capital of France is Paris", max_tokens=0, echo=True, logprobs=1)
    logs = given.choices[0].logprobs
    assert len(logs.tokens) == len(logs.token_logprobs) and logs.token_logprobs[0] is None and given.choices[0].text.endswith("Paris")
    passed("echo", [round(value, 2) for value in logs.token_logprobs[1:]])

    drafted = client.chat.completions.create(model=model, messages=messages, max_tokens=24, seed=1, extra_body={"methods": [{"id": "cascade"}]})
    assert drafted.choices[0].message.content == chat.choices[0].message.content
    passed("methods", "cascade, the same text")

    weather = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 24}, "unit": {"enum": ["C", "F"]}},
               "required": ["city", "unit"], "additionalProperties": False}  # fmt: skip
    tools = [{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": weather}}]
    asked = [{"role": "user", "content": "What is the weather in Oslo, in Celsius?"}]
    called = client.chat.completions.create(model=model, messages=asked, tools=tools, tool_choice="required", max_tokens=64, temperature=0)
    call = called.choices[0].message.tool_calls[0]
    assert called.choices[0].finish_reason == "tool_calls" and set(json.loads(call.function.arguments)) == {"city", "unit"}
    streamed = [
        delta
        for chunk in client.chat.completions.create(model=model, messages=asked, tools=tools, tool_choice="required", max_tokens=64,
                                                    temperature=0, stream=True)
        for choice in chunk.choices
        for delta in choice.delta.tool_calls or []
    ]  # fmt: skip
    assert [delta.function.arguments for delta in streamed] == [call.function.arguments]
    asked += [called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "7 degrees, rain"}]
    after = client.chat.completions.create(model=model, messages=asked, tools=tools, max_tokens=24, temperature=0)
    passed("tools", f"{call.function.name}({call.function.arguments}): {after.choices[0].message.content}")

    texts = ["A cat sat on the mat.", "A kitten lay on the rug.", "Interest rates rose again in March."]
    # Of the model that writes, and of the one made for embeddings if the server has one.
    for name in models:
        both = [client.embeddings.create(model=name, input=texts, encoding_format=form).data for form in ("float", "base64")]
        plain = client.embeddings.create(model=name, input=texts).data
        vectors = [one.embedding for one in plain]
        assert [one.embedding for one in both[0]] == vectors and len(both[1]) == 3
        near, far = (sum(a * b for a, b in zip(vectors[0], vectors[n], strict=True)) for n in (1, 2))
        assert near > far, (near, far)
        passed(f"embeddings of {name}", f"{len(vectors[0])} numbers, cosine {near:.3f} of like sentences, {far:.3f} of unlike ones")

    command_line(arguments.url, model)
    passed("llm", "answers through the extra OpenAI models of its configuration")

    for extra, word in [({"temprature": 1}, "temperature"), ({"methods": [{"id": "casacde"}]}, "cascade")]:
        try:
            client.chat.completions.create(model=model, messages=messages, max_tokens=4, extra_body=extra)
        except openai.BadRequestError as error:
            assert word in str(error), error
            passed("refused", error.body["message"])
        else:
            raise SystemExit(f"{extra} was not refused")


if __name__ == "__main__":
    main()
