"""llama.cpp's side of `generation.py`, run by an interpreter that has llama-cpp-python.

    python llama_cpp_peer.py FILE.gguf THREADS

Reads a request a line from its standard input: {"read": ids}, or {"shared": ids, "prompts": [ids],
"steps": n}; answers {"seconds": ...}. What all sequences share is held once, in a common cache.
"""

import ctypes
import importlib
import json
import sys
import time
from typing import Any

import numpy as np

llama: Any = importlib.import_module("llama_cpp")  # not of this project's environment
MOST = 4096  # tokens of the cache


class Peer:
    def __init__(self, path: str, threads: int):
        llama.llama_backend_init()
        quiet = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(quiet, ctypes.c_void_p(0))
        self._quiet = quiet  # it must live as long as the library
        self.model = llama.llama_model_load_from_file(
            path.encode(), llama.llama_model_default_params()
        )
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = MOST, MOST, 512
        settings.n_seq_max, settings.kv_unified = 64, True
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, settings)
        self.memory = llama.llama_get_memory(self.context)
        self.words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(MOST, 0, 1)

    def decode(self, tokens, last_only=True) -> None:
        """Runs tokens, each an id, a position and a sequence."""
        self.batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = not last_only or i == len(tokens) - 1
        if llama.llama_decode(self.context, self.batch):
            raise SystemExit("llama_decode failed")

    def likeliest(self, row: int) -> int:
        logits = llama.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.words,)).argmax())

    def read(self, ids) -> float:
        llama.llama_memory_clear(self.memory, True)
        started = time.perf_counter()
        self.decode([(token, i, 0) for i, token in enumerate(ids)])
        self.likeliest(len(ids) - 1)
        return time.perf_counter() - started

    def steps(self, shared, prompts, steps) -> float:
        llama.llama_memory_clear(self.memory, True)
        start = len(shared)
        if shared:
            self.decode([(token, i, 0) for i, token in enumerate(shared)])
            for row in range(1, len(prompts)):
                llama.llama_memory_seq_cp(self.memory, 0, row, 0, start)
        last = []
        for row, prompt in enumerate(prompts):
            self.decode([(token, start + i, row) for i, token in enumerate(prompt)])
            last.append(self.likeliest(len(prompt) - 1))
        position = start + len(prompts[0])
        started = time.perf_counter()
        for step in range(steps):
            tokens = [(token, position + step, row) for row, token in enumerate(last)]
            self.decode(tokens, last_only=False)
            last = [self.likeliest(row) for row in range(len(prompts))]
        return time.perf_counter() - started


def main() -> None:
    peer = Peer(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        seconds = (
            peer.read(**{"ids": request["read"]}) if "read" in request else peer.steps(**request)
        )
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
