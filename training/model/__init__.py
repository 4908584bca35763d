"""The model. Read graph (probabilities), losses, embeddings, towers, bodies, entire_space. counter_random gives initial
values and dropout masks."""
