"""A Google Cloud for tests of launch/tpu.py: gcloud, buckets, queued resources, and VMs that really run."""
