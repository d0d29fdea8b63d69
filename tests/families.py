"""Stand-ins for the families' checkpoints, made on the spot: tokenizer, chat template, weights.

The tokenizers are trained on this repository's prose with the pipelines of the real ones. The
templates are written for these tests and render what the published ones render.
"""

import dataclasses
import io
import json
import pathlib

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).parent.parent
VOCAB_SIZE = 600

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

_LLAMA3_TEMPLATE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set about = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set about = '' %}
    {%- set rest = messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}
{{- 'Today Date: ' + (date_string if date_string is defined else strftime_now('%d %b %Y')) }}
{{- '\n\n' + about + '<|eot_id|>' }}
{%- for turn in rest %}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n' }}
    {{- turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

_QWEN25_TEMPLATE = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\n' }}
{%- endif %}
{%- for turn in messages %}
    {{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""

_QWEN3_TEMPLATE = """{%- set seen = namespace(question=0) %}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}{% set seen.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for turn in messages %}
    {{- '<|im_start|>' + turn.role + '\n' }}
    {%- if turn.role == 'assistant' %}
        {%- set said = turn.content %}
        {%- set thought = '' %}
        {%- if '</think>' in said %}
            {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > seen.question and (loop.last or thought) %}
            {{- '<think>\n' + thought + '\n</think>\n\n' + said.lstrip('\n') }}
        {%- else %}
            {{- said }}
        {%- endif %}
    {%- else %}
        {{- turn.content }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

_MISTRAL_TEMPLATE = """{%- set about = messages[0]['content'] if messages[0]['role'] == 'system' %}
{%- set rest = messages[1:] if messages[0]['role'] == 'system' else messages %}
{{- bos_token }}
{%- for turn in rest %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user and assistant') }}
    {%- endif %}
    {%- if turn['role'] == 'user' and loop.last and about is defined and about %}
        {{- '[INST] ' + about + '\n\n' + turn['content'] + '[/INST]' }}
    {%- elif turn['role'] == 'user' %}
        {{- '[INST] ' + turn['content'] + '[/INST]' }}
    {%- else %}
        {{- ' ' + turn['content'] + eos_token }}
    {%- endif %}
{%- endfor %}"""

_LLAMA2_TEMPLATE = """{%- set about = messages[0]['content'] if messages[0]['role'] == 'system' %}
{%- set rest = messages[1:] if messages[0]['role'] == 'system' else messages %}
{%- for turn in rest %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user and assistant') }}
    {%- endif %}
    {%- set said = turn['content'] %}
    {%- if loop.first and about is defined and about %}
        {%- set said = '<<SYS>>\n' + about + '\n<</SYS>>\n\n' + said %}
    {%- endif %}
    {%- if turn['role'] == 'user' %}
        {{- bos_token + '[INST] ' + said.strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + said.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}"""


@dataclasses.dataclass(frozen=True)
class Family:
    """What makes a checkpoint one of its family, beside its weights."""

    architecture: str  # of transformers, without "ForCausalLM"
    template: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    words: tuple[str, ...] = ()  # added tokens that text may hold
    split: str | None = None  # byte-level BPE with this regex; None is a BPE as SentencePiece's
    nfc: bool = False
    own_system_turn: bool = True
    tokenizer_class: str = "PreTrainedTokenizerFast"
    prepends: bool = False  # a space before every piece of text, by the normalizer


FAMILIES = {
    "llama 3": Family(
        "Llama",
        _LLAMA3_TEMPLATE,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        split=_LLAMA3_SPLIT,
    ),
    "qwen 2.5": Family(
        "Qwen2",
        _QWEN25_TEMPLATE,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        None,
        "<|im_end|>",
        split=_QWEN_SPLIT,
        nfc=True,
    ),
    "qwen 3": Family(
        "Qwen3",
        _QWEN3_TEMPLATE,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        None,
        "<|im_end|>",
        words=("<think>", "</think>"),
        split=_QWEN_SPLIT,
        nfc=True,
    ),
    "mistral": Family(
        "Mistral",
        _MISTRAL_TEMPLATE,
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        "<s>",
        "</s>",
        own_system_turn=False,
    ),
    "llama 2": Family(
        "Llama",
        _LLAMA2_TEMPLATE,
        ("<unk>", "<s>", "</s>"),
        "<s>",
        "</s>",
        own_system_turn=False,
        tokenizer_class="LlamaTokenizer",
        prepends=True,
    ),
}


def _prose() -> list[str]:
    """Lines to train on; without line ends, which the old vocabularies hold as a byte alone."""
    texts = [(ROOT / name).read_text() for name in ("README.md", "WORKSPACE.md")]
    return [line for text in texts for line in text.splitlines() if line]


def make_tokenizer(family: Family) -> tokenizers.Tokenizer:
    """Trains a tokenizer with the pipeline of the family's own."""
    if family.split is None:
        tokenizer = tokenizers.Tokenizer(
            models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        alphabet = []
        first = [*family.special, *(f"<0x{i:02X}>" for i in range(256))]
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(family.split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        alphabet, first = pre_tokenizers.ByteLevel.alphabet(), list(family.special)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_prose(), trainer)
    if family.split is None:
        fields = json.loads(tokenizer.to_str())
        fields["pre_tokenizer"]["split"] = False  # merges never cross a space, as SentencePiece's
        fields["added_tokens"] = [
            t for t in fields["added_tokens"] if not t["content"].startswith("<0x")
        ]
        if family.prepends:
            fields["pre_tokenizer"] = None
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(fields))
        if family.prepends:
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1),
            ]
        )
    else:
        tokenizer.normalizer = normalizers.NFC() if family.nfc else None
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([tokenizers.AddedToken(w, special=False) for w in family.words])
    return tokenizer


def make_sentencepiece() -> bytes:
    """Trains a SentencePiece model as Llama 2's: BPE, byte fallback, a space before the text."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_prose()), model_writer=out, model_type="bpe",
        vocab_size=VOCAB_SIZE, byte_fallback=True, character_coverage=0.9995,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


def write_tokenizer(folder: pathlib.Path, family: Family) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    make_tokenizer(family).save(str(folder / "tokenizer.json"))
    fields = {
        "tokenizer_class": family.tokenizer_class,
        "bos_token": family.bos,
        "eos_token": family.eos,
        "unk_token": "<unk>" if "<unk>" in family.special else None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "chat_template.jinja").write_text(family.template)


def write_model(folder: pathlib.Path, family: Family, window: int = 1024) -> None:
    """Writes a tiny random model of the family, as its authors' folder looks.

    A tenth of the vocabulary ends an answer, so that random answers do end.
    """
    import torch
    import transformers

    write_tokenizer(folder, family)
    vocabulary = make_tokenizer(family).get_vocab_size()
    stops = list(range(vocabulary - vocabulary // 10, vocabulary - len(family.words)))
    fields = {
        "vocab_size": vocabulary + 8,  # padded, as Qwen's is
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "rope_parameters": {"rope_theta": 3e4, "rope_type": "default"},
        "max_position_embeddings": window,
        "eos_token_id": stops,
        "bos_token_id": 0,
        "sliding_window": None,
    }
    torch.manual_seed(1)
    config = getattr(transformers, f"{family.architecture}Config")(**fields)
    model = getattr(transformers, f"{family.architecture}ForCausalLM")(config)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="50KB")
