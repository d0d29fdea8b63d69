"""Plans: what is counted, what the compiler says, and what cannot be planned."""

import dataclasses
import json

import pytest

from cartridges_jax.cli import main
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.errors import InputError
from cartridges_jax.planning.chips import SLICES, parse_slice, slices_of
from cartridges_jax.planning.collectives import by_kind, collectives_of
from cartridges_jax.planning.counting import Layout, memory_of, work_of
from cartridges_jax.planning.plan import Asked, plan, smallest_slice
from experiments.model_shapes import LLAMA_3_1_8B, LLAMA_3_1_70B, LLAMA_3_2_1B

PAPER = TrainConfig(
    num_slots=2048, rows_per_step=32, row_length=2048, loss_on="all", num_steps=2000
)
GIB = 2**30


@pytest.fixture
def model(tmp_path):
    """A folder with the config.json of Llama-3.2-1B and nothing else."""
    fields = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "max_position_embeddings": 131_072, "tie_word_embeddings": True, "bos_token_id": 128_000,
        "eos_token_id": [128_001, 128_009],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return tmp_path


def test_slices_are_what_their_names_say():
    assert [parse_slice(n).chips for n in ("v5e-16", "v5p-64", "tpu7x-8", "gpu:h200x8")] == [
        16, 32, 8, 8,
    ]  # fmt: skip
    assert parse_slice("tpu7x-8").devices == 16
    for kind in SLICES:
        sizes = [one.chips for one in slices_of(kind)]
        assert sizes == sorted(sizes)
        for one in slices_of(kind):
            axes = [int(n) for n in one.shape.split("x")]
            assert one.chips == axes[0] * axes[1] * (axes[2] if len(axes) > 2 else 1)


def test_work_is_that_of_a_frozen_base():
    """Four operations a weight and token, six where layers are computed again (FACTS, 4)."""
    short = dataclasses.replace(PAPER, num_slots=1, targets_per_row=1, row_length=64)
    layout = Layout(data=8, model=1, fsdp=True, save_products=True)
    of_token = work_of(LLAMA_3_1_8B, short, layout).flops * 8 / (32 * 64)
    assert of_token == pytest.approx(4 * LLAMA_3_1_8B.num_params(), rel=0.15)
    again = work_of(LLAMA_3_1_8B, short, dataclasses.replace(layout, save_products=False))
    assert again.flops * 8 / (32 * 64) == pytest.approx(1.5 * of_token, rel=0.02)


def test_memory_grows_with_what_it_should():
    layout = Layout(data=8, model=1, fsdp=True, save_products=True)
    one = memory_of(LLAMA_3_1_8B, PAPER, layout)
    assert one.weights == pytest.approx(2 * LLAMA_3_1_8B.num_params() / 8, rel=0.01)
    bytes_of_slots = 2048 * LLAMA_3_1_8B.kv_floats_per_token * 16
    assert one.cartridges == bytes_of_slots
    many = memory_of(LLAMA_3_1_8B, PAPER, dataclasses.replace(layout, cartridges=64))
    assert many.cartridges == 64 / 8 * bytes_of_slots
    fewer = memory_of(LLAMA_3_1_8B, dataclasses.replace(PAPER, rows_at_once=8), layout)
    assert fewer.activations < 0.3 * one.activations
    shared = memory_of(LLAMA_3_1_8B, PAPER, dataclasses.replace(layout, data=2, model=4))
    assert shared.cartridges == bytes_of_slots / 4


HLO = """
%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %i.1 = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(1)
  %two = s32[]{:T(128)} constant(2)
  %half = s32[]{:T(128)} add(%i.1, %one)
  %next = s32[]{:T(128)} add(%i.1, %two)
  %all-gather.1 = bf16[16,4]{1,0} all-gather(%x), channel_id=7, replica_groups=mesh['a'=2] {'a'}
}
%done (p: bf16[8,4]) -> bf16[16,4] {
  %all-gather.2 = bf16[16,4]{1,0} all-gather(%x), channel_id=7, replica_groups=[4,2]<=[8]
}
%condition (p: (s32[], bf16[8,4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(10)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %while.1 = (s32[], bf16[8,4]) while(%t), condition=%condition, body=%body
  %fusion.1 = bf16[16,4] fusion(%x), kind=kCustom, calls=%done
  ROOT %sum = (f32[6]{0}, f32[2]{0}) all-reduce(%a, %b), channel_id=9, replica_groups={{0,1,2,3}}
}
"""


def test_collectives_are_counted_as_often_as_they_run():
    found = collectives_of(HLO)
    assert [(one.kind, one.runs) for one in found] == [("all-gather", 5), ("all-reduce", 1)]
    assert by_kind(found) == {
        "all-gather": 5 * 16 * 4 * 2 * 1 / 2,  # half of it is the device's own
        "all-reduce": 2 * 8 * 4 * 3 / 4,
    }


def test_a_gpu_is_planned_by_arithmetic(model, capsys):
    argv = ["plan", f"--model={model}", "--topology=gpu:h200x8", "--price=50", "--json"]
    assert main(argv) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["by"] == "arithmetic" and told["fits"] and told["dollars"] > 0
    assert told["hours"] * 3600 == pytest.approx(2000 * told["step_s"])
    assert main([*argv, "--conversations=131072", "--epochs=2"]) == 0
    more = json.loads(capsys.readouterr().out)
    assert more["steps"] == round(131_072 * 600 * 2 / (32 * 2048))
    assert main(["plan", f"--model={model}", "--topology=gpu:h100x1", "--serve"]) == 0
    assert "tokens/s in all" in capsys.readouterr().out


def test_any_model_that_can_be_named_is_planned(capsys):
    assert main(["plan", "--model=smollm2", "--topology=gpu:h100", "--preset=laptop"]) == 0
    assert "gpu:h100x1: 1 chips" in capsys.readouterr().out


def test_what_does_not_fit_says_what_would():
    with pytest.raises(
        InputError, match=r"does not fit gpu:h100x1: a device has 74.5 GiB.*weights"
    ):
        plan(Asked(LLAMA_3_1_70B, PAPER), parse_slice("gpu:h100x1"))
    smallest = smallest_slice(Asked(LLAMA_3_1_70B, PAPER), "h200")
    assert smallest.where.chips == 2
    with pytest.raises(InputError, match="no slice of h100 takes this job: it does not fit"):
        smallest_slice(Asked(LLAMA_3_1_70B, PAPER, mesh_model=1, fsdp=False), "h100")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=v5e-17"], "there is no slice v5e-17; v5e comes in 1, 4, 8, 16"),
        (["--topology=v9-8"], "unknown topology 'v9-8'; known are v5e-N"),
        (["--topology=gpu:h200x99"], "one to eight GPUs of a host"),
        (
            ["--topology=v5e-256", "--mesh_model=1"],
            "32 rows a step of 1 cartridges cannot be shared",
        ),
        (["--topology=v5e-8", "--mesh_model=3"], "mesh_model 3 does not divide the 8 devices"),
        (["--topology=v5e-8", "--num_slots=200000"], "exceed the model's window"),
        (["--topology=v5e-8", "--num_slots=0"], "num_slots must be above 0"),
        (["--topology=gpu:h200", "--num_slots=0"], "num_slots must be above 0"),
        (["--topology=gpu:h200x1", "--num_frozen=5000"], "it must leave some of the 2048 slots"),
        (["--topology=gpu:h200x1", "--rows_at_once=7"], "rows_at_once 7 does not divide"),
        (["--topology=gpu:h200x1", "--price=-3"], "price must not be below 0"),
        (["--topology=gpu:h200", "--serve", "--mesh_model=-2"], "mesh_model must not be below 0"),
        (["--topology=gpu:h200", "--serve", "--num_slots=-5"], "num_slots must be above 0"),
        (["--topology=v5e-8", "--conversations=5", "--num_steps=5"], "not both"),
        (["--topology=v5e-8", "--share=2"], "share must be above 0"),
        (["--topology=gpu:h200", "--serve", "--requests=0"], "requests must be above 0"),
        (["--topology=gpu:h200", "--model=/nowhere/config.json"], "there is no file"),
    ],
)
def test_nonsense_is_refused_with_the_reason(model, capsys, flags, words):
    assert main(["plan", f"--model={model}", *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_step_of_many_cartridges_sends_no_gradients():
    """By the TPU compiler: each device has its own; what is gathered are a layer's weights."""
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed: no TPU compiler")
    training = TrainConfig(num_slots=256, rows_per_step=1, row_length=1024, num_steps=100)
    asked = Asked(LLAMA_3_2_1B, training, cartridges=8, mesh_model=1, fsdp=True)
    found = plan(asked, parse_slice("v5e-8"))
    told = found.compiled
    assert told["received"].get("all-reduce", 0) < 1e4
    assert told["largest_gather_bytes"] < 0.3 * 2 * LLAMA_3_2_1B.num_params()
    assert told["received"]["all-gather"] == pytest.approx(found.work.gathered, rel=0.1)
    assert found.hbm_bytes == pytest.approx(found.memory.total, rel=0.35)
