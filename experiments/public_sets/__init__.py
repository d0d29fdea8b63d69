"""Public benchmarks as tensorflow-datasets builders: downloaded once, kept as array_record files.

Nothing of them is in this repository; `made` configurations hold a few records of our own.
"""
