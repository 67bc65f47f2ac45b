"""The Python module on a real model; fetched the way a user fetches it."""

import math

import pytest
import tessera


@pytest.fixture(scope="module")
def model():
    return tessera.Model("smollm2")


def test_the_registry_is_there():
    ids = [method["id"] for method in tessera.methods()]
    assert ids == sorted(ids) and {"cascade", "fasa", "freedave", "awrs"} <= set(ids)
    assert all("properties" in method["schema"] or method["schema"] for method in tessera.methods())


def test_an_answer_and_its_pieces_are_the_same(model):
    whole = model.generate("Why is the sky blue?", max_tokens=24, seed=3)
    pieces = list(model.stream("Why is the sky blue?", max_tokens=24, seed=3))
    assert "".join(pieces) == whole.text == str(whole)
    assert len(pieces) > 3 and whole.finish_reason == "length" and len(whole.tokens) == 24
    assert whole.stats["drawn_tokens"] == 24


def test_methods_change_the_speed_and_not_the_text(model):
    plain = model.generate("Count from one to ten.", max_tokens=32, temperature=0)
    for methods in ["cascade:budget=8", {"id": "prompt-lookup", "budget": 4}, ["cascade"]]:
        drafted = model.generate("Count from one to ten.", max_tokens=32, temperature=0, methods=methods)
        assert drafted.tokens == plain.tokens
        assert drafted.stats["passes"] <= plain.stats["passes"]


def test_conversations_and_several_answers(model):
    talk = [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Say hello."}]
    answer = model.generate(talk, max_tokens=8, n=3, seed=1)
    assert len(answer.choices) == 3 and answer.choices[0].text == answer.text


def test_scores_are_logarithms_of_probabilities(model):
    likely = model.score("The capital of France is", " Paris")
    unlikely = model.score("The capital of France is", " banana")
    assert all(value <= 0 and math.isfinite(value) for value in likely + unlikely)
    assert sum(likely) > sum(unlikely)


def test_a_constraint_holds(model):
    answer = model.generate("Pick a number.", methods=[{"id": "regex", "pattern": "[0-9]{3}"}], max_tokens=16)
    assert answer.complete and answer.text.isdigit() and len(answer.text) == 3


def test_a_stream_can_be_left(model):
    stream = model.stream("Tell me a long story.", max_tokens=400)
    assert next(stream)
    stream.close()
    assert len(list(stream)) < 390


def test_an_explanation_names_the_tokens(model):
    found = model.explain("The capital of France is", max_steps=8, probes=2)
    assert len(found["tokens"]) == 5 and 0 < found["probability"] <= 1


def test_a_check_is_a_record(model):
    record = model.check("prompt-lookup", tokens=16, count=1)
    assert record["slug"] == "prompt-lookup" and record["verdict"]["reason"]
    assert {arm["part"] for arm in record["arms"]} >= {"plain", "method"}


def test_masks_are_filled():
    model = tessera.Model("tessera-mdlm", offline=True)
    answer = model.generate("Once upon a time", template=" there was a[MASK] cat.", raw=True)
    assert answer.text.endswith(" cat.")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"temprature": 1}, "did you mean temperature"),
        ({"methods": "casacde"}, "cascade"),
        ({"methods": "cascade:budgt=3"}, "budget"),
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "choices"),
        ({"template": "a [MASK] b"}, "template"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(model, given, word):
    with pytest.raises((TypeError, ValueError), match=word):
        model.generate("Hello", max_tokens=4, **given)


def test_a_model_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises((ValueError, RuntimeError), match="smollm2"):
        tessera.Model("smolm2", offline=True)
