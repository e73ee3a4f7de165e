"""Files on the disk: strangers' read as data, ours written whole or not at all."""
