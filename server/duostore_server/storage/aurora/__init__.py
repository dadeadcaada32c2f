"""The authority on Aurora PostgreSQL: entities and the outbox of their changes."""
