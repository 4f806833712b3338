"""The layers of a Reformer: reversible residuals, attention, feed-forward, embeddings."""
