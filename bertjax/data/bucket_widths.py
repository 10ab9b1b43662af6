"""The few widths that batches of any texts have; `bucketing` finds better ones for a split's."""


def bucket_width(length: int, longest: int, steps: int = 2) -> int:
    """Return the width for a row of texts that are not known: 16, 24, 32, 48, ... or `longest`.

    With two widths for each power of two, from 16 tokens on the longest row fills two thirds of its
    width or more, and 512 tokens need 11 shapes; with four, four fifths and 21.

    Args:
      length: tokens of the longest row.
      longest: the last width.
      steps: widths for each power of two, 1, 2, 4, ... or 16.
    """
    width = 16
    while width < length:
        width += (1 << (width.bit_length() - 1)) // steps
    return min(width, longest)
