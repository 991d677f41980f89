"""A conformance suite for schemes: the requirements of the harness, checked on every backbone.

From Python `cadyq.testing.check_scheme("my_scheme")`, from a shell `python -m cadyq.testing my_scheme.py`.
"""

from cadyq.testing.suite import SchemeCheckError, check_scheme

__all__ = ["SchemeCheckError", "check_scheme"]
