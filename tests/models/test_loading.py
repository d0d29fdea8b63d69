"""Loading: every leaf where it belongs, little host memory, int8, and the Hub."""

import dataclasses
import http.server
import json
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax.sharding import NamedSharding

from cartridges_jax.loading import load_model
from cartridges_jax.models import weights
from cartridges_jax.models.config import ModelConfig, read_config
from cartridges_jax.models.fingerprint import weights_fingerprint
from cartridges_jax.models.linear import Embedding, Linear
from cartridges_jax.models.rope import Rope
from cartridges_jax.models.sources.folder import FolderSource
from cartridges_jax.models.sources.locate import is_model_name
from cartridges_jax.models.tokenizer_files import load_tokenizer
from cartridges_jax.models.transformer import initialize
from cartridges_jax.sharding import MODEL, make_mesh
from experiments.export import export_folder, to_hf
from tests.conftest import CHAT_TEMPLATE, TEST_MODEL, tiny_config

TOKENIZER = load_tokenizer(TEST_MODEL)
TOKENIZER_FILES = {p.name: p.read_bytes() for p in TEST_MODEL.glob("tokenizer*.json")}


def read(folder, *args):
    return weights.read_weights(FolderSource(folder).tensors(), str(folder), *args)


class InMemory:
    """A tensor that lies in memory."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def read(self, cut, dtype):
        return self.array[cut].astype(dtype)


def write_model(folder, **changes):
    """Saves a tiny random model of ours; returns it."""
    config = dataclasses.replace(tiny_config(TOKENIZER), **changes)
    with jax.set_mesh(make_mesh(1, 1)):
        model = initialize(config, seed=3)
    export_folder(folder, model, TOKENIZER_FILES, CHAT_TEMPLATE)
    return model


def split_into_files(folder, count):
    """Turns model.safetensors into several files with an index, as large checkpoints come."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {k: tensors[k] for k in sorted(tensors)[i::count]}
        safetensors.numpy.save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("kv_heads", [4, 3])
def test_every_leaf_has_the_planned_sharding(tmp_path, kv_heads):
    heads = 2 * kv_heads
    wanted = write_model(tmp_path, num_heads=heads, num_kv_heads=kv_heads, qk_norm=True,
                         family="qwen3", qkv_bias=True, output_bias=True)  # fmt: skip
    whole = weights_fingerprint(FolderSource(tmp_path))
    split_into_files(tmp_path, 4)
    assert weights_fingerprint(FolderSource(tmp_path)) == whole  # whatever the files are
    mesh = make_mesh(2, 4)
    got = read(tmp_path, read_config(tmp_path), mesh, jnp.float32)
    sharded = set()
    for path, variable in nnx.to_flat_state(nnx.state(got)):
        spec = variable.get_metadata()["spec"]
        value = variable[...]
        assert value.sharding == NamedSharding(mesh, spec), path
        if MODEL in spec:
            sharded.add(".".join(map(str, path)))
            assert value.addressable_shards[0].data.size * 4 == value.size
    always = {"embedding.weight", "blocks.gate.weight", "blocks.up.weight", "blocks.down.weight"}
    split_heads = {f"blocks.{n}.weight" for n in "qkvo"} | {f"blocks.{n}.bias" for n in "qkv"}
    assert sharded == always | {"lm_head.weight"} | (split_heads if kv_heads == 4 else set())
    for a, b in zip(
        jax.tree.leaves(nnx.state(got)), jax.tree.leaves(nnx.state(wanted)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(("mesh", "quantization"), [((8, 1), "none"), ((4, 2), "int8")])
def test_weights_are_split_over_all_devices(tmp_path, mesh, quantization):
    """A device holds its share of every matrix, and the model says the same."""
    write_model(tmp_path, qkv_bias=True, output_bias=True)
    whole = load_model(tmp_path, jnp.float32, quantization=quantization)
    ids = np.tile(np.arange(20), (8, 1))
    want = np.asarray(whole.logits(ids))
    split = load_model(
        tmp_path, jnp.float32, make_mesh(*mesh), quantization=quantization, fsdp=True
    )
    np.testing.assert_allclose(np.asarray(split.logits(ids)), want, atol=2e-6)
    matrices = 0
    for path, variable in nnx.to_flat_state(nnx.state(split.transformer)):
        if path[-1] == "weight":
            value = variable[...]
            assert value.addressable_shards[0].data.size * 8 == value.size, path
            matrices += 1
    assert matrices == 9
    [a], [b] = (m.generate(["Where?"], max_new_tokens=5) for m in (whole, split))
    assert a.token_ids == b.token_ids


def test_a_part_is_read_from_the_right_place_of_every_tensor():
    """Each leaf's slice of a tensor equals the slice of the leaf."""
    config = tiny_config(TOKENIZER)
    rng = np.random.default_rng(0)
    for leaf in weights.leaves(config):
        tensor = rng.normal(size=leaf.hf_shape).astype(np.float32)
        whole = {a: (0, config.sizes[a]) for a in leaf.axes}
        full = leaf.read(InMemory(tensor), whole, np.float32)
        np.testing.assert_array_equal(to_hf(leaf, full), tensor)
        cut = {a: (0, config.sizes[a]) for a in leaf.axes}
        for axis in set(leaf.axes) & set("NKFV"):  # those that a mesh may split
            half = config.sizes[axis] // 2
            cut[axis] = (half, config.sizes[axis])
        got = leaf.read(InMemory(tensor), cut, np.float32)
        index = tuple(slice(*cut[a]) for a in leaf.axes)
        np.testing.assert_array_equal(got, full[index])


def test_loading_holds_little_beside_the_model(tmp_path):
    """Anonymous memory while loading 150 MB; `experiments/benchmarks/loading.py` has a 1B model."""
    config = ModelConfig(
        family="llama", vocab_size=4096, hidden_size=512, mlp_size=2048, num_layers=16,
        num_heads=8, num_kv_heads=4, head_dim=64, norm_eps=1e-5, rope=Rope(1e4, None),
        qkv_bias=False, output_bias=False, mlp_bias=False, qk_norm=False, tie_embeddings=True,
        max_position_embeddings=512, bos_token_id=1, eos_token_ids=(2,),
    )  # fmt: skip
    with jax.set_mesh(make_mesh(1, 1)):
        model = initialize(config, seed=0)
    export_folder(tmp_path, model, TOKENIZER_FILES, "x")
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    tensors = {k: v.astype(jnp.bfloat16) for k, v in tensors.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    split_into_files(tmp_path, 4)
    size = sum(v.nbytes for v in tensors.values())
    command = [sys.executable, "-m", "experiments.benchmarks.loading", f"--folder={tmp_path}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    # 40 MB: compiled checks and the allocator's own, which a larger model does not multiply.
    assert size < json.loads(run.stdout)["peak_bytes"] < 1.4 * size + 40e6


# ---- int8


def test_int8_weights_are_the_nearest_of_255_in_each_channel(tmp_path):
    write_model(tmp_path)
    mesh = make_mesh(1, 1)
    config = read_config(tmp_path)
    full = read(tmp_path, config, mesh, jnp.float32)
    small = read(tmp_path, config, mesh, jnp.float32, "int8")
    matrices = 0
    for (_, a), (_, b) in zip(nnx.iter_modules(full), nnx.iter_modules(small), strict=True):
        if not isinstance(a, Linear | Embedding):
            continue
        matrices += 1
        assert b.weight[...].dtype == jnp.int8
        lead = a.weight[...].ndim - len(a.axes)
        kept = [i for i, axis in enumerate(a.axes) if axis in a.output_axes]
        shape = [1] * a.weight[...].ndim
        shape[:lead] = a.weight[...].shape[:lead]
        for i in kept:
            shape[lead + i] = a.weight[...].shape[lead + i]
        scale = np.asarray(b.scale[...]).reshape(shape)
        error = np.abs(np.asarray(b.weight[...]) * scale - np.asarray(a.weight[...]))
        assert (error <= 0.5001 * scale).all()
        assert np.abs(np.asarray(b.weight[...])).max() == 127
    assert matrices == 9


def test_an_int8_model_answers_nearly_alike_on_every_mesh(trained):
    context = "Ada Brown lives in Oslo. Bo Falk works as a baker. Her room is B12."
    ids = np.tile(trained.template.render_context("", context), (4, 1))
    want = np.asarray(jax.nn.log_softmax(trained.logits(ids)))
    for shape in ((1, 1), (4, 2)):
        small = load_model(TEST_MODEL, mesh=make_mesh(*shape), quantization="int8")
        got = np.asarray(jax.nn.log_softmax(small.logits(ids)))
        divergence = (np.exp(want) * (want - got)).sum(-1).mean()
        assert 0 < divergence < 0.01
    assert small.identity["dtype"] == "int8"
    assert small.fingerprint == trained.fingerprint  # the same model, told by a warning
    with pytest.raises(ValueError, match="int8 cannot be exported"):
        export_folder("/nowhere", small.transformer, {}, "")


# ---- fingerprint and Hub


def test_the_fingerprint_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    write_model(folder)
    first = weights_fingerprint(FolderSource(folder))
    with monkeypatch.context() as patch:
        patch.setattr("cartridges_jax.models.fingerprint._hash", None)  # would fail if called
        assert weights_fingerprint(FolderSource(folder)) == first
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert weights_fingerprint(FolderSource(folder)) != first


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's protocol as a download needs."""

    files: dict[str, bytes]
    requests: list[str]

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        commit = "a" * 40
        headers = {"X-Repo-Commit": commit}
        body, status = b"", 404
        if path.startswith("/api/models/org/name/tree"):
            listing = [
                {"type": "file", "path": n, "size": len(d), "oid": f"{i:040x}"}
                for i, (n, d) in enumerate(self.files.items())
            ]
            body, status = json.dumps(listing).encode(), 200
        elif path.startswith("/api/models/org/name"):
            siblings = [{"rfilename": n, "size": len(d)} for n, d in self.files.items()]
            info = {"id": "org/name", "sha": commit, "siblings": siblings, "private": False}
            body, status = json.dumps(info).encode(), 200
        elif path.startswith("/org/name/resolve/"):
            name = path.split("/", 5)[5]
            if name in self.files:
                body, status = self.files[name], 200
                headers["ETag"] = f'"{abs(hash(name)):x}"'
        if status == 404:
            headers["X-Error-Code"] = "RepoNotFound"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if with_body:
            self.wfile.write(body)


HUB_CLIENT = """
import sys
from cartridges_jax.models.sources.locate import open_source
from cartridges_jax.errors import InputError
try:
    print("FOLDER", open_source(sys.argv[1]).where)
except InputError as error:
    print("ERROR", error)
"""


@pytest.fixture
def hub_run(tmp_path):
    """Runs `open_source` in a process of its own against a Hub on this machine."""
    files = {f.name: f.read_bytes() for f in TEST_MODEL.iterdir()}
    handler = type("Handler", (_Hub,), {"files": files | {"x.bin": b"no"}, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def run(name, port=server.server_port):
        environment = {
            "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "PATH": "/usr/bin", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", HUB_CLIENT, name],
            capture_output=True, text=True, env=environment, timeout=120,
        )  # fmt: skip
        return done.stdout.strip().split(" ", 1) if done.stdout else [done.stderr, ""]

    yield run, handler.requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_model_is_downloaded_once(hub_run):
    run, requests = hub_run
    kind, folder = run("org/name@main")
    assert kind == "FOLDER"
    assert load_model(folder).identity["weights"] == load_model(TEST_MODEL).identity["weights"]
    assert not any("x.bin" in r for r in requests)  # only what a model needs
    first = sum(r.startswith("GET") and "safetensors" in r for r in requests)
    assert first == 1
    assert run("org/name@main") == ["FOLDER", folder]
    assert sum(r.startswith("GET") and "safetensors" in r for r in requests) == 1
    assert run("org/name@main", port=1) == ["FOLDER", folder]  # without a network: from the cache


def test_a_model_that_is_nowhere(hub_run):
    run, _ = hub_run
    kind, text = run("org/other")
    assert kind == "ERROR" and "no folder org/other here and no model org/other" in text
    kind, text = run("org/name2", port=1)
    assert kind == "ERROR" and "without a network, give" in text
    kind, text = run("no folder at all")
    assert kind == "ERROR" and "a Hugging Face folder" in text


def test_names_of_models_and_of_files():
    assert is_model_name("org/name@v1.0")
    assert not is_model_name("runs/x.cartridge") and not is_model_name("a/b/c")
