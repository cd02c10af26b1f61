"""An extension of Inspect (inspect.aisi.org.uk): steered arms as models, tasks with this tool's scorers, logs of finished runs.

Inspect finds it by its entry point and calls what is in it by this package's name. Imports commands' framework, interventions,
reports and data.
"""
