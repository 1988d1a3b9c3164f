"""Files under keys, in a directory or in a bucket of an S3-compatible object store."""
