"""Downloads from a hub: a small one on loopback, with what the hub's client asks of it."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from server_site import fake_settings

from tandem_server.residency.source import SourceError, resolve

pytestmark = pytest.mark.process

COMMIT = "a" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 5000,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"x",
    "modeling_evil.py": b"print('never fetched')",
    "pytorch_model.bin": b"p" * 100,
}


class Hub(BaseHTTPRequestHandler):
    """Answers for one model, `org/name`."""

    fetched: list[str]

    def log_message(self, *arguments):
        return

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.path.partition("?")[0]
        if path in (
            "/api/models/org/name",
            "/api/models/org/name/revision/main",
            f"/api/models/org/name/revision/{COMMIT}",
        ):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            told = {"id": "org/name", "sha": COMMIT, "private": False, "siblings": siblings}
            return self.reply(json.dumps(told).encode(), {"content-type": "application/json"}, body)
        if path == f"/api/models/org/name/tree/{COMMIT}":
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in FILES.items()]
            return self.reply(json.dumps(tree).encode(), {"content-type": "application/json"}, body)
        name = path.rpartition("/")[2]
        if path == f"/org/name/resolve/{COMMIT}/{name}" and name in FILES:
            if body:
                type(self).fetched.append(name)
            etag = hashlib.sha256(FILES[name]).hexdigest()
            return self.reply(FILES[name], {"etag": f'"{etag}"', "x-repo-commit": COMMIT}, body)
        self.send_response(404)
        self.send_header("x-error-code", "RevisionNotFound" if "/revision/" in path else "RepoNotFound")
        self.send_header("content-length", "0")
        return self.end_headers()

    def reply(self, data, headers, body):
        self.send_response(200)
        for key, value in {**headers, "content-length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch):
    handler = type("OneHub", (Hub,), {"fetched": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield handler
        server.shutdown()
        thread.join()


async def test_only_weights_and_texts_are_fetched_and_only_once(hub, tmp_path, monkeypatch):
    settings, seen = fake_settings(tmp_path), []
    folder = await resolve("hf://org/name", None, settings, seen.append)
    assert {path.name for path in folder.iterdir()} == set(FILES) - {"modeling_evil.py", "pytorch_model.bin"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert folder.is_relative_to(settings.cache)
    assert seen[0].phase == "asking the hub"
    fetched = list(hub.fetched)
    assert await resolve("hf://org/name", "main", settings, seen.append) == folder
    assert hub.fetched == fetched, "what is there is not fetched again"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert await resolve("hf://org/name", COMMIT, settings, seen.append) == folder, "the cache serves without the hub"


@pytest.mark.parametrize(
    ("source", "revision", "words"),
    [("hf://org/other", None, "no such model, or wants a token"), ("hf://org/name", "v9", "no revision 'v9'")],
)
async def test_what_the_hub_does_not_have_is_told(hub, tmp_path, source, revision, words):
    with pytest.raises(SourceError, match=words) as caught:
        await resolve(source, revision, fake_settings(tmp_path), lambda progress: None)
    assert caught.value.lasting
