"""The one exception type for mistakes of the person who calls us.

The command line turns an `InputError` into its sentence and exit status 2; every other exception
is a defect of ours and keeps its traceback.
"""


class InputError(ValueError):
    """Something given from outside cannot be used; the message says what, where and what would."""
