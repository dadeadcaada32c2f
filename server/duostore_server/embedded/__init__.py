"""PostgreSQL and DynamoDB as child processes, for development: no installation but Python."""
