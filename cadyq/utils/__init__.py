"""Small helpers that every room shares: errors, files, locks, options, registries."""
