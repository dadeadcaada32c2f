"""Projections on DynamoDB."""
