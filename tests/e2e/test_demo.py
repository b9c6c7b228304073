"""The demo's own path as a user walks it: columns that read like `ollama ps`, official clients inside the cluster."""

from tandem_cli.demo import talk
from tandem_cli.demo.flow import CODE_PROMPTS
from tandem_testing.installation import Site


def test_get_models_reads_like_ollama_ps(site: Site) -> None:
    lines = site.kubernetes.kubectl("get", "models").splitlines()
    print("\n".join(lines))
    assert lines[0].split() == ["NAME", "READY", "REPLICAS", "SIZE", "PROCESSOR", "CONTEXT", "SLOTS", "UNTIL", "AGE"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert rows.keys() == {"python-coder", "minilm"}
    assert all(row.split()[1] == "True" for row in rows.values())
    assert "100% CPU" in rows["python-coder"]
    assert " 2048 " in rows["python-coder"]


def test_official_clients_stream_inside_the_cluster(site: Site) -> None:
    talk.talk(site.kubernetes, site.cluster, site.story, ["python-coder", "minilm"], CODE_PROMPTS)
    output = site.kubernetes.kubectl("logs", "tandem-demo-client")
    assert "openai: python-coder continues" in output
    assert "ollama: python-coder continues" in output
    assert "openai: minilm embeds 3 sentences into 384 numbers each" in output


def test_an_unknown_model_is_a_404_that_names_those_that_exist(site: Site) -> None:
    status, body = site.post(
        "/v1/chat/completions", {"model": "gpt-9", "messages": [{"role": "user", "content": "hi"}]}
    )
    assert status == 404
    assert "python-coder" in body["error"]["message"]
    status, body = site.post("/api/chat", {"model": "gpt-9", "messages": [{"role": "user", "content": "hi"}]})
    assert status == 404
    assert body["error"].startswith("model 'gpt-9' not found")


def test_the_cluster_speaks_in_sentences(site: Site) -> None:
    described = site.kubernetes.kubectl("describe", "model", "python-coder")
    print(described)
    assert "Loaded" in described
    events = site.kubernetes.kubectl("get", "events", "--field-selector", "involvedObject.kind=Model")
    print(events)
    assert "python-coder" in events


def test_nothing_runs_as_root_and_pods_take_no_request_without_the_key(site: Site) -> None:
    pod = site.pods("python-coder")[0]
    name = pod["metadata"]["name"]
    assert site.kubernetes.kubectl("exec", name, "--", "/usr/bin/id", "-u").strip() == "10001"
    probe = (
        "import urllib.request, urllib.error\n"
        "for port, path in ((8080, '/v1/models'), (8081, '/internal/report'), (8081, '/metrics')):\n"
        "    try: print(urllib.request.urlopen(f'http://127.0.0.1:{port}{path}').status)\n"
        "    except urllib.error.HTTPError as error: print(error.code)\n"
        "print(urllib.request.urlopen('http://127.0.0.1:8082/readyz').status)\n"
    )
    answers = site.kubernetes.kubectl("exec", name, "--", "/usr/bin/python3", "-c", probe).split()
    assert answers == ["401", "401", "401", "200"]
