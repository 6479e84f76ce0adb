"""What pyproject.toml cannot say without a warning: the one extension in C."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "engine.data._md5lanes",
            ["engine/data/md5lanes.c"],
            depends=["engine/data/md5lanes_kernel.h"],
            extra_compile_args=["-O3"],
            # Without a C compiler everything works, and MD5 takes more CPU time: decisions/0013.
            optional=True,
        )
    ]
)
