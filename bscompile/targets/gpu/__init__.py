"""What GPU-like targets share: templates, schedules, and kernels as source text with launches."""
