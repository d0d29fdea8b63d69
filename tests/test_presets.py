"""Values by the size of the model: a flag wins over the preset, the preset over the default."""

import dataclasses

import pytest
from absl import flags

from cartridges_jax import presets
from cartridges_jax.commands.common import config_with_preset
from cartridges_jax.config import define_flags
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.errors import InputError
from cartridges_jax.self_study.config import SynthesisConfig

STAGES = (SynthesisConfig, TrainConfig)


def parsed(config_class, *argv):
    values = flags.FlagValues()
    define_flags(config_class, values)
    values(["command", *argv])
    return config_with_preset(config_class, values)


def test_every_value_of_a_preset_is_a_setting_of_some_stage():
    fields = {field.name for stage in STAGES for field in dataclasses.fields(stage)}
    for values in presets.PRESETS.values():
        assert values.keys() <= fields


@pytest.mark.parametrize("name", presets.PRESETS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_preset_gives_its_values_and_its_name(stage, name):
    config = parsed(stage, f"--preset={name}")
    assert config == presets.preset(stage, name) and config.preset == name
    for field in dataclasses.fields(stage):
        if field.name in presets.PRESETS[name]:
            assert getattr(config, field.name) == presets.PRESETS[name][field.name]


def test_a_flag_wins_and_what_nobody_names_is_the_default():
    config = parsed(SynthesisConfig, "--preset=paper", "--num_examples=3", "--nopassages")
    assert (config.num_examples, config.passages) == (3, False)
    assert config.question_max_tokens == presets.PRESETS["paper"]["question_max_tokens"]
    assert config.question_temperature == SynthesisConfig().question_temperature
    assert parsed(SynthesisConfig).preset == "laptop"


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match="preset must be one of laptop, paper, got 'tiny'"):
        parsed(TrainConfig, "--preset=tiny")
