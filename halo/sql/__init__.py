"""SQL with AI functions: from text to the logical plan, and back to rows."""
