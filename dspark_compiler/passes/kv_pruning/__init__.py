"""Parts of prune_kv_cache: the budget, the layers, what is recorded for policies, rope as numbers."""
