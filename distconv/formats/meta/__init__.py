"""Meta's format: torch archives a model-parallel rank, params.json, tokenizer.model, checklist.chk."""
