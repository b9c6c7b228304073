"""What is typed in a chat: texts of several lines, commands, settings; and what goes to the server for it."""

import pytest

from tandem_cli.chat.conversation import Conversation, command
from tandem_cli.chat.prompt import read_entry
from tandem_cli.chat.settings import openai_fields, parse_setting


def typed(*lines: str) -> tuple[str, list[str]]:
    """The text of what is typed, and the prompts that were shown."""
    left, prompts = list(lines), []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        if not left:
            raise EOFError
        return left.pop(0)

    return read_entry(read), prompts


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["hello"], "hello"), (["one\\", "two\\", "three"], "one\ntwo\nthree"), (['"""one', 'two"""'], "one\ntwo"),
        (['"""', "  one", "", "two", '"""'], "  one\n\ntwo"), (['"""one line"""'], "one line"), ([""], ""),
        (['"""', '"""'], ""), (['""""""'], ""), (['say """', "not read"], 'say """'), (["a\\", ""], "a\n"),
    ],
)  # fmt: skip
def test_texts_of_several_lines(lines, text):
    assert typed(*lines)[0] == text


def test_prompts_tell_that_a_text_goes_on():
    assert typed("one\\", "two")[1] == [">>> ", "... "]
    with pytest.raises(EOFError):
        typed('"""never ended')


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("/bye", ("bye", "")), (" /set seed 1 ", ("set", "seed 1")), ("/?", ("?", "")),
        ("/usr/bin/env is a path", None),
        ("/Users", None), ("what is /bye", None), ("/set system a\nb", ("set", "system a\nb")),
    ],
)  # fmt: skip
def test_commands(line, meaning):
    assert command(line) == meaning


def test_settings_are_parsed_by_their_kind():
    assert parse_setting("temperature", "0") == ("temperature", 0.0)
    assert parse_setting("max_tokens", " 12 ") == ("num_predict", 12)
    assert parse_setting("stop", '"a b"') == ("stop", "a b")
    for name, text, told in [
        ("seed", "1.5", "seed wants a whole number, not '1.5'"), ("temperature", "", "temperature wants a number"),
        ("foo", "1", "there is no setting 'foo'; there are num_predict"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=told):
            parse_setting(name, text)


def test_set_speaks_as_ollama_does():
    talk = Conversation()
    assert talk.set("parameter num_predict 3") == "num_predict is 3"
    assert talk.set("temperature 0.5") == "temperature is 0.5"
    talk.set("verbose")
    talk.set('system "You are short."')
    assert (talk.verbose, talk.system) == (True, "You are short.")
    shown = talk.set("")
    assert "num_predict        = 3" in shown
    assert "You are short." in shown
    assert talk.settings == {"num_predict": 3, "temperature": 0.5}
    with pytest.raises(ValueError, match="num_predict wants"):
        talk.set("num_predict")


def test_openai_spells_settings_otherwise():
    fields = openai_fields({"num_predict": 5, "repeat_penalty": 1.1, "seed": 2})
    assert fields == {"max_tokens": 5, "repetition_penalty": 1.1, "seed": 2}
    assert openai_fields({"num_predict": -1}) == {}
    with pytest.raises(ValueError, match="num_ctx cannot be said"):
        openai_fields({"num_ctx": 5})


def test_a_conversation_remembers_exchanges_that_happened():
    talk = Conversation(system="short")
    assert talk.asking("a") == [{"role": "system", "content": "short"}, {"role": "user", "content": "a"}]
    talk.answered("a", "")  # stopped before its first word
    assert len(talk.asking("b")) == 2
    talk.answered("b", "partly")
    assert [message["content"] for message in talk.asking("c")] == ["short", "b", "partly", "c"]
