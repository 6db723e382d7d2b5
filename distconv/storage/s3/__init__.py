"""Objects in S3 and what speaks its language, as a storage."""
