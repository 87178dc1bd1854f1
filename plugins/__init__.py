"""First-party distillers, one file each. They use nothing but kdray's public names: copy one out, and it is a plugin
of yours."""
