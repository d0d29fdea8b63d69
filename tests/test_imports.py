"""Imports point one way, and what should not need jax does not import it."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "cartridges_jax"
# Each part may import those before it, and itself.
BASE = ("errors", "config", "files", "shapes", "distributed", "sharding", "metrics")
LAYERS = (
    (*BASE, "record_files", "shards", "shard_exchange"),
    ("attention",),
    ("models", "corpus"),
    ("cartridge", "cartridge_file", "composition"),
    ("engine",),
    ("language_model", "loading", "beginnings", "initializers"),
    ("self_study",),
    ("distillation",),
    ("presets", "evaluation", "planning"),
    ("demo", "chat", "info"),
    ("commands",),
    ("cli", "__init__"),
)


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cartridges_jax"):
            module = node.module.removeprefix("cartridges_jax").removeprefix(".")
            found |= (
                {f"{module}.{a.name}".strip(".") for a in node.names} if not module else {module}
            )
            if module in {"evaluation", "models", "distillation", "self_study"}:
                found |= {f"{module}.{a.name}" for a in node.names}
    return found


def layer(module: str) -> int:
    top = module.split(".")[0]
    return next(i for i, names in enumerate(LAYERS) if top in names)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    # A cartridge offers save and load as methods.
    allowed = {"cartridge_file"} if module == "cartridge" else set()
    for target in imports(path) - allowed - {"__version__"}:
        assert layer(target) <= layer(module), f"{module} imports {target}"


def test_corpus_and_command_line_do_not_import_jax():
    code = (
        "import sys, cartridges_jax, cartridges_jax.corpus, cartridges_jax.cli\n"
        "assert 'jax' not in sys.modules, 'jax was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_loads():
    import cartridges_jax

    for name in cartridges_jax.__all__:
        assert getattr(cartridges_jax, name).__name__ == name
