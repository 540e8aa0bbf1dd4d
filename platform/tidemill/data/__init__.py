"""Documents to token shards to samples: sample i of a run is a pure function of (seed, i)."""
