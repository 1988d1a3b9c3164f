"""The sections of the page as plain records of finished text; the template only arranges them.

Every topic opens with one sentence that says what was found. Nothing is escaped here; the templates escape.
"""
