"""What Meta wrote: files, params.json, and the headers of the shards."""
