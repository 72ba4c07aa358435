"""Lets the processes of several hosts make one run: joins them, and lets them meet. See docs/hosts.md."""
