"""What the demo runs inside the cluster: the official `openai` and `ollama` clients against the gateway's Service.

Last on the demo's path. Prints what a person's own program would get, as it arrives, and exits non-zero when an
answer is empty or not streamed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable

import ollama
import openai

MAX_TOKENS = 120
SENTENCES = ["How do I read a file line by line?", "Iterating over the lines of a text file", "The weather is nice"]


def _stream(title: str, ask: Callable[[], Iterable[str]]) -> None:
    print(f"\n--- {title}", flush=True)
    started = time.monotonic()
    first = 0.0
    count = 0
    for piece in ask():
        if not count:
            first = time.monotonic() - started
        count += 1
        print(piece, end="", flush=True)
    seconds = time.monotonic() - started
    if count < 2:
        raise SystemExit(f"{title}: {count} pieces came; a streamed answer has several")
    print(f"\n--- {count} pieces in {seconds:.2f} s, the first after {first * 1000:.0f} ms", flush=True)


def chat_openai(base: str, model: str, prompt: str) -> None:
    """A streamed chat through the official `openai` client."""
    client = openai.OpenAI(base_url=f"{base}/v1", api_key="unused-in-the-demo")

    def ask() -> Iterable[str]:
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            stream=True,
            max_tokens=MAX_TOKENS,
            temperature=0.7,
            top_p=0.9,
            seed=1,
        )
        return (chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)

    _stream(f"openai: {model} continues {prompt!r}", ask)


def chat_ollama(base: str, model: str, prompt: str) -> None:
    """A streamed chat through the official `ollama` client."""
    client = ollama.Client(host=base)
    options = ollama.Options(num_predict=MAX_TOKENS, temperature=0.7, top_p=0.9, seed=2)

    def ask() -> Iterable[str]:
        answer = client.chat(model=model, messages=[{"role": "user", "content": prompt}], stream=True, options=options)
        return (part.message.content or "" for part in answer)

    _stream(f"ollama: {model} continues {prompt!r}", ask)


def embed(base: str, model: str) -> None:
    """Embeddings of three sentences and how close they are."""
    client = openai.OpenAI(base_url=f"{base}/v1", api_key="unused-in-the-demo")
    vectors = [entry.embedding for entry in client.embeddings.create(model=model, input=SENTENCES).data]
    print(f"\n--- openai: {model} embeds {len(vectors)} sentences into {len(vectors[0])} numbers each", flush=True)
    for sentence, vector in list(zip(SENTENCES, vectors, strict=True))[1:]:
        closeness = sum(a * b for a, b in zip(vectors[0], vector, strict=True))
        print(f"{closeness:6.3f}  {SENTENCES[0]!r} ~ {sentence!r}", flush=True)


def main() -> None:
    """Talks to the gateway that is named; arguments say which models to ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="the gateway's address, such as http://tandem-gateway")
    parser.add_argument("--chat-model", required=True)
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--embedding-model")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=False)  # type: ignore[union-attr]
    print(f"calling {arguments.base} from inside the cluster", flush=True)
    chat_openai(arguments.base, arguments.chat_model, arguments.prompt[0])
    chat_ollama(arguments.base, arguments.chat_model, arguments.prompt[-1])
    if arguments.embedding_model:
        embed(arguments.base, arguments.embedding_model)


if __name__ == "__main__":
    main()
