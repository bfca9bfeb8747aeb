"""Execution: the executor, the dispatcher, tools, the journal and the engines behind one seam."""
