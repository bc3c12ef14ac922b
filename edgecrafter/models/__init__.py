"""Networks. Nothing here knows a target, a loss or a data set."""
