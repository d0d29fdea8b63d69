"""Results as data: every file says by which command, when and on what it was made."""

import datetime
import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from cartridges_jax import files


def write_result(path: epath.PathLike, result: dict[str, Any]) -> None:
    """Writes a result file with its command, date and hardware in front."""
    module = sys.modules["__main__"].__spec__
    # Where it worked and wrote is of no matter to the result.
    said = [
        a
        for a in sys.argv[1:]
        if not a.lstrip("-").startswith(("work=", "out=", "answers=", "before="))
    ]
    name = module.name if module else sys.argv[0]
    made = {
        "command": shlex.join(["python", "-m", name, *said]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()})"
        if jax.default_backend() == "cpu"
        else f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, {"made": made, **result})


def found_or_made(
    path: epath.PathLike,
    made_with: dict[str, Any],
    make: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """A result file that was made with these settings; made and written now where there is none.

    So an experiment of many parts goes on where it was, on another machine too. `make` is given
    what was made with other settings, or nothing.
    """
    made_with = json.loads(json.dumps(made_with))  # as it reads in the file
    file = epath.Path(path)
    found: dict[str, Any] = {}
    if file.exists():
        found = json.loads(file.read_text())
        if found.get("made_with") == made_with:
            return found
    write_result(file, {"made_with": made_with, **make(found)})
    return json.loads(file.read_text())


def files_digest(*paths: epath.Path) -> str:
    """sha256 over the contents of files, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
