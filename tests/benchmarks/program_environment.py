"""Imported before torch: the libraries' settings in the measuring program."""

from workers.measurement.environment import settle_environment

settle_environment()
