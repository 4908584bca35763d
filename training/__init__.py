"""Dataset → trained entire-space model, in PyTorch. Read the modules in the order that a batch takes:

world (the ranks) → plan (who reads what, when) → columns, shards, pages, checks, row_groups (files and their content,
checked) → petastorm_port (streams them) → feed → collate → batch → transfer → embeddings → sharding and place (where
the tables are) → ids and exchange (ids to the tables, rows back) → shares (a step's batch, its ids on their way) →
towers → graph (probabilities and losses) → placed (forward, differentiate, learn) → assembly → trainer → checkpoint →
metrics → report. Beside that road, for jobs.plan: cluster → capacity (bytes) → proposal (TorchRec's planner) →
fitting → fitting_page.

`competitors` are configurations of the same trainer. Of pipeline/ only these are imported: the manifest, which is the
contract; numba_cache, which says where compiled kernels lie; and pages/, the frame and charts of what people look at.
"""
