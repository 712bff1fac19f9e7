"""Loads `common`, but not into the process that only hands out tests to others: it takes seconds."""


def pytest_configure(config):
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        config.pluginmanager.import_plugin("common")
