"""Questions that a team answers by searching a corpus."""
