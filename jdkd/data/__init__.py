"""What a run reads: collections, and what is made of them on the way to the device."""
