"""Public benchmarks as tensorflow-datasets builders: downloaded once, kept as array_record files.

Nothing of them is in this repository; `made` configurations hold a few records of our own.
"""

from collections.abc import Sequence
from typing import Any


def records_of(builder: Any, split: str) -> Sequence[dict[str, Any]]:
    """A split of a data set, prepared once, as random-access records."""
    builder.download_and_prepare(file_format="array_record")
    return builder.as_data_source(split=split)
