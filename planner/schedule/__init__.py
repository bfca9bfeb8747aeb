"""The scheduler: which model lives where when, how rows are split, in which order work goes."""
