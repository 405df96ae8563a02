"""Impression logs: from raw files to verified TFRecord shards, and from these to batches."""
