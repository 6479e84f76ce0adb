"""WebDAV over the engine: wsgidav's application on cheroot's threads, both made to fit.

Worker threads speak HTTP and block; the engine lives in one trio run. ``portal.py`` is the only
place where the two meet. Start reading at ``app.py``.
"""
