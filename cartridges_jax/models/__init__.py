"""The frozen base model: configuration, weights, tokenizer, chat template, generation."""
