"""Aurora PostgreSQL: the authority, the outbox of its changes, and the drafts."""
