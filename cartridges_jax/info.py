"""What `cartridges info` says about a file or folder: counts, hashes, and how it was made."""

import json
import os
from typing import Any

from etils import epath

from cartridges_jax import cartridge_file, files
from cartridges_jax.corpus import read_corpus
from cartridges_jax.distillation import targets
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation.report import human_bytes
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.self_study import conversation
from cartridges_jax.shards import ShardSet

_MODEL_FILES = ("tokenizer.json", "tokenizer.model", "model.safetensors")


def _is_model(folder: epath.Path) -> bool:
    """Whether a folder is meant to be a model: many others have a config.json."""
    if any((folder / name).exists() for name in _MODEL_FILES):
        return True
    path = folder / "config.json"
    return path.exists() and any(name in path.read_text() for name in ("model_type", "architec"))


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Explains a cartridge, conversations or targets, results.json, a model, or texts.

    Raises:
      InputError: if it does not exist, is damaged, or is none of these.
    """
    from cartridges_jax.models.sources.locate import is_model_name

    target = files.local_path(path)
    if not target.exists() and is_model_name(path):
        return _model(path)
    if not target.exists():
        raise InputError(f"there is no file or folder {path}")
    if not target.is_dir():
        kinds = {".json": _results, ".gguf": _model}
        return kinds.get(target.suffix, _cartridge)(target)
    if _is_model(target):
        return _model(target)
    found: dict[str, Any] = {}
    for name in (conversation.SHARDS, targets.SHARDS):
        if ShardSet.exists(target, name):
            found |= _shards(ShardSet.read(target, name))
    runs = sorted(target.glob("*.cartridge"))
    if not found and len(runs) == 1:
        return _cartridge(runs[0])
    if not found:
        return _corpus(target)
    return found


def _corpus(folder: epath.Path) -> dict[str, Any]:
    """Texts: what a study of the folder would read, and every file that it would not."""
    try:
        summary = read_corpus(folder).summary
    except InputError as error:
        raise InputError(
            f"{folder} holds no cartridge, no conversations, no targets and no model; {error}"
        ) from error
    first, *others = summary.lines()
    told = {"corpus": first.removeprefix("corpus: ")}
    told |= dict(line.split(": ", 1) for line in others if not line.startswith("left out"))
    told |= {f"left out, {why}": ", ".join(names) for why, names in summary.left_out.items()}
    return told


def _results(path: epath.Path) -> dict[str, Any]:
    """A results.json of `evaluate`: its corpus, and one line for each arm."""
    try:
        results = json.loads(path.read_text())
        described: dict[str, Any] = {
            "results": os.fspath(path),
            "model": results["model"]["name"],
            "corpus": ", ".join(d["name"] for d in results["corpus"][:5]),
        }
        for name, arm in results["arms"].items():
            words = [f"{arm['tokens']} tokens or slots", human_bytes(arm["kv_bytes"])]
            if "accuracy" in results:
                share = results["accuracy"][name]["all"]
                words.append(f"{100 * share['value']:.1f} % of {share['n']} questions right")
            if "held_out" in arm:
                words.append(f"KL {arm['held_out']['kl']:.4f} nats a token")
            described[name] = ", ".join(words)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} holds no results of an evaluation ({error!r})") from error
    return described


def _cartridge(path: epath.Path) -> dict[str, Any]:
    header = cartridge_file.read_header(path)
    L, P, K, H = header["shape"]
    itemsize = {"F32": 4, "BF16": 2, "F16": 2}.get(header["dtype"], 4)
    made = header["provenance"]
    model, data, settings = (made.get(key, {}) for key in ("model", "data", "settings"))
    return {
        "cartridge": os.fspath(path),
        "slots": f"{P} ({header['num_frozen']} frozen), suffix starts at {header['next_position']}",
        "shape": f"{L} layers, {K} kv heads of {H}, {header['dtype']}",
        "KV bytes": human_bytes(2 * L * P * K * H * itemsize),
        "model": f"{model.get('name', 'unknown')} (weights {model.get('weights', '?')[:12]})",
        "rope": json.dumps(model.get("rope")),
        "corpus": ", ".join(f"{d['name']} ({d['sha256'][:12]})" for d in made.get("corpus", [])),
        "data": json.dumps(data),
        "settings": json.dumps(settings),
        "made": made.get("made", "unknown"),
    }


def _shards(shards: ShardSet) -> dict[str, Any]:
    model = shards.inputs.get("model")
    weights = model.get("weights") if isinstance(model, dict) else None
    described: dict[str, Any] = {
        shards.name: f"{shards.num_records} in {len(shards.units)} units "
        f"(hash {shards.fingerprint[:12]})",
        f"{shards.name} model": f"weights {str(weights or '?')[:12]}",
    }
    if shards.name == conversation.SHARDS:
        names = [d["name"] for d in shards.inputs.get("corpus", [])]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        described["corpus"] = ", ".join(names[:5]) + more
        described["dropped"] = shards.total("dropped")
        settings = {k: v for k, v in shards.inputs.items() if k not in ("model", "corpus")}
        described["settings"] = json.dumps(settings)
    else:
        described["tokens"] = shards.total("row_tokens")
        described["target positions"] = shards.total("row_targets")
    return described


def _model(name: str | os.PathLike[str]) -> dict[str, Any]:
    from cartridges_jax.models.parts import open_parts, stop_ids

    parts = open_parts(name)
    config, tokenizer, template = parts.config, parts.tokenizer, parts.template
    context = template.render_context("", "TEXT")
    return {
        "model": parts.source.where,
        "family": config.family,
        "parameters": f"{config.num_params():,}",
        "layers": config.num_layers,
        "heads": f"{config.num_heads} query, {config.num_kv_heads} key-value, of {config.head_dim}",
        "width": f"{config.hidden_size}, MLP {config.mlp_size}, vocabulary {config.vocab_size}",
        "options": ", ".join(_options(config)) or "none",
        "window": f"{config.window} tokens",
        "KV per token": f"{human_bytes(4 * config.kv_floats_per_token)} in float32, "
        f"{human_bytes(2 * config.kv_floats_per_token)} in bfloat16",
        "rope": f"theta {config.rope.theta:g}, scaling {config.rope.scaling}",
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size} tokens, "
        f"BOS {tokenizer.bos_token!r}, hash {tokenizer.fingerprint[:12]}",
        "stop tokens": ", ".join(map(str, stop_ids(config, template))),
        "chat template": f"{len(template.source)} characters; {len(context)} tokens around "
        "a context of one word",
        "weights": parts.weights_hash,
    }


def _options(config: ModelConfig) -> list[str]:
    named = {
        "tied embeddings": config.tie_embeddings,
        "norms on q and k": config.qk_norm,
        "biases on q, k, v": config.qkv_bias,
        "bias on the attention's output": config.output_bias,
        "biases in the MLP": config.mlp_bias,
    }
    return [name for name, given in named.items() if given]
