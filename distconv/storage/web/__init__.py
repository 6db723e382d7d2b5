"""Files of the Hugging Face Hub, and of servers on the web, as storages that are only read."""
