"""How many bytes go at once, where prices have to know it. Knows no message."""

FLOAT = 4  # of a float32 number
PART_BYTES = 48 << 10  # of a message, at most, that is sent without the receiver's consent
RING_BYTES = 16 << 10  # what a ring passes on at a time
DIRECT_BYTES = 32 << 10  # of terms of a sum, at most, that go to each rank at once where ranks wait politely
