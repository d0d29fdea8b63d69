"""Context distillation: teacher targets, their data set, the loss and the training loop."""
