"""The verbs of the command line, a module each, and what several of them do."""
