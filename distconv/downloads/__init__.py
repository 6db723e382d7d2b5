"""Meta's downloads: what there is, the link to it, and how its bytes come over."""
