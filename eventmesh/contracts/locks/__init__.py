"""Lock files: the frozen schema of each published version of a message.

`schemas/payments/payment_captured/v1.json` describes version 1 permanently. A change within the
version must be compatible in both directions with every revision before; it is a file of its own,
`v1.2.json`. What changes otherwise needs a new version.

`lock_file` reads and writes one file, `lock_folder` finds them, `drift` compares them with the
current models, `freezing` writes missing ones, and `sample_messages` makes the samples in them.
"""
