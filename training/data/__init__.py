"""What training reads: samples of clips, the shards that hold them, and what is prepared of each once."""
