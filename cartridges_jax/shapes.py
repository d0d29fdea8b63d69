"""Sizes rounded up to few: every distinct shape is a program to compile."""


def round_up(size: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `size`."""
    return -(-size // step) * step


def power_of_two(size: int, least: int) -> int:
    """The smallest of `least`, 2 * `least`, 4 * `least`, ... that is not below `size`."""
    while least < size:
        least *= 2
    return least


def few_sizes(size: int, least: int) -> int:
    """Rounds up to a multiple of `least`, of large sizes to one of four an octave.

    So large sizes grow by less than a quarter.
    """
    return round_up(max(size, 1), max(power_of_two(size + 1, least) // 8, least))
