"""Where a shard is worked on. A runner takes a `ShardPlan` and gives a `ShardRecord`, both plain data."""
