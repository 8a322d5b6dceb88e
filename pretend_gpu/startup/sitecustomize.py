"""Puts this Python process on the pretend GPU, before its program starts."""

import pretend_gpu.operations

pretend_gpu.operations.install()
