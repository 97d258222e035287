"""The smaller commands of `dpt`."""
