"""Moving the bytes: scheduler, executors, worker."""
