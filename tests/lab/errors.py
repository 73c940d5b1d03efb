"""What a user of the lab can mend. Knows no more than that; the command line prints it and ends with code 2."""


class LabError(Exception):
    """A sentence for the user: what, where, the numbers, the next command. Lower case, no full stop."""
