"""Moving the bytes with a Ray cluster; nothing else imports ray."""
