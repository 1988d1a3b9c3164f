"""Imported before torch: the libraries' settings in the measuring program."""

from workers.measurement.runtime.environment import settle_environment

settle_environment()
