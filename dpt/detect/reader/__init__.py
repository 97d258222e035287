"""The reader: a small network that reads rendered-world pictures, trained here and by no method's own data."""

RECORD = "reader.json"
"""How the network is built and read, beside its weights."""
