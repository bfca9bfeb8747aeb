"""The comparison on an accelerator: model shapes, server, driver, evaluation."""
