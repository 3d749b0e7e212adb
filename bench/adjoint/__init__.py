"""The study of the damped adjoint, docs/adjoint.md: `python -m bench.adjoint --plan NAME --resume`."""
