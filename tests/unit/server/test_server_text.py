"""Text in and out: detokenizers, stop strings, templates, control tokens."""

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_site import SPECIALS, byte_level_tokenizer
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers

from tandem_server.chat.checkpoint import CheckpointError, read_checkpoint
from tandem_server.chat.detokenizer import ByteDetokenizer, WindowDetokenizer
from tandem_server.chat.pieces import byte_table
from tandem_server.chat.prompt import fitting_chat_prompt
from tandem_server.chat.stops import StopStrings
from tandem_server.chat.template import ChatTemplate, TemplateError
from tandem_server.chat.tokenizer import Tokenizer
from tandem_server.embedding import EmbedAsk, _encode_all
from tandem_server.engine.wire import Loaded

BYTE_LEVEL = byte_level_tokenizer()


def byte_fallback_tokenizer() -> RawTokenizer:
    """As Llama 2 has it: `_`-marked words, and a token for each byte that has none."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    for piece in ["\u2581", "\u2581the", "\u2581a", "t", "h", "e", "a", "b", "c", "ä", "日"]:
        vocabulary[piece] = len(vocabulary)
    tokenizer = RawTokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


BYTE_FALLBACK = byte_fallback_tokenizer()
TEXT = st.text(alphabet=st.sampled_from("ab c<>|the wörld日本é🎉👩‍👩‍👧\n\t.0"), max_size=60)
KINDS = {"level": BYTE_LEVEL, "fallback": BYTE_FALLBACK}


def cut(items, places):
    """`items` in pieces, cut at these places."""
    borders = sorted({min(place, len(items)) for place in places} | {0, len(items)})
    return [items[start:end] for start, end in itertools.pairwise(borders)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("windowed", [False, True])
@settings(max_examples=60, deadline=None)
@given(text=TEXT, places=st.lists(st.integers(0, 80), max_size=12))
def test_any_split_of_the_tokens_gives_the_text(kind, windowed, text, places):
    tokenizer = KINDS[kind]
    table = byte_table(tokenizer)
    assert table is not None
    detokenizer = WindowDetokenizer(tokenizer) if windowed else ByteDetokenizer(table)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    parts = [detokenizer.push(piece) for piece in cut(ids, places)]
    assert all("\ufffd" not in part for part in parts), "half a character was given out"
    assert "".join([*parts, detokenizer.finish()]) == tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_tail_of_half_a_character_is_not_lost(kind):
    tokenizer = KINDS[kind]
    ids = tokenizer.encode("ab🎉", add_special_tokens=False).ids[:-1]
    detokenizer = ByteDetokenizer(byte_table(tokenizer))
    assert detokenizer.push(ids) == "ab"
    assert detokenizer.finish() == "\ufffd"


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 280), max_size=40), places=st.lists(st.integers(0, 40), max_size=8))
def test_garbage_tokens_give_the_same_text_however_they_come(ids, places):
    def run(pieces):
        detokenizer = ByteDetokenizer(byte_table(BYTE_FALLBACK))
        return "".join([*(detokenizer.push(piece) for piece in pieces), detokenizer.finish()])

    assert run(cut(ids, places)) == run([ids]) == run([[number] for number in ids])


STOPS = st.lists(st.text(alphabet="ab<>", min_size=1, max_size=5), max_size=4)


def stopped(pieces, stops):
    """The text given out, and what stopped it."""
    watch = StopStrings(tuple(stops))
    out = "".join(watch.push(piece) for piece in pieces)
    return out + (watch.finish() if watch.found is None else ""), watch.found


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="ab<>c", max_size=40), stops=STOPS, places=st.lists(st.integers(0, 40), max_size=10))
def test_any_split_of_the_text_stops_at_the_same_place(text, stops, places):
    out, found = stopped(cut(text, places), stops)
    assert (out, found) == stopped(list(text), stops)
    if found is None:
        assert out == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(out + found)
        assert not any(stop in out for stop in stops), "a stop string was given out"


def test_text_that_only_begins_like_a_stop_string_is_held_and_then_given():
    watch = StopStrings(("<done>",))
    assert [watch.push(piece) for piece in ("x<", "do", "or")] == ["x", "", "<door"]
    assert watch.push("<do") == ""
    assert watch.finish() == "<do"
    assert watch.found is None


def render(text, messages=(), **extra):
    fixed = datetime(2026, 1, 2, tzinfo=UTC)
    return ChatTemplate(text, {"bos_token": "<s>"}, now=lambda: fixed).render(list(messages), **extra)


def test_templates_have_what_hugging_face_gives_them():
    messages = [{"role": "user", "content": "a<b> ä"}]
    assert render("{{ bos_token }}{{ messages[0].content | tojson }}", messages) == '<s>"a<b> ä"'
    assert render("{{ strftime_now('%d %b %Y') }}") == "02 Jan 2026"
    assert render("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% endfor %}x", messages) == "x"
    assert render("{% generation %}a{% endgeneration %}b") == "ab"
    assert render("  {% if true %}\nx\n  {% endif %}\n") == "x\n"


def test_a_template_that_refuses_says_why_in_its_own_words():
    with pytest.raises(TemplateError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.by_template


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__subclasses__() }}", "{{ messages.append(1) }}",
        "{% for i in range(100000000) %}x{% endfor %}", "{{ 'x' * 100000000 }}", "{{ [0] * 100000000 }}",
        "{{ 2 ** 100000000 }}", "{{ '%1000000000d' % 1 }}", "{{ nothing.at_all }}", "{{ messages[0].content + 1 }}",
        "{% for i in range(9999) %}{% for j in range(9999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 1 / 0 }}", "{% include 'x' %}",
        "{{ raise_exception.__globals__.os }}",
    ],
)  # fmt: skip
def test_a_hostile_or_broken_template_is_an_error_and_nothing_more(text):
    with pytest.raises(TemplateError):
        render(text, [{"role": "user", "content": "x"}])


def test_a_template_that_does_not_parse():
    with pytest.raises(TemplateError, match="cannot be read"):
        render("{% if %}")


@pytest.fixture(scope="module")
def text_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    BYTE_LEVEL.save(str(path))
    return Tokenizer(path)


@settings(max_examples=80, deadline=None)
@given(
    parts=st.lists(
        st.one_of(st.sampled_from(SPECIALS), st.text(alphabet="ab<|>im_end\ufdd0 1", max_size=8)), max_size=8
    )
)
def test_control_tokens_in_a_message_are_text(text_tokenizer, parts):
    content = "".join(parts)
    prompt = f"<|im_start|>{text_tokenizer.guard(content)}<|im_end|>"
    ids = text_tokenizer.encode_prompt(prompt)
    controls = [number for number in ids if number in text_tokenizer.control.values()]
    assert controls == [text_tokenizer.control["<|im_start|>"], text_tokenizer.control["<|im_end|>"]]
    assert BYTE_LEVEL.decode(ids[1:-1], skip_special_tokens=False) == content.replace("\ufdd0", "\ufffd")


def test_ordinary_messages_are_encoded_as_the_library_does(text_tokenizer):
    prompt = "<|im_start|>user\nHello there<|im_end|>\n"
    assert text_tokenizer.encode_prompt(prompt) == BYTE_LEVEL.encode(prompt, add_special_tokens=False).ids


@pytest.mark.parametrize("room", [20, 60, 100, 200, 1000])
def test_the_fewest_messages_are_dropped(make_model, room):
    checkpoint = read_checkpoint(make_model().folder)
    messages = [{"role": "system", "content": "S"}] + [{"role": "user", "content": f"message {n}"} for n in range(9)]

    def length(dropped):
        return len(fitting_chat_prompt(checkpoint, [messages[0], *messages[1 + dropped :]], 10**6))

    got = len(fitting_chat_prompt(checkpoint, messages, room))
    fitting = [length(dropped) for dropped in range(9) if length(dropped) < room]
    assert got == (fitting[0] if fitting else length(8))


def test_checkpoints_that_cannot_be_read_name_the_file(make_model):
    folder = make_model().folder
    for name, content, message in (
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("config.json", "[1]", "does not hold a JSON object"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", None, "has no config.json"),
    ):
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(content)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(folder)


def test_a_checkpoint_is_read_again_only_where_a_file_changed(make_model):
    folder = make_model().folder
    first = read_checkpoint(folder)
    assert read_checkpoint(folder, first) is first
    (folder / "generation_config.json").write_text('{"temperature": 0.3}')
    second = read_checkpoint(folder, first)
    assert second is not first
    assert second.sampling == {"temperature": 0.3}
    assert read_checkpoint(folder, second) is second


def test_the_default_prompt_stands_before_every_text_to_embed(make_model):
    folder = make_model().folder
    settings = folder / "config_sentence_transformers.json"
    settings.write_text('{"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": null}')
    assert read_checkpoint(folder).input_prompt == ""
    settings.write_text('{"prompts": {"query": "query: "}, "default_prompt_name": "query"}')
    checkpoint = read_checkpoint(folder)
    loaded = Loaded("Embed", "Fake", 1, 1, 0, 0, "CPU", "CPU", "float32", 1, 99, 99, "", 8, "")
    ids = _encode_all(EmbedAsk("openai", ["hello", [5, 6]], False), loaded, checkpoint)
    assert ids == [checkpoint.tokenizer.encode_input("query: hello", None)[0], [5, 6]]
    settings.write_text('{"prompts": {}, "default_prompt_name": "query"}')
    with pytest.raises(CheckpointError, match="no prompt 'query'"):
        read_checkpoint(folder)
