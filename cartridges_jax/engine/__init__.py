"""Generation: prompts behind a shared prefix in, answers out."""
