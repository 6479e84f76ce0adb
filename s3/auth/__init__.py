"""Who sent a request, and that nobody changed it: AWS Signature Version 4 and POST policies."""
