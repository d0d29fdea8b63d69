"""Who plays the two bots: anything that answers messages about a chunk."""
