"""What all components share: one pinned image, and nothing installed in it."""

import functools

from kfp import dsl

IMAGE = "photoflux-python:0.1.0"  # a release puts its digest here; kfp.local warns unless "python" is in it

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
