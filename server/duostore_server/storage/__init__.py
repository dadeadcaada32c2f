"""The stores: each driver in its own folder, its errors translated there."""
