"""What a job would take on devices that are not here: by their compiler, and by arithmetic."""
