"""The exceptions that a caller should know.

The command line turns an `InputError` into its sentence and exit status 2; every exception that is
not of this file is a defect of ours and keeps its traceback.
"""


class InputError(ValueError):
    """Something given from outside cannot be used; the message says what, where and what would."""


class DiskError(InputError):
    """A disk takes no more: nothing that writes there can go on."""


class StoppedError(Exception):
    """The process was told to stop; what is done is saved, and the same call goes on from there."""
