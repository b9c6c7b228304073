"""A pod as Kubernetes runs it: catalog file, pool key, three ports, environment, no torch in the front end."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from server_site import fake_settings, until

from tandem_api.catalog import Catalog
from tandem_api.fields import Device
from tandem_api.report import DeviceReport
from tandem_server.app import client_app, health_app, internal_app
from tandem_server.catalog import CatalogError, CatalogWatcher, read_catalog
from tandem_server.config import Settings, SettingsError
from tandem_server.devices import Devices, cpu_report, parse_gpus, within
from tandem_server.http.guard import KeyFile
from tandem_server.logs import Summary, configure, size_text
from tandem_server.pod import Pod
from tandem_server.residency.progress import ProgressLog, progress_text
from tandem_server.residency.source import SourceError, read_token, resolve

pytestmark = pytest.mark.process


def test_the_front_end_does_not_import_torch():
    code = (
        "import sys, tandem_server.__main__, tandem_server.serve\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_come_from_the_environment():
    environment = {
        "TANDEM_POD_NAME": "p-1",
        "TANDEM_DEVICE": "CPU",
        "TANDEM_LINGER_SECONDS": "3",
        "HOME": "/x",
        "TANDEM_THREADS": "",
    }
    settings = Settings.from_environment(environment)
    assert (settings.pod_name, settings.device, settings.linger_seconds) == ("p-1", Device.CPU, 3.0)
    assert (settings.http_port, settings.internal_port, settings.health_port) == (8080, 8081, 8082)
    assert Settings.from_environment({}).device is Device.GPU


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TANDEM_DEVICE_MEMORY", "2GiB,much"),
        ("TANDEM_DEVICE_MEMORY", "0"),
        ("TANDEM_DEVICE", "cpu?"),
        ("TANDEM_HTTP_PORT", "99999"),
        ("TANDEM_LINGER_SECONDS", "-1"),
    ],
)
def test_a_wrong_setting_is_named(name, value):
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({name: value})


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TANDEM_DEVICE": "TPU"}, "TANDEM_DEVICE='TPU' cannot be used"),
        (
            {"TANDEM_DEVICE": "CPU", "TANDEM_POOL_KEY_FILE": "/nowhere/key", "TANDEM_HTTP_PORT": "0"},
            "the pool key cannot be read",
        ),
    ],
)
def test_a_start_that_cannot_be_ends_with_one_sentence(environment, words):
    done = subprocess.run(
        [sys.executable, "-m", "tandem_server"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def write_catalog(folder, name, catalog):
    """As the kubelet does it: a new folder, then a symbolic link swapped in one step."""
    data = folder / name
    data.mkdir()
    (data / "catalog.json").write_text(catalog if isinstance(catalog, str) else catalog.to_json())
    os.symlink(name, folder / "..tmp")
    os.replace(folder / "..tmp", folder / "..data")
    if not (folder / "catalog.json").is_symlink():
        os.symlink("..data/catalog.json", folder / "catalog.json")


@pytest.mark.parametrize("poll", [0.05, 3600.0])
async def test_the_catalog_is_followed_and_a_bad_one_changes_nothing(tmp_path, model, poll, caplog):
    seen: list[Catalog] = []
    watcher = CatalogWatcher(tmp_path / "catalog.json", seen.append, poll_seconds=poll)
    one = Catalog(models=[model.entry("one")]).with_revision()
    two = Catalog(models=[model.entry("two")]).with_revision()
    write_catalog(tmp_path, "v1", one)
    task = asyncio.create_task(watcher.run())
    try:
        await until(lambda: seen == [one])
        write_catalog(tmp_path, "v2", '{"models": [{"name": 3}]}')
        await until(lambda: "cannot be used" in caplog.text, "the complaint")
        write_catalog(tmp_path, "v3", two)
        await until(lambda: seen == [one, two], "the second catalog")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert "The last good catalog stays in use" in caplog.text
    assert caplog.text.count("cannot be used") == 1


def test_what_is_wrong_with_a_catalog_is_named(tmp_path):
    path = tmp_path / "catalog.json"
    with pytest.raises(CatalogError, match="No such file"):
        read_catalog(path)
    for text, words in (("{", "the file: Invalid JSON"), ('{"models": [{"name": "x"}]}', "models.0.source")):
        path.write_text(text)
        with pytest.raises(CatalogError, match=words):
            read_catalog(path)


async def test_the_pool_key_is_asked_for_in_each_dialect_and_followed(tmp_path):
    key = tmp_path / "key"
    key.write_text("secret-1\n")
    pod = Pod(fake_settings(tmp_path))
    pod.manager.apply(Catalog())
    keys = KeyFile(key)
    for application, path in ((client_app(pod, keys), "/v1/models"), (internal_app(pod, keys), "/internal/report")):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://pod") as client:
            refused = await client.get(path)
            assert refused.status_code == 401
            assert refused.json()["error"]["type"] == "authentication_error"
            assert (await client.get(path, headers={"authorization": "Bearer secret-2"})).status_code == 401
            assert (await client.get(path, headers={"authorization": "Bearer secret-1"})).status_code == 200
    async with httpx.AsyncClient(transport=httpx.ASGITransport(client_app(pod, keys)), base_url="http://pod") as client:
        assert isinstance((await client.get("/api/tags")).json()["error"], str)
        key.write_text("secret-2\n")
        os.utime(key, ns=(1, 1))
        assert (await client.get("/api/tags", headers={"authorization": "Bearer secret-2"})).status_code == 200
        assert (await client.get("/api/tags", headers={"authorization": "Bearer secret-1"})).status_code == 401
    async with httpx.AsyncClient(transport=httpx.ASGITransport(health_app(pod)), base_url="http://pod") as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/internal/report")).status_code == 404


async def test_a_pod_without_a_catalog_is_not_ready(tmp_path):
    pod = Pod(fake_settings(tmp_path))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(health_app(pod)), base_url="http://pod") as client:
        response = await client.get("/readyz")
    assert (response.status_code, response.text) == (503, "waiting for the catalog\n")


async def test_file_sources_lie_below_a_listed_root(tmp_path):
    for name in ("a", "ab", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")
    settings = fake_settings(tmp_path, file_roots=(tmp_path / "a", tmp_path / "none"))

    async def path_of(path):
        return await resolve(f"file://{path}", None, settings, lambda progress: None)

    assert await path_of(tmp_path / "a" / "model") == tmp_path / "a" / "model"
    for path, words in (
        (tmp_path / "b" / "model", "does not lie below a folder that this pool lists"),
        (tmp_path / "ab" / "model", "does not lie below"),
        (tmp_path / "a" / ".." / "b" / "model", "leads out of"),
        (tmp_path / "a" / "link", "leads out of"),
        (tmp_path / "none" / "x", "there is no folder"),
        ("relative/x", "write file:///absolute/folder"),
    ):
        with pytest.raises(SourceError, match=words):
            await path_of(path)


def test_file_roots_come_from_the_environment_parted_by_colons():
    assert Settings.from_environment({"TANDEM_FILE_ROOTS": "/a:/b/c"}).file_roots == (Path("/a"), Path("/b/c"))


def test_the_token_of_a_model_is_its_own(tmp_path):
    (tmp_path / "one.token").write_text("secret-1\n")
    (tmp_path / "two.HF_TOKEN").write_text("secret-2")
    (tmp_path / "three.token").mkdir()
    assert [read_token(tmp_path, name) for name in ("one", "two", "other")] == ["secret-1", "secret-2", None]
    assert read_token(tmp_path / "absent", "one") is None
    with pytest.raises(SourceError, match="cannot be read"):
        read_token(tmp_path, "three")


async def test_claims_are_looked_up_and_not_left(tmp_path):
    claims = tmp_path / "models"
    (claims / "claim" / "a" / "b").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (claims / "claim" / "link").symlink_to(tmp_path / "secret")
    settings = fake_settings(tmp_path, claims_folder=claims, file_roots=())

    async def path_of(source):
        return await resolve(source, None, settings, lambda progress: None)

    assert await path_of("pvc://claim/a/b") == claims / "claim" / "a" / "b"
    assert await path_of("pvc://claim") == claims / "claim"
    for source, words in (
        ("pvc://claim/../../secret", "leads out"), ("pvc://claim/link", "leads out"),
        ("pvc://../secret", "names no claim"), ("pvc://", "names no claim"),
        ("pvc://other/a", "is not mounted"), ("pvc://claim/nope", "holds a, link"),
        ("file:///etc", "lists no folder"), ("s3://x/y", "not supported"), ("nothing", "has no scheme"),
        ("hf://only-one", "not of the form"), ("hf://a/b/../c", "not of the form"),
    ):  # fmt: skip
        with pytest.raises(SourceError, match=words):
            await path_of(source)


async def test_a_hub_that_cannot_be_reached_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"the hub cannot be reached from here.*pvc://") as caught:
        await resolve("hf://org/name", None, fake_settings(tmp_path), lambda progress: None)
    assert not caught.value.lasting


def test_devices(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 1000 kB\nMemAvailable: 600 kB\n")
    machine = cpu_report(tmp_path / "none", meminfo)
    assert (machine.total_bytes, machine.free_bytes) == (1000 * 1024, 600 * 1024)
    (tmp_path / "memory.max").write_text("204800\n")
    (tmp_path / "memory.current").write_text("4800\n")
    assert (cpu_report(tmp_path, meminfo).total_bytes, cpu_report(tmp_path, meminfo).free_bytes) == (204800, 200000)
    older = tmp_path / "v1" / "memory"
    older.mkdir(parents=True)
    (older / "memory.limit_in_bytes").write_text("102400\n")
    (older / "memory.usage_in_bytes").write_text("2400\n")
    assert cpu_report(tmp_path / "v1", meminfo).total_bytes == 102400
    gpus = parse_gpus("NVIDIA H200, 143771, 143000\nOdd, [N/A], [N/A]\n")
    assert [(gpu.name, gpu.total_bytes) for gpu in gpus] == [("NVIDIA H200", 143771 << 20), ("Odd", 0)]


def test_a_budget_bounds_what_each_device_has():
    settings = Settings.from_environment({"TANDEM_DEVICE_MEMORY": "2GiB, 500M,1.5Gi"})
    assert settings.device_memory == (2 << 30, 500_000_000, 3 << 29)
    cpu = DeviceReport(name="2 CPUs", kind="CPU", total_bytes=16 << 30, free_bytes=1 << 30)
    assert within([cpu], ()) == [cpu]
    shares = within([cpu], settings.device_memory)
    assert [share.name for share in shares] == ["2 CPUs, share 0", "2 CPUs, share 1", "2 CPUs, share 2"]
    assert [share.total_bytes for share in shares] == list(settings.device_memory)
    assert [share.free_bytes for share in shares] == [1 << 30, 500_000_000, 1 << 30]
    assert len(Devices(Device.CPU, settings.device_memory).now()) == 3
    gpus = parse_gpus("NVIDIA H200, 143771, 143000\nNVIDIA H200, 143771, 1000\n")
    bound = within(gpus, (40 << 30, 40 << 30))
    assert [(gpu.name, gpu.total_bytes) for gpu in bound] == [("NVIDIA H200", 40 << 30)] * 2
    assert [gpu.free_bytes for gpu in bound] == [40 << 30, 1000 << 20]


def test_refusals_are_summed_up():
    told, later = [], []
    summary = Summary(lambda *what: told.append(what), lambda seconds, call: later.append(call), interval=10.0)
    for number in range(5):
        summary.add(f"n{number}")
    assert told == [(1, 0.0, "n0")]
    later.pop()()
    assert told[1:] == [(4, 10.0, "n4")]
    later.pop()()
    summary.add("again")
    assert told[2:] == [(1, 0.0, "again")]


def test_progress_has_its_time_left_and_a_line_now_and_then(caplog):
    from tandem_api.report import Progress

    caplog.set_level("INFO", "tandem_server")
    now, seen = [0.0], []
    log = ProgressLog("m", seen.append, clock=lambda: now[0])
    for second, done in ((0.0, 0), (2.0, 2 << 30), (6.0, 6 << 30)):
        now[0] = second
        log.told(Progress(phase="reading weights", fraction=done / (8 << 30), done_bytes=done, total_bytes=8 << 30))
    assert [progress.eta_seconds for progress in seen] == [None, 6.0, 2.0]
    assert progress_text(seen[-1]) == "reading weights, 75% (6.0 GiB of 8.0 GiB), about 2 s left"
    assert caplog.messages == ["Loading model m: reading weights, 75% (6.0 GiB of 8.0 GiB), about 2 s left."]
    assert [size_text(number) for number in (3, 2048, 150 << 20, 3 << 40)] == [
        "3 bytes",
        "2.0 KiB",
        "150 MiB",
        "3.0 TiB",
    ]


def test_log_lines_as_json(capfd):
    code = (
        "from tandem_server import logs; import logging; logs.configure('json')\n"
        "logging.getLogger('tandem_server.x').info('A %s.', 'sentence')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = json.loads(done.stderr)
    assert (line["level"], line["message"]) == ("info", "A sentence.")
    assert callable(configure)
