"""Where a model comes from: a folder, a Hub name, a GGUF file; see `locate.open_source`."""
