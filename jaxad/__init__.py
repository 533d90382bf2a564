"""jaxad: industrial image anomaly detection and segmentation in JAX/Flax."""

__version__ = "0.1.0"
