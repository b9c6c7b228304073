"""What a person may set about the answers, by `--set NAME=VALUE` or `/set NAME VALUE`, and how each dialect spells it.

Pure. Values are checked for their form only: the server knows the limits and names them when one is passed.
"""

from dataclasses import dataclass

Value = str | int | float


@dataclass(frozen=True)
class Setting:
    """One name. `openai` is None where that dialect cannot say it."""

    kind: type[str] | type[int] | type[float]
    openai: str | None
    meaning: str


SETTINGS = {
    "num_predict": Setting(int, "max_tokens", "tokens that an answer may have at most"),
    "temperature": Setting(float, "temperature", "0 takes the likeliest token each time; higher is more varied"),
    "top_k": Setting(int, "top_k", "choose among so many likeliest tokens; 0 for all"),
    "top_p": Setting(float, "top_p", "choose among the likeliest tokens of this share of probability"),
    "min_p": Setting(float, "min_p", "leave out tokens less likely than this share of the likeliest"),
    "seed": Setting(int, "seed", "the same number gives the same answer"),
    "stop": Setting(str, "stop", "text at which an answer ends"),
    "repeat_penalty": Setting(float, "repetition_penalty", "more than 1 makes repetitions less likely"),
    "presence_penalty": Setting(float, "presence_penalty", "the same, once for each token seen"),
    "frequency_penalty": Setting(float, "frequency_penalty", "the same, for each time a token was seen"),
    "num_ctx": Setting(int, None, "tokens that prompt and answer may have together"),
}
_ALIASES = {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
_FORMS = {int: "a whole number", float: "a number", str: "a text"}


def parse_setting(name: str, text: str) -> tuple[str, Value]:
    """The setting's own name and its value. Raises ValueError with a sentence."""
    name = _ALIASES.get(name, name)
    setting = SETTINGS.get(name)
    if setting is None:
        raise ValueError(f"there is no setting '{name}'; there are {', '.join(SETTINGS)}")
    text = text.strip()
    if setting.kind is str and len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    try:
        if not text:
            raise ValueError
        return name, setting.kind(text)
    except ValueError:
        raise ValueError(f"{name} wants {_FORMS[setting.kind]}, not '{text}'") from None


def ollama_options(settings: dict[str, Value]) -> dict[str, Value]:
    """`options` of Ollama's API."""
    return dict(settings)


def openai_fields(settings: dict[str, Value]) -> dict[str, Value]:
    """Fields of an OpenAI request. Raises ValueError naming a setting that the dialect cannot say."""
    fields: dict[str, Value] = {}
    for name, value in settings.items():
        spelled = SETTINGS[name].openai
        if spelled is None:
            raise ValueError(f"{name} cannot be said in OpenAI's API, which is all that this server speaks")
        if name == "num_predict" and isinstance(value, int) and value < 0:
            continue
        fields[spelled] = value
    return fields
