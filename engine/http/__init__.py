"""A thin HTTP/1.1 server on llhttp (``httptools``) and trio streams.

Knows no objects and no buckets: the S3 API and the node's wire protocol both stand on it.
"""
