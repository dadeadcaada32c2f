"""Duostore's server: memcached, DynamoDB and Aurora PostgreSQL behind one gRPC API."""
