"""Many ranks, one model. Read world, sharding and shard_model (where tables are), id_messages and peer_exchange, rank_batches, sharded_model, optimizers."""
