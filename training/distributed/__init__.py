"""Many ranks, one model. Read world, sharding and shard_model (table placement), torchrec_internals, id_messages and peer_exchange
(the all-to-all), rank_batches, sharded_model, tower_gradients, optimizers."""
