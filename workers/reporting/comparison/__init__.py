"""Several reports side by side: figures, page and summary, from stored reports alone."""
