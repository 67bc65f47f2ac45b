from typing import Any, Iterable, Iterator, TypedDict, Unpack

__version__: str

class Message(TypedDict, total=False):
    role: str
    content: str

class Settings(TypedDict, total=False):
    max_tokens: int | None
    methods: str | dict[str, Any] | Iterable[str | dict[str, Any]]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    seed: int
    stop: str | Iterable[str]
    n: int
    raw: bool
    template: str | None
    rough: str | None

class Completion:
    text: str
    tokens: list[int]
    finish_reason: str
    complete: bool | None
    choices: list[Completion]
    stats: dict[str, Any]

class Stream(Iterator[str]):
    def __iter__(self) -> Stream: ...
    def __next__(self) -> str: ...
    def close(self) -> None: ...

class Model:
    def __init__(
        self,
        name: str = "smollm2",
        *,
        draft_model: str | None = None,
        threads: int = 0,
        context: int | None = None,
        offline: bool = False,
    ) -> None: ...
    def info(self) -> dict[str, Any]: ...
    def tokenize(self, text: str) -> list[int]: ...
    def detokenize(self, tokens: list[int]) -> str: ...
    def generate(self, prompt: str | Iterable[Message], **given: Unpack[Settings]) -> Completion: ...
    def stream(self, prompt: str | Iterable[Message], **given: Unpack[Settings]) -> Stream: ...
    def score(self, prompt: str, answer: str) -> list[float]: ...
    def explain(self, prompt: str, *, target: str | None = None, **settings: Any) -> dict[str, Any]: ...
    def check(
        self,
        method: str,
        *,
        tokens: int = 64,
        count: int = 2,
        repeat: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Any]: ...

def methods() -> list[dict[str, Any]]: ...
