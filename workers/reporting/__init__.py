"""Figures and the page of a report, drawn from its stored tables alone: no model, no torch, at any later time."""
