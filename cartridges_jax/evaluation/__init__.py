"""What a cartridge is worth: questions, controls, scores with intervals, a report."""
