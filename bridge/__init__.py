"""Bridge from the Enphase IQ Gateway to MQTT."""

__version__ = "0.1.0"
