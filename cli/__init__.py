"""The ``lode`` command: the one place where the parts are put together.

Only this package reads the environment, the command line and configuration files; everything
below gets what it needs through its arguments.
"""
