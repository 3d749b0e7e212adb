"""The study of the damped adjoint (METHOD §4): `python -m bench.adjoint --plan NAME --resume`; see docs/adjoint.md."""
