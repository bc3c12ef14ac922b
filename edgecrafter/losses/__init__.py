"""What a network should say: matching of queries and objects, loss terms, the loss as a table, denoising queries."""
