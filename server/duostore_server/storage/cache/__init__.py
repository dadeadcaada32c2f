"""The cache: on memcached, and in-process."""
