"""The ports to DynamoDB: projections, heads, snapshots and idempotency records."""
