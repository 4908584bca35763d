"""Dataset → trained entire-space model, in PyTorch. Read the modules in the order that a batch takes:

world (the ranks) → plan (who reads what, when) → feed (Petastorm) → batch → embeddings → towers → graph
(probabilities and losses) → place (sharding, DDP, optimizers) → trainer → checkpoint → metrics → report.

`competitors` are configurations of the same trainer. Of pipeline/ only the manifest is imported.
"""
