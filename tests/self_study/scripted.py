"""A client that says what a script says: self-study without a model."""

import random

from cartridges_jax.self_study.clients.base import Reply


def _ask(index, seed):
    return f"Number {index}: what of {seed.rpartition(' ')[2].strip('.')}?"


class ScriptedClient:
    """Its first reader of a unit asks, its second answers."""

    opens_thoughts = False
    requests_at_once = 1  # it has to be asked in turn

    def __init__(self, ask=_ask, finished=True):
        self.ask = ask
        self.finished = finished  # of the answers
        self.openings = []
        self.answered = []  # the chunk that is answered about, and the one that was asked about
        self._asking = None

    @property
    def fingerprint(self):
        return {"scripted": True}

    def close(self):
        pass

    def read(self, chunk, opening=()):
        self.openings.append(list(opening))
        asks = self._asking is None
        if asks:
            self._asking = chunk.text
        else:
            self.answered.append((chunk.text, self._asking))
            self._asking = None
        return _Reader(self, asks)


class _Reader:
    def __init__(self, client, asks):
        self._client, self._asks = client, asks

    def complete(self, requests, *, temperature, max_new_tokens, seeds, enough=None):
        replies = []
        for i, (request, seed) in enumerate(zip(requests, seeds, strict=True)):
            said = request[-1]["content"]
            drawn = random.Random(seed)
            text = self._client.ask(i, said) if self._asks else f"{drawn.random():.3f} for {said}"
            ended = self._asks or self._client.finished
            text += "" if ended else " And then"
            replies.append(Reply(text, drawn.random(), ended))
        return replies
