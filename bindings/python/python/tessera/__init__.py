"""Tessera: language models on a CPU, with every published token-efficiency method as a switch.

    import tessera

    model = tessera.Model("smollm2")
    print(model.generate("Why is the sky blue?", max_tokens=64))
    for piece in model.stream("Count from one to ten.", methods=["cascade"]):
        print(piece, end="", flush=True)
    model.check("cascade")["verdict"]
"""

from __future__ import annotations

from typing import Any, Iterable

from . import _tessera
from ._tessera import Completion, Stream, __version__, methods

__all__ = ["Completion", "Model", "Stream", "__version__", "methods"]

_OTHERS = {"max_tokens": None, "methods": (), "seed": 0, "stop": (), "n": 1, "raw": False, "template": None, "rough": None}


def _asked(prompt: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The request that a call's arguments make; an unknown one is refused by name."""
    import difflib

    sampling = _tessera.sampling()
    known = [*sampling, *_OTHERS]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"unknown argument {name}{hint}")
    asked = {name: given.get(name, default) for name, default in _OTHERS.items()}
    one = lambda value: [value] if isinstance(value, (str, dict)) else list(value)  # noqa: E731
    asked["methods"], asked["stop"] = one(asked["methods"]), one(asked["stop"])
    asked["sampling"] = {name: value for name, value in given.items() if name in sampling}
    asked["prompt"] = prompt
    return asked


class Model(_tessera.Model):
    __doc__ = _tessera.Model.__doc__

    def generate(self, prompt: str | Iterable[dict[str, str]], **given: Any) -> Completion:
        """The answer to a prompt, or to a conversation of `{"role": ..., "content": ...}`.

        Keywords: max_tokens, methods (`"slug:key=value"` or `{"id": slug, key: value}`), temperature, top_k, top_p, min_p, repeat_penalty,
        presence_penalty, frequency_penalty, penalty_window, seed, stop, n, raw (no chat template) and, for models that fill masks, template
        (text with `[MASK]` or `{8}`) and rough (a rough answer).
        """
        return self._generate(_asked(prompt, given))

    def stream(self, prompt: str | Iterable[dict[str, str]], **given: Any) -> Stream:
        """As `generate`, piece by piece."""
        return self._stream(_asked(prompt, given))
