"""What a run needs on a TPU slice, before there is one."""
