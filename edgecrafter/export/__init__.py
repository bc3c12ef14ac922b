"""Networks leave torch: graphs, formats, metadata, and the proof that the answers are the same."""
