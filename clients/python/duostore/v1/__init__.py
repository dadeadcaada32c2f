"""Generated from protos/duostore/v1 by `make generate`."""
