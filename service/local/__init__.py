"""The embedded stack: broker, API, scheduler and worker as child processes on one machine."""
