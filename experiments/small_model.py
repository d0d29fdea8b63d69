"""Where the tests' small model is: experiments that need one that runs in seconds use it too."""

import pathlib

SMALL_MODEL = pathlib.Path(__file__).parent.parent / "tests" / "data" / "test_model"
