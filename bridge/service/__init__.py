"""The service: a poller for each gateway, one sender, and the bridge that joins them."""
