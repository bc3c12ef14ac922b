"""What the splits of a data set may be called."""

ALIASES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
